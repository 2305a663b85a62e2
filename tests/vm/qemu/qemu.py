# SPDX-License-Identifier: Apache-2.0
"""One QEMU: its command line, its monitor, its console and the line to the program in its guest."""

import dataclasses
import json
import os
import pathlib
import shlex
import socket
import threading
import time

import migrating

BOOT_S = 90
ANSWER_S = 40
POLL_S = 0.02


class Broken(AssertionError):
    """QEMU or the guest does not do what it is told."""


def programs():
    """The QEMUs that a guest runs in, one after the other: each the first words of a command line. The
    last is for all moves that follow."""
    return [shlex.split(one) for one in
            os.environ.get("JAUNT_TEST_QEMU", "qemu-system-x86_64").split(";")]


def machine():
    """The type of each guest's machine. Without a version it is another one in each QEMU."""
    return os.environ.get("JAUNT_TEST_MACHINE", "q35")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What both QEMUs of a migration are made of, and what the guest works on."""
    memory_mib: int = 512
    vcpus: int = 1
    devices: bool = False  # disk, network, balloon, screen
    anonymous: bool = False  # private memory: Jaunt cannot reach it
    work_mib: int = 128
    rate: int = 4000  # pages a second of each worker
    write: int = 50
    spin: bool = False
    pulse_us: int = 0
    disk_mib: int = 64
    screen_rate: int = 50  # lines of 4 KiB a second

    def settings(self):
        """Those of the program in the guest."""
        words = {"memory": self.work_mib << 20, "threads": self.vcpus, "rate": self.rate,
                 "write": self.write, "spin": int(self.spin), "pulse_us": self.pulse_us}
        if self.devices:
            words |= {"disk": self.disk_mib << 20, "disk_rate": 100, "screen_rate": self.screen_rate}
        return ",".join(f"{key}={value}" for key, value in words.items())

    def text(self):
        return (f"{self.memory_mib} MiB, {self.vcpus} CPU, "
                f"{'disk, network, balloon, VGA' if self.devices else 'no devices'}")


def _moment(event):
    return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6


class Monitor:
    """A client of QMP. Events are kept, with what QEMU said of the moment."""

    def __init__(self, path, alive, seconds=20):
        self.alive = alive
        deadline = time.monotonic() + seconds * migrating.PATIENCE
        while True:
            alive()
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline:
                    raise Broken(f"QEMU does not listen at {path}") from None
                time.sleep(POLL_S)
        self.changed = threading.Condition()
        self.events, self.answers, self.ended = [], {}, False
        self.number = 0
        self.lines = self.socket.makefile("rb")
        threading.Thread(target=self._read, daemon=True).start()
        self.ask("qmp_capabilities")

    def _read(self):
        try:
            for line in self.lines:
                said = json.loads(line)
                with self.changed:
                    if "event" in said:
                        self.events.append(said)
                    elif "id" in said:
                        self.answers[said["id"]] = said
                    self.changed.notify_all()
        except (OSError, ValueError):
            pass
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def _until(self, predicate, seconds, what):
        with self.changed:
            self.changed.wait_for(lambda: predicate() or self.ended, seconds * migrating.PATIENCE)
            found = predicate()
        if not found:
            self.alive()
            raise Broken(f"{what}: {'the monitor was closed' if self.ended else 'not in time'}")
        return found

    def ask(self, command, seconds=ANSWER_S, **arguments):
        with self.changed:
            self.number += 1
            number = self.number
        request = {"execute": command, "id": number}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value
                                    for key, value in arguments.items()}
        try:
            self.socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            self.alive()
            raise Broken(f"QMP {command}: the monitor was closed") from None
        self._until(lambda: number in self.answers, seconds, f"QMP {command}")
        answer = self.answers.pop(number)
        if "error" in answer:
            raise Broken(f"QMP {command}: {answer['error']['desc']}")
        return answer["return"]

    def event(self, name, seconds=ANSWER_S, **data):
        """The first event of that name and data; when it was, in seconds since the epoch."""
        def found():
            return next((event for event in self.events if event["event"] == name and
                         all(event.get("data", {}).get(key) == value
                             for key, value in data.items())), None)
        return _moment(self._until(found, seconds, f"event {name} {data or ''}"))

    def when(self, name, after=0, **data):
        """As event(), of what has been said already; None if it was not."""
        with self.changed:
            return next((_moment(event) for event in self.events if event["event"] == name and
                         _moment(event) >= after and
                         all(event.get("data", {}).get(key) == value
                             for key, value in data.items())), None)

    def close(self):
        self.socket.close()


class Qemu:
    """Runs from the constructor on. `incoming`: waits for a guest from elsewhere. `words`: more of
    the command line. `user`: whose process it is, if not ours. `program`: one of programs(), default
    the first."""

    def __init__(self, site, image, shape, name, incoming=False, words=(), pulse_port=0, disk=None,
                 user=None, program=None):
        self.site, self.shape, self.name = site, shape, name
        self.program = program or programs()[0]
        folder = pathlib.Path(site.directory)
        through, environment = [], {}
        if user is not None:
            folder, environment = self._folder_of(folder, user)
            through = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self.console = folder / f"{name}.console"
        self.ram = pathlib.Path(f"/dev/shm/{pathlib.Path(site.directory).name}-{name}.ram")
        self.monitor_path = folder / f"{name}.jaunt"
        self.vm = f"qemu:{self.monitor_path}"
        self.line_path, self.own_path = folder / f"{name}.line", folder / f"{name}.test"
        self.console.touch()
        os.chown(self.console, user or -1, -1)
        self.commands = 0
        self.line = None
        command = [site.jaunt, "qemu", "--", *self.program,
                   *self.words(image, shape, pulse_port, disk), *words]
        if incoming:
            command += ["-incoming", "defer"]
        self.process = site.start(*through, *command, program="env", environment=environment)
        self.monitor = Monitor(self.own_path, self._check_alive)

    @staticmethod
    def _folder_of(folder, user):
        """One that another user may write to, its runtime directory within, and how it is told."""
        folder.chmod(0o711)
        own = folder / "user"
        for path in (own, own / "run"):
            path.mkdir(mode=0o755, exist_ok=True)
            os.chown(path, user, user)
        return own, {"JAUNT_RUNTIME_DIR": own / "run"}

    def words(self, image, shape, pulse_port, disk):
        """QEMU's command line without its name."""
        size = f"{shape.memory_mib}M"
        ram = (f"memory-backend-ram,id=ram,size={size}" if shape.anonymous else
               f"memory-backend-file,id=ram,size={size},mem-path={self.ram},share=on")
        words = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                 "-accel", "tcg", "-machine", f"{machine()},memory-backend=ram", "-object", ram,
                 "-m", size, "-smp", str(shape.vcpus),
                 "-kernel", image.kernel, "-initrd", image.initramfs, "-append",
                 "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable "
                 f"guest={shape.settings()}",
                 "-serial", f"file:{self.console}",
                 "-chardev", f"socket,id=line,path={self.line_path},server=on,wait=off",
                 "-serial", "chardev:line",
                 "-qmp", f"unix:{self.monitor_path},server=on,wait=off",
                 "-qmp", f"unix:{self.own_path},server=on,wait=off"]
        if shape.pulse_us:
            words += ["-chardev", f"udp,id=pulse,host=127.0.0.1,port={pulse_port}",
                      "-device", "isa-debugcon,iobase=0x402,chardev=pulse"]
        if shape.devices:
            words += ["-drive", f"file={disk},if=none,id=disk,format=raw,cache=none",
                      "-device", "virtio-blk-pci,drive=disk",
                      "-netdev", "user,id=net",
                      "-device", "virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:07",
                      "-device", "virtio-balloon-pci,id=balloon", "-device", "VGA"]
        return words

    def _check_alive(self):
        if not self.process.running():
            raise Broken(f"{self.name}: QEMU has ended\n{self.process.transcript()}")

    @property
    def pid(self):
        return self.process.pid

    def status(self):
        return self.monitor.ask("query-status")["status"]

    # --- The program in the guest -------------------------------------------------------------------

    def _connect(self):
        if self.line is None:
            self.line = socket.socket(socket.AF_UNIX)
            self.line.connect(str(self.line_path))
            self.heard = b""

    def _until(self, word, seconds):
        """What it answers behind that word."""
        deadline = time.monotonic() + seconds * migrating.PATIENCE
        while True:
            at = self.heard.find(word)
            end = self.heard.find(b"\n", at) if at >= 0 else -1
            if end >= 0:
                answer = self.heard[at + len(word):end]
                self.heard = self.heard[end + 1:]
                return answer.decode(errors="replace").strip()
            left = deadline - time.monotonic()
            if left <= 0:
                raise Broken(f"{self.name}: the guest does not answer, only {self.heard[-500:]!r}; "
                             f"its console:\n{self.tail()}")
            self.line.settimeout(left)
            try:
                more = self.line.recv(65536)
            except TimeoutError:
                continue
            if not more:
                time.sleep(0.1)
                self._check_alive()
                raise Broken(f"{self.name}: the line to the guest was closed")
            self.heard += more

    def boot(self):
        """Waits until its program listens."""
        self._connect()
        self._until(b"@0 ", BOOT_S)
        return self

    def ask(self, command, value=None, seconds=ANSWER_S):
        """The answer of the program in the guest to a command."""
        self._connect()
        self.commands += 1
        # Numbers that no other QEMU has given to the same guest.
        word = f"{abs(hash(self.name)) % 10000}{self.commands:04}"
        self.line.sendall(f"{word} {command}{'' if value is None else f' {value}'}\n".encode())
        return self._until(f"@{word} ".encode(), seconds)

    def report(self, command="report", seconds=ANSWER_S):
        return json.loads(self.ask(command, seconds=seconds))

    def tail(self, lines=15):
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-lines:])

    def end(self):
        self.process.kill()
        self.monitor.close()
        if self.line:
            self.line.close()
        self.ram.unlink(missing_ok=True)
