# SPDX-License-Identifier: Apache-2.0
"""What fault injection breaks is found: by the guest's own check, and by --verify before the guest.

That no migration of the other tests shows an error means something only because of these.
"""

import cases
import migrating
import recovery
from interrupted import Interrupted, busy, slow
from migrating import DONE, FAILED, INCOMPLETE, UNKNOWN

# Some pages in the middle of a working set that is nearly all of memory: the guest looks at all of
# it in its last check. The first pages of a migration are the guest's program and tables.
SOME = "nth=3000,every=400,count=5"
CORRUPTIONS = {
    "flip": f"source.data.flip:{SOME},seed=3",
    "lose": f"source.data.lose:{SOME}",
    "tear": f"source.data.tear:{SOME}",
    # Only pages of which there is an older copy count, those that the guest wrote at the end; some
    # are its accounts, which no check covers.
    "stale": "source.data.stale:nth=1,every=2,count=80",
}
ALWAYS = {
    "flip": "source.data.flip:every=1",
    "lose": "source.data.lose:every=1",
    "tear": "source.data.tear:every=1",
    "stale": "source.data.stale:every=1",
}


class Corruption(Interrupted):
    def check_the_guest_notices(self, kind):
        _, target, command, _ = self.begin(busy(), CORRUPTIONS[kind])
        self.assertEqual(command.wait(60), DONE)
        report = cases.stop(target)
        self.assertEqual(report["result"], "completed")
        self.assertGreater(report["guest"]["memory_errors"], 0)
        self.assertEqual(report["guest"]["self_check"], "errors")
        self.assertTrue(report["guest"]["first_error"])
        self.assertEqual(report["exit_code"], FAILED)
        self.assertEqual(report["verified_pages"], 0)

    def check_verify_repairs(self, kind):
        # Of what may fire on the same page again when it is fetched again, once is enough.
        points = "source.data.stale:nth=20" if kind == "stale" else CORRUPTIONS[kind]
        _, target, command, _ = self.begin(busy(verify=True, streams=2), points)
        self.assertEqual(command.wait(60), DONE)
        self.assertGreater(command.json()["mismatched_pages"], 0)
        report = cases.stop(target)
        self.assertEqual(report["result"], "completed")
        self.assertGreater(report["mismatched_pages"], 0)
        self.assertGreaterEqual(report["verified_pages"], report["pages"]["total"])
        cases.check_pages(report, "receive")
        cases.check_guest(report["guest"], "receive", worked=False)

    def check_verify_blocks(self, kind):
        source, target, command, _ = self.begin(busy(verify=True), ALWAYS[kind])
        status = recovery.until_phase(self.site, "b", "blocked")
        recovery.check_blocked(status, ["verify"])
        self.assertGreater(status["migration"]["mismatched_pages"], 0)
        status = recovery.until_phase(self.site, "a", "blocked")
        self.assertEqual(status["migration"]["reason"], "verify")
        status = recovery.until_still(self.site, "b")
        recovery.check_blocked(status, ["verify"])
        recovery.refuses_signals(self.site, target, "b")
        # Fenced is a word of the operator's, and here it is plainly wrong.
        code, answer = self.site.run("resume", "a", "--peer-fenced")
        self.assertEqual(code, INCOMPLETE)
        self.assertTrue(any("the target is alive" in line for line in answer.output["stderr"]))
        recovery.until_still(self.site, "a")
        report = recovery.abandon_target(self.site, target)
        self.assertGreater(report["pages"]["missing"], 0)
        recovery.resume_at_source(self.site, source, command)
        # The source's memory was never touched: its guest finds nothing.
        report = cases.stop(source)
        cases.check_guest(report["guest"], "vm run", worked=False)

    def test_pages_sent_twice_do_no_harm(self):
        for verify in (False, True):
            with migrating.Site() as site:
                case = busy(verify=verify)
                report = cases.run(site, case, {
                    "JAUNT_INJECT": "source.data.twice:nth=50,every=500,count=10"})
                self.assertGreater(report["pages"]["duplicate"], 0)

    def test_answers_that_come_late_do_no_harm(self):
        cases.run(self.site, busy(), {
            "JAUNT_INJECT": "source.reply.delay:every=2,count=40,delay_us=3000"})


def add_corruption(kind):
    setattr(Corruption, f"test_without_verify_the_guest_itself_notices_{kind}",
            lambda self: self.check_the_guest_notices(kind))
    setattr(Corruption, f"test_with_verify_{kind}_is_noticed_and_fetched_again",
            lambda self: self.check_verify_repairs(kind))
    setattr(Corruption, f"test_with_verify_a_lasting_{kind}_blocks_and_shows_the_guest_nothing",
            lambda self: self.check_verify_blocks(kind))


