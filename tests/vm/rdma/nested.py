# SPDX-License-Identifier: Apache-2.0
"""The commands of `jaunt` in nested machines, with the face of migrating.Site.

What the tests of the integration suite do with a Site of this host (cases.run, recovery) they do here
with one whose processes live in one nested machine, or in two that stand for two hosts.
"""

import json
import re
import shlex
import signal
import time

import migrating
from migrating import DONE

# Emulated without KVM: slower than this host by a factor of ten and more.
PATIENCE = 4.0 * migrating.PATIENCE
# Between one question and the next, each longer up to a limit: a question costs the emulated
# processor a good part of a second, which what is waited for then lacks.
POLL_S, POLL_MOST_S = 0.03, 0.5


def pauses():
    pause = POLL_S
    while True:
        yield pause
        pause = min(2 * pause, POLL_MOST_S)


class Process:
    """A command that stays, in a machine. Its lines are kept in files there."""

    def __init__(self, site, machine, arguments, environment=None):
        self.site, self.machine = site, machine
        self.changes = {key: str(value) for key, value in (environment or {}).items()}
        self.arguments = [str(argument) for argument in arguments]
        site.started += 1
        self.files = f"{site.directory}/{site.started}"
        self.status = None
        words = shlex.join(["env", *(f"{key}={value}" for key, value in
                                     {**site.environment, **self.changes}.items()),
                            *self.arguments])
        # Commands of a test rank above everything; what is tested does not.
        begin = f"echo $$ >{self.files}.pid; renice 0 -p $$ >/dev/null; exec {words}"
        machine.run(f"( sh -c {shlex.quote(begin)} >{self.files}.stdout 2>{self.files}.stderr; "
                    f"echo $? >{self.files}.part; mv {self.files}.part {self.files}.status ) "
                    "</dev/null >/dev/null 2>&1 &")
        self.pid = int(machine.run(f"until [ -s {self.files}.pid ]; do usleep 1000; done; "
                                   f"cat {self.files}.pid"))

    def _read(self):
        """What it has said and, if it has ended, how."""
        command = "; ".join(f"tail -c 60000 {self.files}.{name} 2>/dev/null; echo @@@"
                            for name in ("stdout", "stderr", "status"))
        stdout, stderr, status, _ = self.machine.quietly(command)[1].split("@@@")
        if status.strip():
            # As Python has it: negative for a signal.
            self.status = int(status) if int(status) < 128 else 128 - int(status)
        return {"stdout": stdout.splitlines(),
                "stderr": [line for line in stderr.splitlines() if line]}

    @property
    def output(self):
        return self._read()

    def running(self):
        if self.status is None:
            self._read()
        return self.status is None

    def line(self, pattern, seconds=20):
        """The first line of stderr that matches, once there is one."""
        deadline = time.monotonic() + seconds * PATIENCE
        expression = re.compile(pattern)
        for pause in pauses():
            for line in self._read()["stderr"]:
                match = expression.search(line)
                if match:
                    return match
            if self.status is not None or time.monotonic() > deadline:
                how = "not in time" if self.status is None else "it ended"
                raise migrating.Failure(f"no line like /{pattern}/ ({how})\n{self.transcript()}")
            time.sleep(pause)

    def wait(self, seconds=20):
        """Its exit status, negative for a signal."""
        if self.status is None:
            self.machine.try_(f"until [ -e {self.files}.status ]; do usleep 20000; done",
                              int(seconds * PATIENCE))
        if self.running():
            raise migrating.Failure(f"it does not end\n{self.transcript()}")
        return self.status

    def signal(self, number):
        self.machine.try_(f"kill -{int(number)} {self.pid}")

    def kill(self):
        if self.running():
            self.signal(signal.SIGKILL)
            self.wait()

    def json(self):
        """The object on the last line of stdout."""
        lines = self.output["stdout"]
        if not lines:
            raise migrating.Failure(f"nothing on stdout\n{self.transcript()}")
        return json.loads(lines[-1])

    def transcript(self):
        state = "running" if self.running() else f"ended with {self.status}"
        lines = [f"{self.machine.name}$ {shlex.join(self.arguments)}   [{state}]"]
        for name, said in self.output.items():
            lines += [f"  {name[3:]}| {line}" for line in said[-40:]]
        return "\n".join(lines)


