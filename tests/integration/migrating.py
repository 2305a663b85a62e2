# SPDX-License-Identifier: Apache-2.0
"""Whole migrations through the real commands, in a runtime directory of their own.

A Site is one host's worth of commands: it starts them, keeps what they print, and ends what is left
of them. Nothing here sleeps for a fixed time to wait for something: output is waited for by a
condition variable, the state of another process by asking it again until a deadline.

From the environment (meson sets them): JAUNT_BUILD, the build folder; JAUNT_TEST_PATIENCE, by which
every deadline is multiplied (sanitizers are slow); JAUNT_TEST_SHARE, see below;
JAUNT_TEST_THREAD_BACKED=1: no KVM.
"""

import ctypes
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("JAUNT_TEST_PATIENCE", "1"))
# Of the commands: where the VM is.
DONE, FAILED, USAGE, CANCELLED, INCOMPLETE, UNKNOWN = range(6)

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Failure(AssertionError):
    """Something did not go as it must; the message says all that is known."""


def build_folder():
    return pathlib.Path(os.environ.get("JAUNT_BUILD") or ROOT / "build" / "normal")


def kvm_works():
    if os.environ.get("JAUNT_TEST_THREAD_BACKED") == "1":
        return False
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def ipv6_works():
    return pathlib.Path("/proc/net/if_inet6").exists() and "00000000000000000000000000000001" in (
        pathlib.Path("/proc/net/if_inet6").read_text())


class Process:
    """A command that stays. Its lines of stderr and stdout are kept and can be waited for."""

    def __init__(self, site, arguments, environment=None):
        self.arguments = [str(argument) for argument in arguments]
        self.changes = {key: str(value) for key, value in (environment or {}).items()}
        self.site = site
        self.changed = threading.Condition()
        self.output = {"stdout": [], "stderr": []}
        self.process = subprocess.Popen(
            self.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", preexec_fn=_die_with_parent,
            env={**site.environment, **self.changes})
        self.readers = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in self.output]
        for reader in self.readers:
            reader.start()

    def _read(self, name):
        with getattr(self.process, name) as stream:
            for line in stream:
                with self.changed:
                    self.output[name].append(line.rstrip("\n"))
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    @property
    def pid(self):
        return self.process.pid

    def command_line(self):
        prefix = [f"{key}={shlex.quote(value)}" for key, value in self.changes.items()]
        return " ".join(prefix + [shlex.join(self.arguments)])

    def line(self, pattern, seconds=20):
        """The first line of stderr that matches, once there is one."""
        deadline = time.monotonic() + seconds * PATIENCE
        expression = re.compile(pattern)
        with self.changed:
            while True:
                for line in self.output["stderr"]:
                    match = expression.search(line)
                    if match:
                        return match
                ended = not any(reader.is_alive() for reader in self.readers)
                left = deadline - time.monotonic()
                if ended or left <= 0:
                    how = "it ended" if ended else "not in time"
                    raise Failure(f"no line like /{pattern}/ ({how})\n{self.transcript()}")
                self.changed.wait(min(left, 0.2))

    def wait(self, seconds=20):
        """Its exit status, negative for a signal."""
        try:
            status = self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failure(f"it does not end\n{self.transcript()}") from None
        for reader in self.readers:
            reader.join(5)
        return status

    def ends_within(self, seconds):
        """Whether it ends before so much time has passed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def running(self):
        return self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.running():
            self.process.kill()
        self.process.wait(30)

    def json(self):
        """The object on the last line of stdout."""
        lines = self.output["stdout"]
        if not lines:
            raise Failure(f"nothing on stdout\n{self.transcript()}")
        return json.loads(lines[-1])

    def transcript(self):
        state = "running" if self.running() else f"ended with {self.process.returncode}"
        lines = [f"$ {self.command_line()}   [{state}]"]
        for name in ("stderr", "stdout"):
            lines += [f"  {name[3:]}| {line}" for line in self.output[name][-40:]]
        return "\n".join(lines)


class Site:
    """A runtime directory and the commands that share it; a context manager."""

    def __init__(self, build=None):
        self.build = pathlib.Path(build or build_folder())
        self.jaunt = self.build / "cli" / "jaunt"
        self.directory = tempfile.mkdtemp(prefix="jaunt-test-")
        self.environment = {
            key: value for key, value in os.environ.items()
            if key not in ("JAUNT_INJECT", "NOTIFY_SOCKET")}
        self.environment["JAUNT_RUNTIME_DIR"] = self.directory
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for process in self.processes:
            process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, *arguments, environment=None, program=None):
        process = Process(self, [program or self.jaunt, *arguments], environment)
        self.processes.append(process)
        return process

    def run(self, *arguments, seconds=30, program=None):
        """A command to its end. (status, Process)"""
        process = self.start(*arguments, program=program)
        return process.wait(seconds), process

    # --- The commands ---------------------------------------------------------------------------

    def vm(self, name, *options, environment=None):
        process = self.start("vm", "run", name, "--json", *options, environment=environment)
        process.line(r"ready: ")
        return process

    def receive(self, name, *options, host="127.0.0.1", environment=None):
        """Listens on a port that the kernel chose; .peer is where."""
        process = self.start("receive", f"tcp:{host}:0", "--as", name, "--json", *options,
                             environment=environment)
        process.peer = process.line(r"ready: listening on (\S+) as").group(1)
        return process

    def migrate(self, name, peer, *options):
        """Does not wait for its end."""
        return self.start("migrate", name, peer, "--json", *options)

    def proxy(self, peer, *options):
        """Everything through a proxy that can be killed; .peer is where to connect."""
        host, port = peer.removeprefix("tcp:").rsplit(":", 1)
        process = self.start("--listen", "127.0.0.1:0", "--to", f"{host}:{port}",
                             "--die-with-parent", *options,
                             program=self.build / "bench" / "jaunt-proxy")
        with process.changed:
            process.changed.wait_for(lambda: process.output["stdout"], 20 * PATIENCE)
        port = re.search(r"(\d+)\s*$", process.output["stdout"][0]).group(1)
        process.peer = f"tcp:127.0.0.1:{port}"
        return process

    def status(self, name):
        """What `jaunt status NAME --json` says of it; None if there is no such VM."""
        result = subprocess.run([self.jaunt, "status", name, "--json"], env=self.environment,
                                capture_output=True, text=True, timeout=20 * PATIENCE, check=False)
        if result.returncode != DONE or not result.stdout.strip():
            return None
        vms = json.loads(result.stdout.strip().splitlines()[-1]).get("vms", [])
        return vms[0] if vms else None

    def until(self, name, predicate, what, seconds=20):
        """Asks for the status again and again until the predicate holds; returns that status."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            status = self.status(name)
            if status is not None and predicate(status):
                return status
            if time.monotonic() > deadline:
                raise Failure(f"{name}: {what}: did not come true; its status:\n"
                              f"{json.dumps(status)}\n{self.transcript()}")
            time.sleep(0.01)

    def until_working(self, name, seconds=30):
        """The guest, which has filled its working set when `vm run` says ready, has begun to work."""
        def works(status):
            return status["workload"].startswith("idle") or (
                status["guest"] and status["guest"]["operations"] > 0)
        return self.until(name, works, "the guest works", seconds)

    def lacked_huge_pages(self):
        """Whether a command ended for that: then the host's pool was shrunk meanwhile."""
        return "no-hugepages" in self.transcript()

    def transcript(self):
        return "\n".join(process.transcript() for process in self.processes)