for each in CORRUPTIONS:
    add_corruption(each)


class Channels(Interrupted):
    def test_page_channels_that_are_cut_are_replaced(self):
        """An urgent one is cut several times; with it go all of the session's."""
        case = slow()
        source, target, command, _ = self.begin(case, "source.channel.cut:nth=20,every=200,count=4")
        # Or it is over already: a guest that is quick, or who looks slow, leaves nothing to push.
        self.site.until("b", lambda status: not status["migration"] or
                        status["migration"]["reconnections"] >= 2, "channels were replaced")
        self.site.run("set", "b", "push=on")
        self.assertEqual(command.wait(60), DONE)
        self.assertGreaterEqual(command.json()["reconnections"], 2)
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, case, target)

    def test_answers_that_never_come_leave_the_page_to_the_stream(self):
        case = busy(push="off")
        source, target, command, _ = self.begin(case, "source.channel.drop:nth=20,every=1")
        status = recovery.until_still(self.site, "b")
        self.assertGreater(status["migration"]["pages"]["missing"], 0)
        self.assertEqual(status["guest"]["memory_errors"], 0)
        self.assertEqual(self.site.run("set", "a", "push=on")[0], DONE)
        self.assertEqual(command.wait(60), DONE)
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, case, target)

    def begin_with_commit_lost(self, case):
        """COMMIT is recorded and lost on its way, and there is no way to the target any more."""
        source, target, command, proxy = self.begin(
            case, "source.side.hold.before-commit:"
            f"delay_us={int(1000000 * migrating.PATIENCE)}", through_proxy=True)
        recovery.until_phase(self.site, "a", "switchover")
        self.site.until("b", lambda status: status["state"] != "waiting" and
                        recovery.phase(status) == "switchover", "the target is at the switchover")
        source.line("preparing to move")
        proxy.signal(migrating.signal.SIGSTOP)
        recovery.until_phase(self.site, "a", "post-copy", "blocked")
        proxy.kill()
        return source, target, command

    def test_a_link_lost_before_commit_is_heard_leaves_it_unknown_until_one_side_is_fenced(self):
        case = busy()
        source, target, command = self.begin_with_commit_lost(case)
        status = recovery.until_phase(self.site, "a", "blocked")
        self.assertEqual(status["migration"]["vm_is_at"], "unknown")
        status = recovery.until_phase(self.site, "b", "in-doubt")
        self.assertEqual(status["migration"]["vm_is_at"], "unknown")
        # Neither runs it.
        self.assertEqual(status["guest"]["operations_since_arrival"], 0)
        recovery.until_still(self.site, "a")
        source.signal(migrating.signal.SIGTERM)
        source.line("SIGTERM refused")
        self.assertEqual(self.site.run("cancel", "b", "--abandon")[0], DONE)
        target.wait()
        recovery.resume_at_source(self.site, source, command)
        recovery.moves_now(self.site, case, source)

    def test_giving_up_what_is_in_doubt_says_unknown(self):
        source, target, command = self.begin_with_commit_lost(busy())
        recovery.until_phase(self.site, "a", "blocked")
        self.assertEqual(self.site.run("cancel", "a", "--abandon")[0], DONE)
        self.assertEqual(source.wait(), UNKNOWN)
        self.assertEqual(command.wait(), UNKNOWN)
        report = command.json()
        self.assertEqual((report["result"], report["vm_is_at"]), ("unknown", "unknown"))
        self.assertTrue(target.running())


class Memory(Interrupted):
    def check_waits_for_memory(self, **settings):
        """For some seconds there is no room, and then there is; nobody does anything about it."""
        case = busy(**settings)
        _, target, command, _ = self.begin(case, target="target.memory.full:nth=40,count=200")
        status = recovery.until_phase(self.site, "b", "blocked")
        migration = status["migration"]
        self.assertEqual((migration["reason"], migration["vm_is_at"]), ("memory", "blocked"))
        self.assertIn("memory", migration["error"])
        self.assertGreater(migration["pages"]["missing"], 0)
        self.assertEqual(self.site.run("set", "b", "push=on")[0], DONE)
        self.assertEqual(command.wait(60), DONE)
        cases.finish(self.site, case, target)

    def test_without_memory_it_is_blocked_and_goes_on_by_itself_when_there_is_some(self):
        self.check_waits_for_memory(streams=4)

    def test_the_same_when_only_demand_brings_pages(self):
        self.check_waits_for_memory(push="off", working_set=50)


