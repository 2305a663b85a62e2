# SPDX-License-Identifier: Apache-2.0
"""What a guest of QEMU boots: Debian's cloud kernel, and an initramfs of modules, busybox and our own
program, which is linked statically."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import debian  # noqa: E402
from debian import Missing  # noqa: E402

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon")
APPLETS = ("modprobe", "mount", "sed", "sh", "tr")


class Image:
    """.kernel and .initramfs, files that QEMU takes; the program is that of the folder `build`."""

    def __init__(self, build):
        program = pathlib.Path(build).resolve() / "tests" / "vm" / "qemu" / "guest" / "jaunt-test-guest"
        if not program.exists():
            raise Missing(f"{program} is not built")
        with debian.cache():
            kernel = debian.Kernel("cloud-amd64")
            tree = debian.Tree()
            tree.busybox(APPLETS)
            tree.modules(kernel, MODULES)
            tree.copies["/bin/guest"] = program
            tree.copies["/init"] = HERE / "init"
            self.kernel = kernel.image
            self.version = kernel.version
            self.initramfs = debian.pack(tree)