class Case(unittest.TestCase):
    """Has a site of its own; where it fails, all that the commands said is told."""

    def setUp(self):
        self.site = Site()
        self.addCleanup(self.site.__exit__, None, None, None)

    def run(self, result=None):
        def told(method):
            def wrapped():
                try:
                    method()
                except AssertionError as failure:
                    raise AssertionError(f"{failure}\n{self.site.transcript()}") from failure
            return wrapped
        setattr(self, self._testMethodName, told(getattr(self, self._testMethodName)))
        return super().run(result)


def memory_file(pid):
    """stat() of the memory file of the VM that this process holds."""
    folder = pathlib.Path(f"/proc/{pid}/fd")
    for entry in folder.iterdir():
        try:
            if "jaunt-ram" in os.readlink(entry):
                return os.stat(entry)
        except OSError:
            continue
    raise Failure(f"process {pid} has no memory file of a guest")


class HugePages:
    """So many huge pages of 2 MiB more than there are, while inside; .enough says whether they came.

    They are added and later subtracted, whatever is free: several of these at the same time then
    neither take from nor undo one another. Others may still shrink the pool meanwhile.
    """

    pool = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB")

    def __init__(self, pages):
        self.pages = pages
        self.added = 0
        self.enough = False

    def _change(self, by):
        import fcntl
        with open(self.pool / "nr_hugepages", "r+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = int(file.read())
            file.seek(0)
            file.write(str(max(0, before + by)))
            file.flush()
            file.seek(0)
            return int(file.read()) - before

    def __enter__(self):
        try:
            self.added = self._change(self.pages) if self.pages else 0
            self.enough = self.added >= self.pages
        except OSError:
            self.enough = not self.pages
        return self

    def __exit__(self, kind, error, trace):
        if self.added > 0:
            try:
                self._change(-self.added)
            except OSError as error:
                print(f"huge pages could not be given back: {error}", file=sys.stderr)


class _Result(unittest.TextTestResult):
    """Prints each test by what it says about behaviour."""

    def getDescription(self, test):
        method = getattr(test, "_testMethodName", None)
        return method.removeprefix("test_").replace("_", " ") if method else str(test)


class _Shared(unittest.TestLoader):
    """Loads each Nth test from the Kth, of JAUNT_TEST_SHARE=K/N: sanitizers are slow, and have a share
    each of what takes long."""

    FIRST, EACH = (int(number) for number in os.environ.get("JAUNT_TEST_SHARE", "0/1").split("/"))

    def getTestCaseNames(self, testCaseClass):
        return super().getTestCaseNames(testCaseClass)[self.FIRST::self.EACH]


def main():
    """Like unittest.main(), for meson: status 77 if every test was skipped."""
    program = unittest.main(
        exit=False, verbosity=2, testLoader=_Shared(),
        testRunner=unittest.TextTestRunner(verbosity=2, resultclass=_Result, stream=sys.stdout))
    result = program.result
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(77 if result.testsRun and len(result.skipped) == result.testsRun else 0)