class Killed(Interrupted):
    def check_target_killed_before_commit(self, point):
        case = busy()
        source, target, command, _ = self.begin(case, target=f"target.side.kill.{point}")
        self.assertEqual(command.wait(), FAILED)
        report = command.json()
        self.assertEqual((report["result"], report["vm_is_at"]), ("failed", "source"))
        self.assertTrue(report["reason"])
        self.assertEqual(target.wait(), -9)
        recovery.runs_at_source(self.site, source)
        recovery.moves_now(self.site, case, source)

    def check_target_killed_after_commit(self, point, places):
        case = slow()
        source, target, command, _ = self.begin(case, target=f"target.side.kill.{point}")
        status = recovery.until_phase(self.site, "a", "blocked")
        self.assertIn(status["migration"]["vm_is_at"], places)
        self.assertEqual(target.wait(), -9)
        recovery.refuses_signals(self.site, source, "a")
        recovery.resume_at_source(self.site, source, command)
        recovery.moves_now(self.site, case, source)

    def check_source_killed_before_loaded(self, point):
        source, target, command, _ = self.begin(busy(), f"source.side.kill.{point}")
        self.assertEqual(source.wait(), -9)
        self.assertEqual(command.wait(), UNKNOWN)
        self.assertEqual(command.json()["vm_is_at"], "unknown")
        # It never had all of it, knows so, and runs nothing.
        self.assertEqual(target.wait(), FAILED)
        self.assertEqual(target.json()["vm_is_at"], "source")

    def test_a_target_killed_while_preparing_leaves_the_vm_at_the_source(self):
        self.check_target_killed_before_commit("prepare")

    def test_a_target_killed_at_the_switchover_leaves_the_vm_at_the_source(self):
        self.check_target_killed_before_commit("switchover")

    def test_a_target_killed_before_commit_leaves_the_vm_at_the_source(self):
        self.check_target_killed_before_commit("before-commit")

    def test_a_target_killed_after_commit_leaves_it_unknown_and_the_source_can_run_it(self):
        self.check_target_killed_after_commit("after-commit", ["unknown"])

    def test_a_target_killed_in_post_copy_blocks_and_the_source_can_run_it(self):
        self.check_target_killed_after_commit("postcopy:nth=4", ["blocked", "unknown"])

    def test_a_source_killed_while_preparing_ends_the_target(self):
        self.check_source_killed_before_loaded("prepare")

    def test_a_source_killed_at_the_switchover_ends_the_target(self):
        self.check_source_killed_before_loaded("switchover")

    def test_a_source_killed_before_commit_leaves_the_target_in_doubt(self):
        source, target, command, _ = self.begin(busy(), "source.side.kill.before-commit")
        self.assertEqual(source.wait(), -9)
        self.assertEqual(command.wait(), UNKNOWN)
        self.assertEqual(command.json()["vm_is_at"], "unknown")
        status = recovery.until_phase(self.site, "b", "in-doubt")
        self.assertEqual(status["guest"]["operations_since_arrival"], 0)
        code, answer = self.site.run("resume", "b", "--peer-fenced")
        self.assertEqual(code, FAILED)
        self.assertTrue(any("only at the source" in line for line in answer.output["stderr"]))
        self.assertTrue(target.running())
        self.assertEqual(self.site.run("cancel", "b", "--abandon")[0], DONE)
        self.assertEqual(target.wait(), target.json()["exit_code"])

    def test_a_source_killed_right_after_commit_leaves_a_target_that_reads_no_zeros(self):
        source, target, command, _ = self.begin(busy(push="off"), "source.side.kill.after-commit")
        self.assertEqual(source.wait(), -9)
        # It was killed before it could say that it had committed.
        self.assertEqual(command.wait(), UNKNOWN)
        status = recovery.until_phase(self.site, "b", "blocked")
        self.assertEqual(recovery.until_still(self.site, "b")["guest"]["memory_errors"], 0)
        self.assertGreater(status["migration"]["pages"]["missing"], 0)
        self.assertEqual(self.site.run("cancel", "b", "--abandon")[0], DONE)
        target.wait()

    def test_a_source_killed_in_post_copy_blocks_the_target(self):
        source, target, command, _ = self.begin(slow(), "source.side.kill.postcopy:nth=8")
        self.assertEqual(source.wait(), -9)
        self.assertEqual(command.wait(), INCOMPLETE)
        self.assertEqual(command.json()["vm_is_at"], "blocked")
        recovery.until_phase(self.site, "b", "blocked")
        recovery.check_blocked(recovery.until_still(self.site, "b"), ["link-lost"])
        recovery.abandon_target(self.site, target)


if __name__ == "__main__":
    migrating.main()
