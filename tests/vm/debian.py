# SPDX-License-Identifier: Apache-2.0
"""What nested machines boot, out of Debian's packages: a kernel, and what an initramfs is packed of.

A kernel's package is downloaded and what is needed of it unpacked, never installed. Programs and
libraries come from this host; the libraries of a program are found by ldd. Everything lies under
build/vm, is made again when what it is made of has changed, and may be removed at any time.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "vm"


class Missing(Exception):
    """Something that the image is made of is not there; the text says what to do."""


def run(*words, **how):
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **how)
    if done.returncode:
        raise Missing(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.returncode}")
    return done.stdout


# --- The kernel -------------------------------------------------------------------------------------


def _package(flavour):
    """The package that linux-image-FLAVOUR stands for now."""
    found = re.search(rf"Depends: (linux-image-\d\S+-{flavour})\s",
                      run("apt-cache", "depends", f"linux-image-{flavour}"))
    return found and found.group(1)


def _download(folder, flavour):
    """The package's file, from the cache if any version lies there."""
    pattern = f"linux-image-*[0-9]-{flavour}_*.deb"
    have = sorted(folder.glob(pattern))
    if have:
        return have[-1]
    package = _package(flavour)
    try:
        if not package:
            raise Missing("no lists of packages")
        run("apt-get", "-q", "download", package, cwd=folder, timeout=300)
    except Missing:
        run("apt-get", "-q", "update", timeout=300)
        package = _package(flavour)
        if not package:
            raise Missing(f"linux-image-{flavour} is not among the packages: "
                          "is this Debian?") from None
        run("apt-get", "-q", "download", package, cwd=folder, timeout=300)
    have = sorted(folder.glob(pattern))
    if not have:
        raise Missing(f"apt-get download {package} left no package behind")
    return have[-1]


class Kernel:
    """That of linux-image-FLAVOUR: .image to boot, .modules: the folder of its version, .version."""

    def __init__(self, flavour, folder=CACHE):
        package = _download(folder, flavour)
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

    def needed(self, modules):
        """The files of the modules and of what they depend on."""
        depends = dict(line.split(":", 1) for line in
                       (self.modules / "modules.dep").read_text().splitlines())
        by_name = {pathlib.Path(path).name.split(".")[0]: path for path in depends}
        files = set()
        for module in modules:
            if module not in by_name:
                continue  # built in
            files |= {by_name[module], *depends[by_name[module]].split()}
        return sorted(files)


# --- The initramfs ----------------------------------------------------------------------------------


def which(program):
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

    def modules(self, kernel, names):
        """Those of the kernel, where modprobe looks for them."""
        for file in kernel.needed(names):
            self.copies[f"/lib/modules/{kernel.version}/{file}"] = kernel.modules / file
        for file in ("modules.dep", "modules.softdep", "modules.alias"):
            self.copies[f"/lib/modules/{kernel.version}/{file}"] = kernel.modules / file

    def busybox(self, applets):
        self.copies["/bin/busybox"] = which("busybox")
        for applet in applets:
            self.links[f"/bin/{applet}"] = "busybox"


@contextlib.contextmanager
def cache():
    """The folder, for one maker at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield CACHE


def pack(tree):
    """The file of an initramfs with these files in it, made if it is not there. Within cache()."""
    packed = CACHE / f"initramfs-{tree.digest()[:16]}.cpio"
    if packed.exists():
        return packed
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
        part = packed.with_suffix(".part")
        with open(part, "wb") as out:
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=folder, stdout=out,
                           input="\n".join(names).encode(), check=True)
        part.rename(packed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return packed
