# SPDX-License-Identifier: Apache-2.0
"""A migration of a guest in QEMU that does not go through: given up, or one of its processes dies."""

import signal
import time

import lab
import recovery
from migrating import CANCELLED, DONE, FAILED, INCOMPLETE

SLOW = ("--mode", "hybrid", "--bandwidth", "20MB/s")
ON_DEMAND = ("--mode", "post-copy", "--push", "off")
STILL_S = 1.0


class Trouble(lab.Case):
    shape = lab.Shape(devices=True, vcpus=2)

    # --- Where a migration can be ------------------------------------------------------------------

    def begin(self, guest, *options, environment=None):
        """(target, receive, migrate), wherever it has come to."""
        self.parts = guest.begin(*options, environment=environment)
        self.site = guest.site
        return self.parts

    def in_rounds(self, guest, **how):
        parts = self.begin(guest, *SLOW, **how)
        self.site.until(guest.here.vm, lambda status: status["migration"] and
                        status["migration"]["bytes"]["payload"] > 1 << 20, "it copies memory")
        return parts

    def loaded(self, guest):
        """Held just before COMMIT: the guest stands still, and its state has been loaded."""
        parts = self.begin(guest, "--mode", "post-copy",
                           environment={"JAUNT_INJECT": "source.side.hold.before-commit"})
        self.until_loaded(guest, parts[0])
        return parts

    def in_post_copy(self, guest):
        """The guest runs at the target, with pages missing, until somebody turns the push on."""
        parts = self.begin(guest, *ON_DEMAND)
        for vm in (guest.here.vm, parts[0].vm):
            self.site.until(vm, lambda status: status["migration"] and
                            status["migration"]["phase"] == "post-copy" and
                            status["migration"]["vm_is_at"] == "target", "it runs at the target")
        return parts

    # --- What must hold then -----------------------------------------------------------------------

    def ends(self, process, code, result=None):
        self.assertEqual(process.wait(), code, process.transcript())
        if result:
            self.assertEqual(process.json()["result"], result, process.transcript())
        return process

    def runs_on(self, guest):
        """At the source, as if nothing had happened; and it can be moved now."""
        before = guest.here.report()
        guest.until_beats()
        guest.works(before, guest.check())
        guest.migrate("post-copy")

    def runs_back(self, guest):
        """At the source, though it had gone on at the target for a while: no beats are asked for."""
        report = guest.here.report("check")
        for part in ("memory", "disk", "screen"):
            self.assertEqual(report[part]["errors"], 0, report[part]["first"])
        self.assertEqual(guest.here.status(), "running")

    def stands_still(self, host):
        """Its console says nothing more; what it had said was in order. What it does is waited for:
        it stops at the first page that it lacks."""
        deadline = time.monotonic() + 30
        while True:
            before = host.console.read_text(errors="replace")
            time.sleep(STILL_S)
            if host.console.read_text(errors="replace") == before:
                break
            self.assertLess(time.monotonic(), deadline, "the guest does not need any page")
        self.assertNotRegex(before, r"[1-9]\d* errors|Oops|BUG:|panic|Segmentation")
        self.assertTrue(host.process.running())

    # --- Given up ----------------------------------------------------------------------------------

    def check_cancelled(self, guest, parts, vm, same_target):
        target, receiving, command = parts
        code, answer = self.site.run("cancel", vm)
        self.assertEqual(code, DONE, answer.transcript())
        self.ends(command, CANCELLED, "cancelled")
        self.ends(receiving, CANCELLED, "cancelled")
        before = guest.here.report()
        guest.until_beats()
        guest.works(before, guest.check())
        # A QEMU that has not begun to load still waits for a guest.
        if not same_target:
            target.end()
        guest.finish(*guest.begin("--mode", "hybrid", "--max-rounds", "2",
                                  target=target if same_target else None))
        guest.until_beats()
        guest.check()

    def test_a_cancel_at_the_source_in_rounds(self):
        guest = self.guest()
        self.check_cancelled(guest, self.in_rounds(guest), guest.here.vm, True)

    def test_a_cancel_at_the_target_in_rounds(self):
        guest = self.guest()
        parts = self.in_rounds(guest)
        self.check_cancelled(guest, parts, parts[0].vm, True)

    def test_a_cancel_when_the_target_has_loaded_it(self):
        # With a disk, which both sides have open.
        guest = self.guest()
        self.check_cancelled(guest, self.loaded(guest), guest.here.vm, False)

    # --- QEMU dies ---------------------------------------------------------------------------------

    def test_the_targets_qemu_killed_in_rounds(self):
        guest = self.guest()
        target, receiving, command = self.in_rounds(guest)
        target.process.kill()
        self.ends(command, FAILED, "failed")
        self.ends(receiving, FAILED, "failed")
        self.runs_on(guest)

    def test_the_sources_qemu_killed_in_rounds(self):
        guest = self.guest()
        target, receiving, command = self.in_rounds(guest)
        guest.here.process.kill()
        self.ends(command, FAILED)
        self.ends(receiving, FAILED)
        self.assertEqual(target.status(), "inmigrate")
        lab.end_guests()

    def test_the_sources_qemu_killed_when_the_guest_had_left(self):
        # Jaunt has its guest's memory open, and needs nothing else of it.
        guest = self.guest()
        target, receiving, command = self.in_post_copy(guest)
        guest.here.process.kill()
        code, answer = self.site.run("set", target.vm, "push=on")
        self.assertEqual(code, DONE, answer.transcript())
        guest.finish(target, receiving, command)
        guest.until_beats()
        guest.check()

    # --- Jaunt dies --------------------------------------------------------------------------------

    def test_migrate_killed_in_rounds(self):
        guest = self.guest()
        target, receiving, command = self.in_rounds(guest)
        command.kill()
        self.ends(receiving, FAILED, "failed")
        self.assertEqual(target.status(), "inmigrate")
        target.end()
        # Its operator stops it, for a reason of his own: no command about it lets it go on.
        guest.here.monitor.ask("stop")
        code, answer = self.site.run("cancel", guest.here.vm)
        self.assertNotEqual(code, DONE)
        self.assertNotIn("runs again", answer.transcript())
        self.assertEqual(guest.here.status(), "paused")
        guest.here.monitor.ask("cont")
        self.runs_on(guest)

    def test_migrate_killed_when_the_guest_stood_still(self):
        guest = self.guest()
        before = guest.here.report()
        target, receiving, command = self.loaded(guest)
        command.kill()
        self.assertEqual(guest.here.status(), "postmigrate")
        # Whatever is asked of it next.
        code, answer = self.site.run("cancel", guest.here.vm)
        self.assertNotEqual(code, DONE)
        self.assertIn("runs again", "\n".join(answer.output["stderr"]))
        guest.until_beats()
        guest.works(before, guest.check())
        self.assertNotEqual(target.process.running() and target.status(), "running")
        self.assertEqual(self.site.run("cancel", target.vm, "--abandon")[0], DONE)
        receiving.wait()
        target.end()
        self.runs_on(guest)

    def test_migrate_killed_after_commit(self):
        guest = self.guest()
        target, receiving, command = self.in_post_copy(guest)
        command.kill()
        self.assertNotEqual(guest.here.status(), "running")
        # It may run at the target: nothing that can be asked runs it here.
        for words in (("cancel", guest.here.vm), ("status", guest.here.vm),
                      ("migrate", guest.here.vm, "tcp:127.0.0.1:1")):
            code, answer = self.site.run(*words)
            self.assertNotEqual(guest.here.status(), "running", answer.transcript())
        self.assertNotEqual(code, DONE)
        self.assertIn("handed over", "\n".join(answer.output["stderr"]))
        recovery.until_phase(self.site, target.vm, "blocked")
        self.stands_still(target)
        target.end()
        lab.end_guests()

    def test_receive_killed_in_post_copy(self):
        guest = self.guest()
        target, receiving, command = self.in_post_copy(guest)
        receiving.kill()
        # It waits for its pages, and sees no zeros in their place.
        self.stands_still(target)
        recovery.until_phase(self.site, guest.here.vm, "blocked")
        self.assertNotEqual(guest.here.status(), "running")
        # Nor can it be moved on with holes in its memory.
        self.assertEqual(target.status(), "running")
        code, answer = self.site.run("migrate", target.vm, "tcp:127.0.0.1:1", "--json")
        self.assertEqual(code, FAILED, answer.transcript())
        self.assertEqual(answer.json()["reason"], "incomplete-memory")
        # The operator fences the target.
        target.end()
        code, answer = self.site.run("resume", guest.here.vm, "--peer-fenced")
        self.assertEqual(code, DONE, answer.transcript())
        self.ends(command, FAILED)
        self.runs_back(guest)
        lab.end_guests()
