# SPDX-License-Identifier: Apache-2.0
"""A side or the link dies when the VM has been handed over and pages are still missing."""

import signal
import unittest

import cases
import migrating
import recovery
from migrating import DONE, FAILED, INCOMPLETE


def missing_pages():
    """A migration that leaves pages missing for as long as nobody turns the push on: the guest asks
    for a few thousand a second at most."""
    return cases.Case(workload="random", working_set=60, memory_mib=128, rate=3000, check=0,
                      push="off", **recovery.backing())


class AfterCommit(unittest.TestCase):
    def setUp(self):
        self.site = migrating.Site()
        self.addCleanup(self.site.__exit__, None, None, None)

    def begin(self, through_proxy=False):
        parts = recovery.begin(self.site, missing_pages(), through_proxy=through_proxy)
        recovery.until_phase(self.site, "b", "post-copy")
        recovery.until_phase(self.site, "a", "post-copy")
        # The source has heard that it runs there.
        self.site.until("a", lambda status: status["migration"]["vm_is_at"] == "target",
                        "the source knows that the VM runs at the target")
        return parts

    def check_target_is_blocked(self, target):
        """It survives, says what is missing and why, and its guest waits and sees no zeros."""
        recovery.until_phase(self.site, "b", "blocked")
        status = recovery.until_still(self.site, "b")
        recovery.check_blocked(status, ["link-lost"])
        missing = status["migration"]["pages"]["missing"]
        self.assertIn(f"{missing} pages are missing", status["migration"]["error"])
        self.assertEqual(status["state"], "blocked")
        code, shown = self.site.run("status", "b")
        self.assertEqual(code, DONE)
        words = "\n".join(shown.output["stdout"])
        self.assertRegex(words, r"(?i)blocked")
        self.assertIn(str(missing), words.replace(",", ""))
        target.line(rf"b: blocked.*{missing} pages missing: link-lost")
        recovery.refuses_signals(self.site, target, "b")
        code, answer = self.site.run("resume", "b", "--peer-fenced")
        self.assertEqual(code, FAILED)
        self.assertTrue(any("already resumed here" in line for line in answer.output["stderr"]))
        again = self.site.status("b")
        self.assertEqual(again["migration"]["pages"]["missing"], missing)
        self.assertEqual(again["guest"]["operations"], status["guest"]["operations"])
        self.assertEqual(again["guest"]["memory_errors"], 0)

    def check_target_abandoned(self, target):
        report = recovery.abandon_target(self.site, target)
        self.assertEqual((report["result"], report["exit_code"], report["reason"]),
                         ("incomplete", INCOMPLETE, "abandoned"))
        self.assertGreater(report["pages"]["missing"], 0)

    def test_a_killed_source_blocks_the_target_which_reads_no_zeros(self):
        source, target, command, _ = self.begin()
        source.signal(signal.SIGKILL)
        self.assertEqual(source.wait(), -signal.SIGKILL)
        self.assertEqual(command.wait(), INCOMPLETE)
        report = command.json()
        self.assertEqual((report["result"], report["vm_is_at"]), ("incomplete", "blocked"))
        self.check_target_is_blocked(target)
        self.check_target_abandoned(target)

    def test_a_killed_target_blocks_the_source_which_runs_it_again_once_fenced(self):
        source, target, command, _ = self.begin()
        target.signal(signal.SIGKILL)
        self.assertEqual(target.wait(), -signal.SIGKILL)
        recovery.until_phase(self.site, "a", "blocked")
        recovery.refuses_signals(self.site, source, "a")
        recovery.resume_at_source(self.site, source, command)
        recovery.moves_now(self.site, missing_pages(), source)

    def test_a_cut_link_blocks_both_sides_and_the_source_runs_it_again_once_fenced(self):
        source, target, command, proxy = self.begin(through_proxy=True)
        proxy.kill()
        status = recovery.until_phase(self.site, "a", "blocked")
        self.assertEqual(status["migration"]["vm_is_at"], "blocked")
        self.assertIn("--peer-fenced", status["migration"]["error"])
        self.assertGreater(status["migration"]["pages"]["missing"], 0)
        self.check_target_is_blocked(target)
        recovery.refuses_signals(self.site, source, "a")
        self.assertTrue(command.running())
        # The operator fences the target, and says so.
        target.kill()
        recovery.resume_at_source(self.site, source, command)
        self.assertEqual(command.json()["reason"], "peer-fenced")
        report = cases.stop(source)
        self.assertEqual(report["exit_code"], DONE)
        cases.check_guest(report["guest"], "vm run", worked=False)

    def test_a_source_that_is_given_up_says_incomplete(self):
        source, target, command, proxy = self.begin(through_proxy=True)
        proxy.kill()
        recovery.until_phase(self.site, "a", "blocked")
        self.assertEqual(self.site.run("cancel", "a", "--abandon")[0], DONE)
        self.assertEqual(source.wait(), INCOMPLETE)
        self.assertEqual(command.wait(), INCOMPLETE)
        report = command.json()
        self.assertEqual((report["result"], report["vm_is_at"], report["reason"]),
                         ("incomplete", "blocked", "abandoned"))
        recovery.until_phase(self.site, "b", "blocked")
        self.assertTrue(target.running())

    def test_migrate_may_be_killed_and_the_migration_goes_on(self):
        source, target, command, _ = self.begin()
        command.kill()
        self.assertEqual(self.site.run("set", "b", "push=on")[0], DONE)
        self.assertEqual(source.wait(60), DONE)
        cases.finish(self.site, missing_pages(), target)


if __name__ == "__main__":
    migrating.main()
