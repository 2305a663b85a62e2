# SPDX-License-Identifier: Apache-2.0
"""What a nested machine with soft RoCE boots: Debian's kernel, and an initramfs of modules, libraries
and programs.

The kernel is the full one of linux-image-amd64: it has soft RoCE (rdma_rxe). What is opened at run
time, so that ldd does not see it, is named here.
"""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import debian  # noqa: E402
from debian import Missing  # noqa: E402

# crc32_generic is asked for by name at run time, so depmod does not know of it.
MODULES = ("crc32_generic", "dummy", "rdma_rxe", "rdma_ucm", "virtio_pci", "virtio_net")
APPLETS = ("awk", "cat", "chmod", "cut", "date", "dmesg", "echo", "free", "grep", "head", "kill", "ls",
           "mkdir", "modprobe", "mount", "mv", "ping", "poweroff", "printf", "ps", "renice", "rm", "sed",
           "setsid", "sh", "sleep", "sort", "stty", "tail", "test", "timeout", "top", "touch", "true",
           "uname", "usleep", "vi", "wc")
PROGRAMS = ("ip", "rdma", "ibv_devices", "ibv_devinfo", "rping", "setpriv", "strace")
# Opened at run time, so that ldd does not see them.
LIBRARIES = ("libibverbs.so.1", "librdmacm.so.1", "libgcc_s.so.1")
PROVIDER = "librxe-rdmav34.so"
LIBRARY_FOLDER = pathlib.Path("/usr/lib/x86_64-linux-gnu")


def _tree(kernel, build):
    tree = debian.Tree()
    tree.busybox(APPLETS)
    tree.links["/lib/x86_64-linux-gnu"] = "/usr/lib/x86_64-linux-gnu"
    for program in PROGRAMS:
        tree.program(debian.which(program), f"/bin/{program}")
    for name in (*LIBRARIES, f"libibverbs/{PROVIDER}"):
        path = LIBRARY_FOLDER / name
        path = path if path.exists() else pathlib.Path("/lib/x86_64-linux-gnu") / name
        if not path.exists():
            raise Missing(f"{name} is not installed")
        tree.program(path, f"/usr/lib/x86_64-linux-gnu/{name}")
    tree.modules(kernel, MODULES)

    # What was built here. What a build lacks is missing there as well, and the tests say so.
    tree.program(build / "cli" / "jaunt", "/bin/jaunt")
    for folder in (build / "tests" / "unit" / "transport", build / "bench"):
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.is_file() and re.fullmatch(r"(test-transport-|jaunt-floor-)[a-z0-9_-]+",
                                               path.name):
                tree.program(path, f"/bin/{path.name}")

    tree.texts["/etc/libibverbs.d/rxe.driver"] = ("driver rxe\n", 0o644)
    tree.texts["/etc/passwd"] = ("root:x:0:0::/:/bin/sh\n", 0o644)
    tree.texts["/etc/hosts"] = ("127.0.0.1 localhost\n::1 localhost\n", 0o644)
    tree.texts["/etc/nsswitch.conf"] = ("hosts: files\n", 0o644)
    tree.copies["/init"] = HERE / "init"
    return tree


class Image:
    """.kernel and .initramfs, files that QEMU takes, of what was built in the folder `build`."""

    def __init__(self, build):
        build = pathlib.Path(build).resolve()
        if not (build / "cli" / "jaunt").exists():
            raise Missing(f"{build / 'cli' / 'jaunt'} is not built")
        with debian.cache():
            kernel = debian.Kernel("amd64")
            self.kernel = kernel.image
            self.version = kernel.version
            self.initramfs = debian.pack(_tree(kernel, build))
