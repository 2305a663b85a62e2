# SPDX-License-Identifier: Apache-2.0
"""What a nested machine boots: Debian's kernel, and an initramfs of modules, libraries and programs.

The kernel is the full one of linux-image-amd64: it has soft RoCE (rdma_rxe). Its package is
downloaded and what is needed of it unpacked, never installed. Programs and libraries come from this
host; the libraries of a program are found by ldd, and what is opened at run time is named here.
Everything lies under build/vm, is made again when what it is made of has changed, and may be removed
at any time.
"""

import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]
HERE = pathlib.Path(__file__).resolve().parent
CACHE = ROOT / "build" / "vm"

# crc32_generic is asked for by name at run time, so depmod does not know of it.
MODULES = ("crc32_generic", "dummy", "rdma_rxe", "rdma_ucm", "virtio_pci", "virtio_net")
APPLETS = ("awk", "cat", "chmod", "cut", "date", "dmesg", "echo", "free", "grep", "head", "kill", "ls",
           "mkdir", "modprobe", "mount", "mv", "ping", "poweroff", "printf", "ps", "renice", "rm", "sed",
           "setsid", "sh", "sleep", "sort", "stty", "tail", "test", "timeout", "top", "touch", "true",
           "uname", "usleep", "vi", "wc")
PROGRAMS = ("ip", "rdma", "ibv_devices", "ibv_devinfo", "rping", "strace")
# Opened at run time, so that ldd does not see them.
LIBRARIES = ("libibverbs.so.1", "librdmacm.so.1", "libgcc_s.so.1")
PROVIDER = "librxe-rdmav34.so"
LIBRARY_FOLDER = pathlib.Path("/usr/lib/x86_64-linux-gnu")


class Missing(Exception):
    """Something that the image is made of is not there; the text says what to do."""


def run(*words, **how):
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **how)
    if done.returncode:
        raise Missing(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


# --- The kernel -------------------------------------------------------------------------------------


def _package():
    """The package that linux-image-amd64 stands for now."""
    found = re.search(r"Depends: (linux-image-\d\S+-amd64)",
                      run("apt-cache", "depends", "linux-image-amd64"))
    return found and found.group(1)


def _download(folder):
    """The package's file, from the cache if any version lies there."""
    have = sorted(folder.glob("linux-image-*.deb"))
    if have:
        return have[-1]
    package = _package()
    try:
        if not package:
            raise Missing("no lists of packages")
        run("apt-get", "-q", "download", package, cwd=folder, timeout=300)
    except Missing:
        run("apt-get", "-q", "update", timeout=300)
        package = _package()
        if not package:
            raise Missing("linux-image-amd64 is not among the packages: is this Debian?") from None
        run("apt-get", "-q", "download", package, cwd=folder, timeout=300)
    have = sorted(folder.glob("linux-image-*.deb"))
    if not have:
        raise Missing(f"apt-get download {package} left no package behind")
    return have[-1]


class Kernel:
    """.image to boot, .modules: the folder of its version, .version."""

    def __init__(self, folder):
        package = _download(folder)
        unpacked = folder / package.stem
        if not (unpacked / "complete").exists():
            shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.mkdir()
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package],
                                  stdout=subprocess.PIPE) as archive:
                subprocess.run(["tar", "-x", "-C", unpacked, "./boot", "./lib/modules"],
                               stdin=archive.stdout, check=True)
            version = next((unpacked / "lib" / "modules").iterdir()).name
            run("depmod", "-b", unpacked, version)
            (unpacked / "complete").touch()
        self.modules = next((unpacked / "lib" / "modules").iterdir())
        self.version = self.modules.name
        self.image = unpacked / "boot" / f"vmlinuz-{self.version}"

    def needed(self):
        """The files of MODULES and of what they depend on."""
        depends = dict(line.split(":", 1) for line in
                       (self.modules / "modules.dep").read_text().splitlines())
        by_name = {pathlib.Path(path).name.split(".")[0]: path for path in depends}
        files = set()
        for module in MODULES:
            if module not in by_name:
                continue  # built in
            files |= {by_name[module], *depends[by_name[module]].split()}
        return sorted(files)


