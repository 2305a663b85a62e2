# SPDX-License-Identifier: Apache-2.0
"""A side that is stopped, and not dead, and one that never says its last word."""

import select
import signal
import socket
import threading
import unittest

import cases
import migrating
import recovery
from migrating import DONE


class MuteProxy:
    """Between two sides; from mute() on, what the source says on the control channel, which is the
    first that it opens, is kept back. The page channels go on."""

    def __init__(self, peer):
        host, port = peer.removeprefix("tcp:").rsplit(":", 1)
        self.target = (host, int(port))
        self.muted = threading.Event()
        self.sockets = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.peer = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                source, _ = self.listener.accept()
            except OSError:
                return
            try:
                target = socket.create_connection(self.target)
            except OSError:
                source.close()  # as if nobody listened here either
                continue
            control = not self.sockets
            self.sockets += [source, target]
            threading.Thread(target=self._carry, args=(source, target, control),
                             daemon=True).start()

    def _carry(self, source, target, control):
        try:
            while True:
                ready, _, _ = select.select([source, target], [], [])
                for one in ready:
                    data = one.recv(1 << 18)
                    if control and one is source and self.muted.is_set():
                        if not data:
                            return  # nor is the target told that the source has gone
                        continue
                    if not data:
                        (target if one is source else source).shutdown(socket.SHUT_RDWR)
                        return
                    (target if one is source else source).sendall(data)
        except OSError:
            pass

    def mute(self):
        self.muted.set()

    def close(self):
        for one in [self.listener, *self.sockets]:
            one.close()


class Silence(unittest.TestCase):
    def setUp(self):
        self.site = migrating.Site()
        self.addCleanup(self.site.__exit__, None, None, None)
        self.case = cases.Case(working_set=60, memory_mib=128, rate=3000, check=0, push="off",
                               **recovery.backing())

    def begin(self, *options, through=None):
        """Handed over, with pages missing that only the push will bring."""
        source = self.site.vm("a", *self.case.guest_options())
        target = self.site.receive("b", *self.case.receive_options(), *options)
        self.site.until_working("a")
        proxy = through(target.peer) if through else None
        if proxy:
            self.addCleanup(proxy.close)
        command = self.site.migrate("a", proxy.peer if proxy else target.peer,
                                    *self.case.migrate_options(), *options)
        recovery.until_phase(self.site, "b", "post-copy")
        recovery.until_phase(self.site, "a", "post-copy")
        return source, target, command, proxy

    def check_completes(self, source, target, command):
        self.assertEqual(self.site.run("set", "b", "push=on")[0], DONE)
        self.assertEqual(command.wait(60), DONE)
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, self.case, target)

    def test_a_stopped_source_blocks_the_target_until_it_goes_on(self):
        source, target, command, _ = self.begin("--peer-timeout", "1s")
        for _ in range(2):
            source.signal(signal.SIGSTOP)
            status = recovery.until_phase(self.site, "b", "blocked")
            recovery.check_blocked(status, ["peer-silent"])
            self.assertEqual(status["migration"]["vm_is_at"], "blocked")
            # It neither ends nor forgets: the guest stands still where it lacks a page.
            recovery.check_blocked(recovery.until_still(self.site, "b"), ["peer-silent"])
            source.signal(signal.SIGCONT)
            status = recovery.until_phase(self.site, "b", "post-copy")
            self.assertEqual(status["migration"]["vm_is_at"], "target")
            recovery.until_works(self.site, "b")
        self.check_completes(source, target, command)

    def test_a_source_that_is_stopped_in_the_middle_of_a_push_goes_on_with_it(self):
        source, target, command, _ = self.begin("--peer-timeout", "1s")
        missing = self.site.status("b")["migration"]["pages"]["missing"]
        source.signal(signal.SIGSTOP)
        self.assertEqual(self.site.run("set", "b", "push=on")[0], DONE)
        status = recovery.until_phase(self.site, "b", "blocked")
        recovery.check_blocked(status, ["peer-silent"])
        self.assertGreater(missing, 0)
        source.signal(signal.SIGCONT)
        self.assertEqual(command.wait(60), DONE)
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, self.case, target)

    def test_a_target_with_all_pages_ends_by_a_signal_though_the_source_says_nothing_more(self):
        source, target, command, proxy = self.begin(through=MuteProxy)
        proxy.mute()
        self.assertEqual(self.site.run("set", "b", "push=on")[0], DONE)
        status = self.site.until(
            "b", lambda status: not status["migration"] or
            not status["migration"]["pages"]["missing"], "every page is there")
        self.assertTrue(status["migration"], "the source was heard")
        source.signal(signal.SIGSTOP) if source.running() else None
        report = cases.stop(target)
        cases.check_completed(report, "receive")
        cases.check_guest(report["guest"], "receive")
        source.signal(signal.SIGCONT) if source.running() else None


class Streams(unittest.TestCase):
    def test_sixteen_streams_bring_every_page_within_the_bound_on_memory(self):
        with migrating.Site() as site:
            case = cases.Case(memory_mib=256, streams=16, **recovery.backing())
            source = site.vm("a", *case.guest_options())
            target = site.receive("b", *case.receive_options())
            site.until_working("a")
            command = site.migrate("a", target.peer, *case.migrate_options())
            self.assertEqual(command.wait(60), DONE)
            self.assertEqual(source.wait(), DONE)
            bound = (32 << 20) + case.memory_mib * (1 << 20) // 5000
            for side, report in (("source", command.json()),
                                 ("target", cases.finish(site, case, target))):
                self.assertGreater(report["engine_bytes"], 0, side)
                self.assertLessEqual(report["engine_bytes"], bound, side)


if __name__ == "__main__":
    migrating.main()
