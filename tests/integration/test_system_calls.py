# SPDX-License-Identifier: Apache-2.0
"""What a demand fault costs the target's fault thread in system calls, as strace sees it."""

import pathlib
import re
import shutil
import statistics
import unittest

import cases
import migrating
import recovery

MOST = 4  # for a lone fault, the idle wait before it not counted
UNTIL_COPY = 3  # of these, until the guest has its page
FAULTS = 50


def thread_of(pid, name):
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            return int(task.name)
    raise migrating.Failure(f"process {pid} has no thread {name}")


def faults_in(lines):
    """The system calls of each fault that came alone: from the read() that found just one event to
    the last call before the thread waits for the next."""
    faults, current = [], None
    for line in lines:
        match = re.match(r"(\w+)\((.*)", line)
        if not match:
            continue
        name, rest = match.groups()
        if name == "read" and re.search(r"= 32$", rest.strip()):  # bytes: one event
            if current:
                faults.append(current)
            current = []
        elif name == "read" and "EAGAIN" not in rest:  # several events: not a lone fault
            if current:
                faults.append(current)
            current = None
        if current is not None:
            current.append("WAKE" if "UFFDIO_WAKE" in rest else
                           "COPY" if "UFFDIO_COPY" in rest else name)
    # The last call of each is the wait in which the next event came.
    return [calls[:-1] for calls in faults if "COPY" in calls and calls[-1] == "io_uring_enter"]


class SystemCalls(unittest.TestCase):
    def test_a_lone_fault_costs_the_fault_thread_at_most_four(self):
        strace = shutil.which("strace")
        if not strace:
            self.skipTest("strace is not installed")
        # One vCPU has at most one fault outstanding; no stream brings pages beside it.
        case = cases.Case(workload="random", working_set=80, rate=500, check=0, push="off",
                          **recovery.backing())
        with migrating.Site() as site:
            _, target, _, _ = recovery.begin(site, case)
            recovery.until_phase(site, "b", "post-copy")
            thread = thread_of(target.pid, "jaunt-fault-0")
            trace = pathlib.Path(site.directory) / "strace"
            tracer = site.start("-p", thread, "-o", trace, program=strace)
            try:
                tracer.line("attached")
            except migrating.Failure as failure:
                self.skipTest(f"strace cannot attach: {failure}")
            before = site.status("b")["migration"]["pages"]["demanded"]
            site.until("b", lambda status:
                       status["migration"]["pages"]["demanded"] > before + FAULTS,
                       "the guest faults", 60)
            tracer.signal(migrating.signal.SIGINT)
            tracer.wait()
            lines = trace.read_text().splitlines()
            faults = faults_in(lines)
            self.assertGreater(len(faults), FAULTS // 2, "\n".join(lines[:60]))
            counts = [len(calls) for calls in faults]
            print(f"\n  {len(faults)} lone faults: "
                  f"{ {count: counts.count(count) for count in sorted(set(counts))} } system calls;"
                  f" the last: {' '.join(faults[-1])}")
            self.assertLessEqual(statistics.median(counts), MOST)
            until_copy = [calls.index("COPY") + 1 for calls in faults]
            self.assertLessEqual(statistics.median(until_copy), UNTIL_COPY)


if __name__ == "__main__":
    migrating.main()