# --- The initramfs ----------------------------------------------------------------------------------


def _which(program):
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not path:
        raise Missing(f"{program} is not installed")
    return pathlib.Path(path).resolve()


def _libraries(program):
    """What the loader would open for it, by the paths it would use."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [pathlib.Path(path) for path in re.findall(r"(/\S+) \(0x", text)]


class Tree:
    """The files of an initramfs: where they go, and what they are copied from."""

    def __init__(self):
        self.copies = {}  # path inside -> file here
        self.links = {}  # path inside -> text
        self.texts = {}  # path inside -> (text, mode)

    def shared_object(self, path):
        self.copies[f"/lib64/{path.name}" if path.name.startswith("ld-linux") else
                    f"/usr/lib/x86_64-linux-gnu/{path.name}"] = path.resolve()

    def program(self, path, inside):
        self.copies[inside] = path
        for library in _libraries(path):
            self.shared_object(library)

    def digest(self):
        facts = [(inside, str(path), path.stat().st_size, path.stat().st_mtime_ns)
                 for inside, path in sorted(self.copies.items())]
        return hashlib.sha256(repr((facts, sorted(self.links.items()),
                                    sorted(self.texts.items()))).encode()).hexdigest()

    def write(self, folder):
        for inside, path in self.copies.items():
            to = folder / inside.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
            to.chmod(0o755)
            if to.read_bytes()[:4] == b"\x7fELF":
                # Without symbols for a debugger: most of the bytes.
                subprocess.run(["strip", "--strip-debug", to], check=False, capture_output=True)
        for inside, text in self.links.items():
            to = folder / inside.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(text)
        for inside, (text, mode) in self.texts.items():
            to = folder / inside.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(text)
            to.chmod(mode)


def _tree(kernel, build):
    tree = Tree()
    tree.copies["/bin/busybox"] = _which("busybox")
    for applet in APPLETS:
        tree.links[f"/bin/{applet}"] = "busybox"
    tree.links["/lib/x86_64-linux-gnu"] = "/usr/lib/x86_64-linux-gnu"
    for program in PROGRAMS:
        tree.program(_which(program), f"/bin/{program}")
    for name in (*LIBRARIES, f"libibverbs/{PROVIDER}"):
        path = LIBRARY_FOLDER / name
        path = path if path.exists() else pathlib.Path("/lib/x86_64-linux-gnu") / name
        if not path.exists():
            raise Missing(f"{name} is not installed")
        tree.program(path, f"/usr/lib/x86_64-linux-gnu/{name}")
    for file in kernel.needed():
        tree.copies[f"/lib/modules/{kernel.version}/{file}"] = kernel.modules / file
    for file in ("modules.dep", "modules.softdep", "modules.alias"):
        tree.copies[f"/lib/modules/{kernel.version}/{file}"] = kernel.modules / file

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
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(CACHE / "lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            kernel = Kernel(CACHE)
            tree = _tree(kernel, build)
            self.kernel = kernel.image
            self.version = kernel.version
            self.initramfs = CACHE / f"initramfs-{tree.digest()[:16]}.cpio"
            if not self.initramfs.exists():
                self._pack(tree)

    def _pack(self, tree):
        # Those of other builds that nobody has used for a day.
        for old in CACHE.glob("initramfs-*"):
            if old.stat().st_atime < os.stat(CACHE / "lock").st_mtime - 86400:
                old.unlink()
        folder = CACHE / f"tree-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for inside in ("proc", "sys", "dev", "tmp", "run", "etc", "root"):
                (folder / inside).mkdir(parents=True)
            tree.write(folder)
            names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
            part = self.initramfs.with_suffix(".part")
            with open(part, "wb") as out:
                subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=folder, stdout=out,
                               input="\n".join(names).encode(), check=True)
            part.rename(self.initramfs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
