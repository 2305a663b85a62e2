# SPDX-License-Identifier: Apache-2.0
"""A nested machine: QEMU without KVM, soft RoCE on its network device, commands run from outside.

Its console goes to a file. Commands and their answers go over a second serial line, one at a time;
what has to stay is started in the background there. Every wait has an end.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time

BOOT_S = 60
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Broken(AssertionError):
    """The machine does not do what it is told."""


class Machine:
    """Runs from the constructor on; ready after boot()."""

    def __init__(self, image, folder, name, network, address, mtu=4200, memory_mib=768,
                 more=()):
        """`network` is None for one host on a dummy device, else QEMU's end of a line between two:
        ("server" or "client", the path of a socket). `more`: of QEMU's options."""
        self.name, self.address, self.folder = name, address, folder
        self.console = folder / f"{name}.console"
        self.lines = folder / f"{name}.line"
        self.monitor = folder / f"{name}.monitor"
        self.said = []  # commands and answers, for people
        self.line = self.qmp = None
        self.commands = 0
        deadline = time.monotonic() + 10
        while network and network[0] == "client" and not network[1].exists():
            if time.monotonic() > deadline:
                raise Broken(f"{name}: there is no cable {network[1]}")
            time.sleep(0.02)
        self.process = subprocess.Popen(
            self.words(image, network, memory_mib,
                       [f"net={self.interface(network)},{address}/24,{mtu}"]) +
            ["-serial", f"file:{self.console}",
             "-chardev", f"socket,id=line,path={self.lines},server=on,wait=off",
             "-serial", "chardev:line", "-qmp", f"unix:{self.monitor},server=on,wait=off", *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent)
        # At once: what the machine says before that is lost.
        self.line = self._connect(self.lines, deadline)

    @staticmethod
    def interface(network):
        return "eth0" if network else "dummy0"

    @staticmethod
    def words(image, network, memory_mib, arguments):
        """QEMU's command line but for its serial lines."""
        # ERMS has a kernel copy pages byte by byte, which takes an emulated processor eight times as
        # long as words; a real one copies a page in no time.
        words = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,-erms", "-smp", "1",
                 "-m", str(memory_mib), "-display", "none", "-nodefaults", "-no-reboot",
                 "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append",
                 " ".join(["console=ttyS0 quiet panic=-1 mitigations=off nokaslr", *arguments])]
        if not network:
            return words + ["-net", "none"]
        role, path = network
        # Each end a hardware address of its own.
        last = "01" if role == "server" else "02"
        return words + [
            "-netdev", f"stream,id=n,server={'on' if role == 'server' else 'off'},"
            f"addr.type=unix,addr.path={path}",
            "-device", f"virtio-net-pci,netdev=n,mac=52:54:00:00:00:{last},romfile="]

    def boot(self):
        """Waits until it takes commands and its RDMA device is there."""
        deadline = time.monotonic() + BOOT_S
        self._answer("0", deadline)
        if self.try_("test -e /tmp/ready", 5)[0]:
            raise Broken(f"{self.name}: soft RoCE could not be set up, see its console")
        return self

    def _connect(self, path, deadline):
        while True:
            self._check_alive()
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(path))
                return line
            except OSError:
                line.close()
                if time.monotonic() > deadline:
                    raise Broken(f"{self.name}: QEMU does not listen at {path}") from None
                time.sleep(0.02)

    def _check_alive(self):
        if self.process.poll() is not None:
            raise Broken(f"{self.name}: QEMU ended with {self.process.returncode}: "
                         f"{self.process.stdout.read().decode(errors='replace')}")

    # --- Commands -------------------------------------------------------------------------------

    def _answer(self, word, deadline):
        """(status, what came before the line that ends an answer)."""
        end = f"@@{word} ".encode()
        data = b""
        while True:
            at = data.find(end)
            if at >= 0 and b"\n" in data[at:]:
                status = data[at + len(end):].split(b"\n", 1)[0]
                text = data[:at].decode(errors="replace").replace("\r\n", "\n")
                return int(status), text[:-1] if text.endswith("\n") else text
            left = deadline - time.monotonic()
            if left <= 0:
                raise Broken(f"{self.name}: no answer, only {data[-2000:]!r}")
            self.line.settimeout(left)
            try:
                more = self.line.recv(65536)
            except TimeoutError:
                continue
            if not more:
                self.process.wait(10)
                self._check_alive()
            data += more

    def try_(self, command, seconds=20):
        """(exit status, output) of a command of its shell; 143 if it took too long."""
        assert "\n" not in command, command
        self.commands += 1
        self.line.sendall(f"{self.commands} {seconds} {command}\n".encode())
        status, text = self._answer(self.commands, time.monotonic() + seconds + 20)
        self.said.append(f"{self.name}$ {command}\n{text}" + (f"\n({status})" if status else ""))
        return status, text

    def run(self, command, seconds=20):
        """The output without newlines behind it; an exit status other than 0 is a failure."""
        status, text = self.try_(command, seconds)
        if status:
            raise Broken(f"{self.name}: `{command}' ended with {status}:\n{text}")
        return text.rstrip("\n")

    def quietly(self, command, seconds=20):
        """As try_, and not kept for the transcript: for what is asked again and again."""
        answer = self.try_(command, seconds)
        self.said.pop()
        return answer

    # --- The machine's own --------------------------------------------------------------------------

    def set_link(self, up):
        """Plugs the cable of its network device in or out."""
        if not self.qmp:
            self.qmp = self._connect(self.monitor, time.monotonic() + 10).makefile("rwb")
            self.qmp.readline()
            self._ask_monitor({"execute": "qmp_capabilities"})
        self._ask_monitor({"execute": "set_link", "arguments": {"name": "n", "up": up}})

    def _ask_monitor(self, request):
        self.qmp.write(json.dumps(request).encode() + b"\n")
        self.qmp.flush()
        while True:
            answer = json.loads(self.qmp.readline())
            if "error" in answer:
                raise Broken(f"{self.name}: QEMU: {answer['error']['desc']}")
            if "return" in answer:
                return

    def forget(self):
        """A new test begins: what was said before is of no interest."""
        self.said = []

    def transcript(self, commands=40, lines=25):
        """The last commands, and the end of the console."""
        try:
            console = self.console.read_text(errors="replace").splitlines()
        except OSError:
            console = []
        return "\n".join([f"--- {self.name}: the last commands", *self.said[-commands:],
                          f"--- {self.name}: the end of its console", *console[-lines:]])

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        if self.line:
            self.line.close()


def interactive(image, network, address, memory_mib=768, mtu=4200):
    """Boots one with a shell on this terminal; returns when it has ended."""
    words = Machine.words(image, network, memory_mib, [
        f"net={Machine.interface(network)},{address}/24,{mtu}", "shell"])
    words += ["-chardev", "stdio,id=tty,signal=off", "-serial", "chardev:tty"]
    print("The console follows; `poweroff -f' in it ends the machine.", flush=True)
    return subprocess.run(words, check=False).returncode