class Site:
    """A runtime directory in each machine, and the commands that share it; a context manager.

    `machines` says in which machine a VM of a name is looked for: {"a": …, "b": …}.
    """

    number = 0
    still = 5  # of recovery: an answer takes a good part of a second

    def __init__(self, machines, scheme="tcp"):
        Site.number += 1
        self.machines, self.scheme = machines, scheme
        self.directory = f"/tmp/site-{Site.number}"
        self.environment = {"JAUNT_RUNTIME_DIR": f"{self.directory}/run"}
        self.started = 0
        self.processes = []
        for machine in set(machines.values()):
            machine.run(f"mkdir -p {self.directory}")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            for process in self.processes:
                process.kill()
            for machine in set(self.machines.values()):
                machine.run(f"rm -rf {self.directory}")
        except AssertionError:
            # The machine itself is broken; whatever went wrong first is what matters.
            if not kind:
                raise

    def machine(self, name):
        return self.machines.get(name) or next(iter(self.machines.values()))

    def start(self, name, *arguments, environment=None, program="jaunt"):
        """In the machine of the VM `name`."""
        process = Process(self, self.machine(name), [program, *arguments], environment)
        self.processes.append(process)
        return process

    def run(self, *arguments, seconds=30):
        """A command of `jaunt` about the VM that is its first argument, to its end."""
        process = self.start(arguments[1], *arguments)
        return process.wait(seconds), process

    # --- The commands -------------------------------------------------------------------------------

    def vm(self, name, *options, environment=None):
        process = self.start(name, "vm", "run", name, "--json", *options, environment=environment)
        process.line(r"ready: ", 60)
        return process

    def receive(self, name, *options, host=None, environment=None):
        """On a free port of the machine's own address, whatever `host` says; .peer is where."""
        process = self.start(
            name, "receive", f"{self.scheme}:{self.machine(name).address}:0", "--insecure", "--as",
            name, "--json", *options, environment=environment)
        process.peer = process.line(r"ready: listening on (\S+) as").group(1)
        return process

    def migrate(self, name, peer, *options):
        """Does not wait for its end."""
        return self.start(name, "migrate", name, peer, "--insecure", "--json", *options)

    def status(self, name):
        """What `jaunt status NAME --json` says of it; None if there is no such VM."""
        words = [f"{key}={value}" for key, value in self.environment.items()]
        code, text = self.machine(name).quietly(
            shlex.join(["env", *words, "jaunt", "status", name, "--json"]) + " 2>/dev/null")
        if code != DONE or not text.strip():
            return None
        vms = json.loads(text.strip().splitlines()[-1]).get("vms", [])
        return vms[0] if vms else None

    def until(self, name, predicate, what, seconds=20):
        """Asks for the status again and again until the predicate holds; returns that status."""
        deadline = time.monotonic() + seconds * PATIENCE
        for pause in pauses():
            status = self.status(name)
            if status is not None and predicate(status):
                return status
            if time.monotonic() > deadline:
                raise migrating.Failure(f"{name}: {what}: did not come true; its status:\n"
                                        f"{json.dumps(status)}\n{self.transcript()}")
            time.sleep(pause)

    def until_working(self, name, seconds=30):
        """The guest has begun to work."""
        def works(status):
            return status["workload"].startswith("idle") or (
                status["guest"] and status["guest"]["operations"] > 0)
        return self.until(name, works, "the guest works", seconds)

    def transcript(self):
        return "\n".join(process.transcript() for process in self.processes)
