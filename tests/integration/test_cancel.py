# SPDX-License-Identifier: Apache-2.0
"""A cancel in every phase before COMMIT, at either side: both end with 3, and the VM runs on.

Fault injection holds one side in the phase, so that no cancel comes too early or too late.
"""

import cases
import migrating
import recovery
from interrupted import Interrupted, busy
from migrating import CANCELLED, DONE


def prepared(status):
    """The target has agreed and made the VM: from here on it ends with its source."""
    return bool(status["migration"]) and status["migration"]["pages"]["total"] > 0


class Cancelled(Interrupted):
    def held(self, source=None, target=None, phase="switchover"):
        """A migration that is held; (source, target, migrate)."""
        processes = self.begin(busy(), source, target)[:3]
        recovery.until_phase(self.site, "a", phase)
        self.site.until("b", prepared, "the target is prepared")
        return processes

    def check_cancelled_at(self, name, held):
        source, target, command = held
        code, answer = self.site.run("cancel", name)
        self.assertEqual(code, DONE, answer.transcript())
        for process in (command, target):
            self.assertEqual(process.wait(), CANCELLED)
            report = process.json()
            self.assertEqual((report["result"], report["vm_is_at"], report["exit_code"]),
                             ("cancelled", "source", CANCELLED))
        # As if nothing had happened: it works, can be moved now, and finds its memory in order.
        recovery.runs_at_source(self.site, source)
        guest = recovery.moves_now(self.site, busy(), source)["guest"]
        self.assertEqual((guest["memory_errors"], guest["self_check"]), (0, "clean"))

    def while_preparing(self):
        return self.held("source.side.hold.prepare", phase="preparing")

    def paused(self):
        return self.held("source.side.hold.switchover")

    def before_the_state_is_loaded(self):
        held = self.held(target="target.side.hold.switchover")
        recovery.until_phase(self.site, "b", "switchover")
        return held

    def loaded(self):
        held = self.held("source.side.hold.before-commit")
        recovery.until_phase(self.site, "b", "switchover")
        return held

    def test_a_cancel_at_the_source_while_preparing(self):
        self.check_cancelled_at("a", self.while_preparing())

    def test_a_cancel_at_the_target_while_preparing(self):
        self.check_cancelled_at("b", self.while_preparing())

    def test_a_cancel_at_the_source_while_the_vm_is_paused(self):
        self.check_cancelled_at("a", self.paused())

    def test_a_cancel_at_the_target_while_the_vm_is_paused(self):
        self.check_cancelled_at("b", self.paused())

    def test_a_cancel_at_the_source_before_the_state_is_loaded(self):
        self.check_cancelled_at("a", self.before_the_state_is_loaded())

    def test_a_cancel_at_the_target_before_the_state_is_loaded(self):
        self.check_cancelled_at("b", self.before_the_state_is_loaded())

    def test_a_cancel_at_the_source_when_the_vm_is_loaded_and_not_committed(self):
        self.check_cancelled_at("a", self.loaded())

    def test_a_cancel_at_the_target_when_the_vm_is_loaded_and_not_committed(self):
        self.check_cancelled_at("b", self.loaded())

    def test_ctrl_c_on_migrate_before_commit(self):
        source, target, command = self.while_preparing()
        command.signal(migrating.signal.SIGINT)
        self.assertEqual(command.wait(), CANCELLED)
        self.assertEqual(target.wait(), CANCELLED)
        recovery.runs_at_source(self.site, source)

    def test_what_is_held_for_a_time_and_not_cancelled_goes_on(self):
        hold = "source.side.hold.{}:delay_us=1000"
        _, target, command = self.begin(
            busy(), ";".join(hold.format(point)
                             for point in ("prepare", "switchover", "before-commit")),
            "target.side.hold.switchover:delay_us=1000")[:3]
        self.assertEqual(command.wait(60), DONE)
        self.assertEqual(cases.stop(target)["guest"]["memory_errors"], 0)


if __name__ == "__main__":
    migrating.main()
