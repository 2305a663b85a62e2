# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line share: processes that are always ended, waiting for events.

Every test has a runtime directory of its own. Nothing waits by sleeping for a time: it waits for a
line on stderr, for the end of a process, or asks for the status until it says what is waited for.
From the environment: JAUNT, the command; JAUNT_HAS_INJECT=1, it was built with fault injection;
JAUNT_TEST_THREAD_BACKED=1, run every VM without KVM; JAUNT_TEST_PATIENCE, by which the time until an
event counts as missed is multiplied.
"""

import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

JAUNT = os.environ.get("JAUNT", "jaunt")
# Seconds until an event that does not come fails the test; never a promise about speed.
PATIENCE = 60.0 * float(os.environ.get("JAUNT_TEST_PATIENCE", "1"))


def usable_kvm():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
        return True
    except OSError:
        return False


THREAD_BACKED = os.environ.get("JAUNT_TEST_THREAD_BACKED") == "1" or not usable_kvm()
BACKING = ["--thread-backed"] if THREAD_BACKED else []


class Process:
    """A jaunt process whose lines on stderr can be waited for."""

    def __init__(self, arguments, env, **how):
        self.arguments = arguments
        self.process = subprocess.Popen(
            [JAUNT, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True, **how)
        self.lines = []
        self.news = queue.Queue()
        self.output = ""
        self.readers = [threading.Thread(target=self.read_errors, daemon=True),
                        threading.Thread(target=self.read_output, daemon=True)]
        for reader in self.readers:
            reader.start()

    def read_errors(self):
        for line in self.process.stderr:
            self.news.put(line.rstrip("\n"))
        self.news.put(None)

    def read_output(self):
        self.output = self.process.stdout.read()

    def wait_line(self, pattern):
        """The first line on stderr, not looked at yet, that matches."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                line = self.news.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"{self.arguments}: no line like {pattern!r} in {self.lines}")
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def wait(self):
        """The exit code; everything it said is then in `lines` and `output`."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.arguments} does not end; it said {self.lines}") from None
        for reader in self.readers:
            reader.join(PATIENCE)
        while not self.news.empty():
            line = self.news.get()
            if line is not None:
                self.lines.append(line)
        return code

    def signal(self, number):
        self.process.send_signal(number)

    def alive(self):
        return self.process.poll() is None

    def json(self):
        """The last line of stdout."""
        return json.loads(self.output.rstrip("\n").split("\n")[-1])

    def errors(self):
        return "\n".join(self.lines)

    def kill(self):
        if self.alive():
            self.process.kill()
        self.process.wait(PATIENCE)
        for reader in self.readers:
            reader.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="jaunt-test-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.runtime = os.path.join(self.directory, "run")
        self.env = dict(os.environ, JAUNT_RUNTIME_DIR=self.runtime)
        self.env.pop("NOTIFY_SOCKET", None)
        self.env.pop("JAUNT_INJECT", None)
        self.processes = []
        self.addCleanup(self.end_processes)

    def end_processes(self):
        for process in reversed(self.processes):
            process.kill()

    def start(self, *arguments, env=None, **how):
        process = Process(arguments, {**self.env, **(env or {})}, **how)
        self.processes.append(process)
        return process

    def run_jaunt(self, *arguments, **how):
        process = self.start(*arguments, **how)
        process.code = process.wait()
        return process

    def start_vm(self, name="web", *arguments, env=None):
        """A small VM at work on its memory."""
        process = self.start("vm", "run", name, "--memory", "64M", "--workload",
                             "random:ws=16M,rate=20000", *BACKING, *arguments, env=env)
        process.wait_line("ready:")
        return process

    def start_receive(self, peer="tcp:127.0.0.1:0", *arguments, env=None, **how):
        """A waiting receive; its address is in `.peer`, the name it answers to in `.name`."""
        process = self.start("receive", peer, *BACKING, *arguments, env=env, **how)
        line = process.wait_line("ready: listening on")
        process.peer = re.search(r"listening on (\S+)", line).group(1)
        process.name = re.search(r" as (\S+)", line).group(1)
        return process

    def status(self, name):
        answer = self.run_jaunt("status", name, "--json")
        self.assertEqual(answer.code, 0, answer.errors())
        return answer.json()["vms"][0]

    def wait_status(self, name, accepted):
        """Asks until `accepted(status)`."""
        end = time.monotonic() + PATIENCE
        while True:
            status = self.status(name)
            if accepted(status):
                return status
            if time.monotonic() > end:
                self.fail(f"{name} never came to the state waited for: {status}")

    def assert_runs(self, name):
        """It makes progress, and its memory is as it should be."""
        before = self.status(name)["guest"]["operations"]
        status = self.wait_status(name, lambda now: now["guest"]["operations"] > before)
        self.assertEqual(status["guest"]["memory_errors"], 0)

    def stop(self, process):
        """Ends a VM, which finds its memory in order."""
        process.signal(signal.SIGTERM)
        code = process.wait()
        self.assertEqual(code, 0, process.errors())


def closed_port():
    """A port of loopback on which nobody listens, and the socket that keeps it so."""
    keeper = socket.socket()
    keeper.bind(("127.0.0.1", 0))
    return keeper, keeper.getsockname()[1]


needs_inject = unittest.skipUnless(os.environ.get("JAUNT_HAS_INJECT") == "1",
                                   "this build has no fault injection (-Dinject=true)")
needs_kvm = unittest.skipIf(THREAD_BACKED, "needs /dev/kvm")


def main():
    """Runs the tests of the calling file; says why one was skipped, and ends with 77 if all were."""
    if shutil.which(JAUNT) is None:
        print(f"skip: there is no {JAUNT}")
        sys.exit(77)
    if os.geteuid() != 0:
        print("skip: needs root, for /dev/kvm and userfaultfd")
        sys.exit(77)
    result = unittest.main(exit=False, verbosity=2).result
    for test, reason in result.skipped:
        print(f"skipped: {test.id()}: {reason}")
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(77 if result.testsRun and len(result.skipped) == result.testsRun else 0)
