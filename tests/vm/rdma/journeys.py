# SPDX-License-Identifier: Apache-2.0
"""Whole migrations as they are tried on one nested machine and on two alike.

A class that takes these in has `self.site(scheme)`: VMs a and b in the machines where they belong.
Every guest is checked by itself, every page is verified where it says so, and over RDMA the device
must have READ pages: else the test would show nothing that TCP does not.
"""

import re
import signal

import cases
import lab
import migrating
import recovery
from migrating import DONE, INCOMPLETE


class Journeys:
    """Those that are worth trying on both."""

    def check_read(self, scheme, report):
        if scheme == "rdma":
            self.assertGreater(report["pages"]["read"], 0, "no page came by READ")

    def migrate(self, scheme, **settings):
        with self.site(scheme) as site:
            self.check_read(scheme, cases.run(site, lab.small(**settings)))

    def hand_over(self, site, case, *options, receive=()):
        """(source, target, migrate) of a migration that has reached the target and lacks pages."""
        source = site.vm("a", *case.guest_options())
        target = site.receive("b", *case.receive_options(), *receive)
        site.until_working("a")
        command = site.migrate("a", target.peer, *case.migrate_options(), *options)
        for name in "ba":
            site.until(name, lambda status: not command.running() or
                       recovery.phase(status) == "post-copy", "it is handed over")
        self.assertTrue(command.running(), f"it ended early\n{site.transcript()}")
        return source, target, command

    def until_pages(self, site, field, count):
        return site.until("b", lambda status: status["migration"] and
                          status["migration"]["pages"][field] >= count, f"{count} pages {field}")

    def finish(self, site, case, source, target, command):
        """As if nothing had happened: complete, and right. The target's report."""
        self.assertEqual(command.wait(60), DONE, command.transcript())
        cases.check_completed(command.json(), "migrate", case.verify)
        self.assertEqual(source.wait(), DONE)
        report = cases.finish(site, case, target)
        self.check_read(site.scheme, report)
        return report

    # --- Nothing goes wrong -------------------------------------------------------------------------

    def check_requests(self, machine, trace):
        """Each page that a fault READ cost one work request and one completion, and no message."""
        text = machine.run(f"grep '\"reads\"' {trace}")
        found = re.findall(r"(\d+) pages, (\d+) work requests, (\d+) completions; (\d+) other", text)
        self.assertEqual(len(found), 1, text)
        pages, requests, completions, others = map(int, found[0])
        self.assertGreater(pages, 1000)
        self.assertEqual((requests, completions), (pages, pages))
        # Those that were fetched by message, the channel's first one, and looks after a silent peer.
        fetched = int(machine.run(f"grep -c '\"fetched\"' {trace}"))
        self.assertLessEqual(others, fetched - pages + 8)

    def test_rdma_demand_only_verified(self):
        case = lab.small(verify=True, push="off", workload="sweep")
        with self.site("rdma") as site:
            trace = f"{site.directory}/trace"
            source, target, command = self.hand_over(site, case, receive=("--trace", trace))
            before = self.until_pages(site, "demanded", 1500)["migration"]["pages"]
            self.assertLess(before["pushed"], 64, "what the switch itself brings along is little")
            self.assertGreater(before["read"], 1000)
            self.assertEqual(site.run("set", "b", "push=on")[0], DONE)
            self.finish(site, case, source, target, command)
            self.check_requests(site.machine("b"), trace)

    # --- One side is lost ---------------------------------------------------------------------------

    # So large that READs are under way for seconds once the push is on, and so idle that until then
    # there is something left to push. Not slowed down by a limit of bandwidth: with one, the source
    # sends, and nothing is READ.
    LARGE = {"memory_mib": 96, "working_set": 60, "streams": 2, "rate": 300, "push": "off"}

    def begin_reading(self, site):
        """From when it returns streams READ. Do at once what is to be done meanwhile: one emulated
        processor that is busy with READs answers nothing else quickly."""
        self.assertEqual(site.run("set", "b", "push=on")[0], DONE)

    def check_target_is_blocked(self, site, target, reasons=("link-lost",)):
        """The guest waits where it needs a page, reads nothing wrong, and `jaunt status` says so."""
        recovery.until_phase(site, "b", "blocked")
        status = recovery.until_still(site, "b")
        recovery.check_blocked(status, list(reasons))
        missing = status["migration"]["pages"]["missing"]
        code, shown = site.run("status", "b")
        self.assertEqual(code, DONE)
        words = "\n".join(shown.output["stdout"])
        self.assertRegex(words, r"(?i)blocked")
        self.assertIn(f"{missing} pages are missing", words)
        again = site.status("b")
        self.assertEqual(again["migration"]["pages"]["missing"], missing)
        self.assertEqual(again["guest"]["operations"], status["guest"]["operations"])
        self.assertEqual(again["guest"]["memory_errors"], 0)

    def check_target_ends(self, site, target):
        report = recovery.abandon_target(site, target)
        self.assertEqual((report["result"], report["exit_code"], report["reason"]),
                         ("incomplete", INCOMPLETE, "abandoned"))
        self.assertGreater(report["pages"]["missing"], 0)
        # READs of the streams, not only of faults.
        self.assertGreater(report["pages"]["read"], report["pages"]["demanded"])

    def test_rdma_a_source_killed_during_reads_blocks_the_guest(self):
        case = lab.small(**self.LARGE)
        with self.site("rdma") as site:
            source, target, command = self.hand_over(site, case)
            self.begin_reading(site)
            source.signal(signal.SIGKILL)
            self.assertEqual(source.wait(), -signal.SIGKILL)
            self.assertEqual(command.wait(), INCOMPLETE)
            self.check_target_is_blocked(site, target)
            self.check_target_ends(site, target)

    def test_rdma_a_target_killed_during_reads_leaves_all_at_the_source(self):
        case = lab.small(**self.LARGE)
        with self.site("rdma") as site:
            source, target, command = self.hand_over(site, case)
            self.begin_reading(site)
            target.signal(signal.SIGKILL)
            self.assertEqual(target.wait(), -signal.SIGKILL)
            recovery.resume_at_source(site, source, command)
            report = cases.stop(source)
            self.assertEqual(report["exit_code"], DONE)
            cases.check_guest(report["guest"], "vm run", worked=False)

    # --- The link goes away -------------------------------------------------------------------------

    IMPATIENT = ("--peer-timeout", "2s")

    def lose_link(self, site, case):
        """(source, target, migrate) of a migration that is blocked at both sides, in the middle of
        READs. The link stays away until the caller's set_link(True)."""
        source, target, command = self.hand_over(site, case, *self.IMPATIENT, receive=self.IMPATIENT)
        self.begin_reading(site)
        self.set_link(False)
        recovery.until_phase(site, "b", "blocked")
        recovery.until_phase(site, "a", "blocked")
        self.check_target_is_blocked(site, target, ("link-lost", "peer-silent"))
        return source, target, command
