# SPDX-License-Identifier: Apache-2.0
"""The link is lost when the VM has been handed over, or nearly, and is found again."""

import os
import signal
import socket
import time
import unittest

import cases
import interrupted
import migrating
import recovery
from migrating import CANCELLED, DONE, FAILED


def reconnections(status):
    return (status["migration"] or {}).get("reconnections", 0)


# Control with a sequence and Complete, of which nothing is missing: length, then the message.
COMPLETE = b"\x07\0\0\0" + b"\x08\x01" + b"\xc2\x01\x02" + b"\x0a\0"
PREAMBLE_BYTES = 96


def accept(listener):
    """The next connection that brings all of what a connection begins with, and that."""
    while True:
        connection = listener.accept()[0]
        connection.settimeout(20)
        preamble = connection.recv(PREAMBLE_BYTES, socket.MSG_WAITALL)
        if len(preamble) == PREAMBLE_BYTES:
            return connection, preamble
        connection.close()


def listen(address):
    """Where a process listened that was killed: its rings, and the listener with them, go after it."""
    for _ in range(200):
        try:
            return socket.create_server(address)
        except OSError:
            time.sleep(0.05)
    return socket.create_server(address)


class Rejoin(unittest.TestCase):
    def setUp(self):
        self.site = migrating.Site()
        self.addCleanup(self.site.__exit__, None, None, None)

    def begin(self, case):
        """Handed over through a proxy, with pages missing that only the push will bring."""
        source, target, command, proxy = recovery.begin(self.site, case, through_proxy=True)
        recovery.until_phase(self.site, "b", "post-copy")
        self.site.until("a", lambda status: status["migration"]["vm_is_at"] == "target",
                        "the source knows that the VM runs at the target")
        return source, target, command, proxy

    def until_back(self, count):
        """Both sides have found each other again, so many times in all."""
        for name in "ab":
            self.site.until(name, lambda status: reconnections(status) >= count and
                            recovery.phase(status) == "post-copy", f"{name} is back", 30)

    def complete(self, case, source, target, command, at_least):
        self.assertEqual(self.site.run("set", "b", "push=on")[0], DONE)
        self.assertEqual(command.wait(60), DONE)
        self.assertEqual(source.wait(), DONE)
        moved = command.json()
        cases.check_completed(moved, "migrate", case.verify)
        self.assertGreaterEqual(moved["reconnections"], at_least)
        report = cases.finish(self.site, case, target)
        self.assertGreaterEqual(report["reconnections"], at_least)

    def check_cut(self, times=1, **settings):
        case = cases.Case(**{"workload": "random", "working_set": 60, "memory_mib": 128,
                             "rate": 3000, "check": 16, "push": "later", **recovery.backing(),
                             **settings})
        source, target, command, proxy = self.begin(case)
        for number in range(1, times + 1):
            proxy.signal(signal.SIGUSR1)
            self.until_back(number)
            recovery.until_works(self.site, "b")
        self.complete(case, source, target, command, times)

    def test_a_link_that_is_cut_is_found_again_and_the_guest_goes_on(self):
        self.check_cut(times=3)

    def test_with_several_fault_threads_and_streams(self):
        self.check_cut(fault_threads=2, streams=4, vcpus=2, memory_mib=256)

    def test_with_digests(self):
        self.check_cut(verify=True, streams=2)

    # A guest that writes so much that a lot is stale at the switch, and comes by again much later.
    STALE = {"mode": "hybrid", "workload": "sweep", "rate": 0, "memory_mib": 512, "working_set": 90}

    def test_with_stale_pages_outstanding(self):
        self.check_cut(**self.STALE)

    def test_with_stale_pages_outstanding_and_digests(self):
        self.check_cut(verify=True, **self.STALE)

    def test_cuts_in_the_middle_of_a_push(self):
        case = cases.Case(workload="sweep", working_set=90, memory_mib=256, streams=2, check=16,
                          push="later", **recovery.backing())
        source, target, command, proxy = self.begin(case)
        # Slow enough to be cut several times.
        self.assertEqual(self.site.run("set", "a", "bandwidth=60MB")[0], DONE)
        self.assertEqual(self.site.run("set", "b", "push=on")[0], DONE)
        for number in range(1, 4):
            missing = self.site.status("b")["migration"]["pages"]["missing"]
            self.site.until("b", lambda status: status["migration"]["pages"]["missing"] < missing,
                            "pages come")
            proxy.signal(signal.SIGUSR1)
            self.until_back(number)
        self.complete(case, source, target, command, 3)

    def test_a_wish_that_comes_while_the_link_is_away_is_kept(self):
        case = cases.Case(workload="random", working_set=60, memory_mib=128, rate=3000, check=16,
                          push="later", **recovery.backing())
        source, target, command, proxy = self.begin(case)
        proxy.signal(signal.SIGSTOP)
        self.assertEqual(self.site.run("set", "a", "push=on")[0], DONE)
        proxy.signal(signal.SIGUSR1)
        proxy.signal(signal.SIGCONT)
        self.assertEqual(command.wait(60), DONE)
        cases.check_completed(command.json(), "migrate", case.verify)
        self.assertGreaterEqual(command.json()["reconnections"], 1)
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, case, target)

    def test_strangers_are_refused_and_harm_nothing(self):
        case = cases.Case(workload="random", working_set=60, memory_mib=128, rate=3000, check=16,
                          push="later", **recovery.backing())
        source, target, command, proxy = self.begin(case)
        # Another source, at the target that is taken.
        other = self.site.vm("x", *case.guest_options())
        self.site.until_working("x")
        turned = self.site.migrate("x", target.peer)
        self.assertEqual(turned.wait(), FAILED)
        self.assertEqual(turned.json()["reason"], "busy")
        self.assertTrue(other.running())
        # Away: the same, and somebody who speaks another protocol.
        proxy.signal(signal.SIGSTOP)
        proxy.signal(signal.SIGUSR1)
        host, port = target.peer.removeprefix("tcp:").rsplit(":", 1)
        with socket.create_connection((host, int(port)), 5) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n" + bytes(200))
            turned = self.site.migrate("x", target.peer)
            self.assertEqual(turned.wait(), FAILED)
            self.assertEqual(turned.json()["reason"], "busy")
        proxy.signal(signal.SIGCONT)
        self.until_back(1)
        self.complete(case, source, target, command, 1)

    def test_a_new_process_at_the_address_has_no_page_map_and_is_refused(self):
        case = cases.Case(workload="random", working_set=60, memory_mib=128, rate=3000, check=16,
                          push="later", **recovery.backing())
        source, target, command, _ = self.begin(case)
        target.signal(signal.SIGKILL)
        target.wait()
        address = target.peer
        recovery.until_phase(self.site, "a", "blocked")
        fresh = self.site.start("receive", address, "--as", "c", "--json",
                                *case.receive_options())
        fresh.line(r"ready: listening")
        self.site.until("a", lambda status: "has not got the VM" in status["migration"]["error"],
                        "the source is told", 40)
        self.assertTrue(fresh.running())
        self.assertEqual(self.site.status("a")["migration"]["phase"], "blocked")
        recovery.resume_at_source(self.site, source, command)
        self.assertEqual(self.site.run("cancel", "c")[0], DONE)
        self.assertEqual(fresh.wait(), CANCELLED)


    def test_what_somebody_else_says_at_the_address_counts_for_nothing(self):
        case = cases.Case(workload="random", working_set=60, memory_mib=128, rate=3000, check=16,
                          push="later", **recovery.backing())
        # What begins a connection of no session.
        self.site.vm("x", *case.guest_options())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            turned = self.site.migrate("x", f"tcp:127.0.0.1:{listener.getsockname()[1]}")
            listener.settimeout(20)
            connection, nobody = accept(listener)
            connection.close()
            self.assertEqual(turned.wait(), FAILED)
        source, target, command, _ = self.begin(case)
        target.kill()
        host, port = target.peer.removeprefix("tcp:").rsplit(":", 1)
        with listen((host, int(port))) as impostor:
            impostor.settimeout(20)
            for _ in range(2):
                connection, _ = accept(impostor)
                with connection:
                    connection.sendall(nobody + COMPLETE)
                    while connection.recv(4096):
                        pass
            self.site.until("a", lambda status:
                            "is not the target" in status["migration"]["error"],
                            "the source says who is there", 20)
        self.assertEqual(self.site.status("a")["migration"]["phase"], "blocked")
        recovery.resume_at_source(self.site, source, command)


class InDoubt(interrupted.Interrupted):
    def test_a_source_that_had_committed_says_so_when_it_comes_back(self):
        case = interrupted.busy()
        source, target, command, _ = self.begin(case, "source.link.cut.commit")
        self.assertEqual(command.wait(60), DONE)
        report = command.json()
        self.assertEqual((report["vm_is_at"], report["reconnections"]), ("target", 1))
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, case, target)

    def test_a_source_that_had_aborted_says_so_when_it_comes_back(self):
        case = interrupted.busy()
        source, target, command, _ = self.begin(case, target="target.link.cut.loaded")
        self.assertEqual(command.wait(), FAILED)
        self.assertEqual(command.json()["vm_is_at"], "source")
        self.assertEqual(target.wait(), FAILED)
        self.assertEqual(target.json()["vm_is_at"], "source")
        recovery.runs_at_source(self.site, source)
        recovery.moves_now(self.site, case, source)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    migrating.main()
