# SPDX-License-Identifier: Apache-2.0
"""The ends that a migration can come to by its operator's word or by the death of a QEMU: no command
hangs, and each says what became of the guest."""

import pathlib
import signal

import lab
import recovery
from migrating import CANCELLED, DONE, FAILED, INCOMPLETE

FOR_A_WHILE = ":delay_us=3000000"
SLOW = ("--bandwidth", "20MB/s")  # so that rounds and the pushing last


class Ends(lab.Case):
    shape = lab.Shape(work_mib=64, devices=True)

    def begin(self, *options, hold=None):
        """(guest, target, receive, migrate)"""
        guest = self.guest()
        environment = {"JAUNT_INJECT": f"source.side.hold.{hold}"} if hold else None
        parts = guest.begin(*options, environment=environment)
        self.addCleanup(lambda: parts[0] is guest.here or parts[0].end())
        return guest, *parts

    def ends(self, process, code):
        self.assertEqual(process.wait(30), code, process.transcript())
        return process.json()

    def says(self, guest, *words):
        code, process = guest.site.run(*words)
        self.assertEqual(code, DONE, process.transcript())

    def goes_on(self, guest):
        """Where it was, and it can be moved."""
        before = guest.here.report()
        guest.until_beats()
        guest.works(before, guest.check())
        guest.migrate("hybrid")

    def test_interrupted_by_its_terminal_it_goes_on(self):
        guest, _, receive, migrate = self.begin("--mode", "pre-copy", *SLOW)
        recovery.until_phase(guest.site, guest.here.vm, "pre-copy")
        migrate.signal(signal.SIGINT)
        self.ends(migrate, CANCELLED)
        self.ends(receive, CANCELLED)
        self.goes_on(guest)

    def test_cancelled_with_its_state_saved_it_goes_on(self):
        guest, target, receive, migrate = self.begin("--mode", "post-copy", hold="switchover")
        recovery.until_phase(guest.site, guest.here.vm, "switchover")
        self.says(guest, "cancel", guest.here.vm)
        self.assertEqual(self.ends(migrate, CANCELLED)["vm_is_at"], "source")
        self.ends(receive, CANCELLED)
        # It had begun to load.
        self.assertFalse(target.process.running())
        self.goes_on(guest)

    # --- Somebody else has a hand in it ------------------------------------------------------------

    def loaded(self):
        """Held for a while just before COMMIT."""
        parts = self.begin("--mode", "post-copy", hold="before-commit" + FOR_A_WHILE)
        self.until_loaded(*parts[:2])
        return parts

    def test_continued_by_somebody_else_it_is_not_committed(self):
        guest, target, receive, migrate = self.loaded()
        guest.here.monitor.ask("cont")
        report = self.ends(migrate, FAILED)
        self.assertEqual((report["vm_is_at"], report["reason"]), ("source", "qemu-state"))
        self.ends(receive, FAILED)
        self.assertIsNone(target.monitor.when("RESUME"))
        self.assertEqual(guest.here.status(), "running")
        self.goes_on(guest)

    def test_stopped_by_its_operator_it_is_left_so(self):
        guest, _, receive, migrate = self.begin("--mode", "post-copy",
                                                hold="prepare" + FOR_A_WHILE)
        recovery.until_phase(guest.site, guest.here.vm, "preparing")
        guest.here.monitor.ask("stop")
        report = self.ends(migrate, FAILED)
        self.assertEqual((report["vm_is_at"], report["reason"]), ("source", "qemu-state"))
        self.ends(receive, FAILED)
        self.assertEqual(guest.here.status(), "paused")
        guest.here.monitor.ask("cont")
        self.goes_on(guest)

    def test_without_a_record_there_is_no_commit(self):
        guest, _, receive, migrate = self.loaded()
        record, = pathlib.Path(guest.site.directory).rglob("*.commit")
        obstacle = record.with_name(record.name + ".new")
        obstacle.mkdir()
        report = self.ends(migrate, FAILED)
        self.assertEqual((report["vm_is_at"], report["reason"]), ("source", "no-record"))
        self.ends(receive, FAILED)
        obstacle.rmdir()
        self.goes_on(guest)

    def test_the_settings_of_a_qemu_that_took_a_guest_in_are_put_back(self):
        guest = self.guest()
        target = guest.start_qemu(incoming=True)
        questions = "query-migrate-capabilities", "query-migrate-parameters"
        before = [target.monitor.ask(question) for question in questions]
        guest.finish(*guest.begin("--mode", "post-copy", target=target))
        self.assertEqual([target.monitor.ask(question) for question in questions], before)
        guest.check()

    def test_switched_by_hand_it_moves_and_an_interrupt_comes_too_late(self):
        guest, target, receive, migrate = self.begin("--mode", "hybrid", *SLOW)
        recovery.until_phase(guest.site, guest.here.vm, "pre-copy")
        self.says(guest, "switch", guest.here.vm)
        recovery.until_phase(guest.site, guest.here.vm, "post-copy")
        for _ in range(3):  # it is needed until every page has arrived
            migrate.signal(signal.SIGINT)
            migrate.signal(signal.SIGHUP)
        migrate.line("too late to cancel")
        self.assertTrue(migrate.running())
        self.says(guest, "set", guest.here.vm, "bandwidth=none")
        guest.finish(target, receive, migrate)
        guest.check()

    def test_the_targets_qemu_killed_when_it_has_loaded_the_guest(self):
        guest, target, receive, migrate = self.begin("--mode", "post-copy", hold="before-commit")
        self.until_loaded(guest, target)
        target.process.kill()
        # The target is in doubt, whatever has become of its QEMU; the source decides. Unless the
        # target had not yet heard that it was loaded: then it says that it failed.
        guest.site.run("cancel", guest.here.vm)
        self.assertIn(migrate.wait(30), (CANCELLED, FAILED), migrate.transcript())
        receive.wait(30)
        self.goes_on(guest)

    def test_the_targets_qemu_killed_with_pages_missing(self):
        guest, target, receive, migrate = self.begin("--mode", "post-copy", "--push", "off")
        recovery.until_phase(guest.site, target.vm, "post-copy")
        target.process.kill()
        report = self.ends(receive, INCOMPLETE)
        self.assertEqual(report["reason"], "vm-gone")
        self.assertIn("died", report["error"])
        recovery.until_phase(guest.site, guest.here.vm, "blocked")
        self.assertNotEqual(guest.here.status(), "running")
        self.says(guest, "resume", guest.here.vm, "--peer-fenced")
        self.ends(migrate, FAILED)
        self.assertEqual(guest.here.status(), "running")
        self.assertEqual(guest.here.report("check")["memory"]["errors"], 0)
        lab.end_guests()

    def test_the_sources_qemu_killed_while_the_guest_stands_still(self):
        guest, _, receive, migrate = self.begin("--mode", "pre-copy", hold="before-commit")
        recovery.until_phase(guest.site, guest.here.vm, "switchover")
        guest.here.process.kill()
        self.assertEqual(self.ends(migrate, FAILED)["reason"], "vm-gone")
        self.ends(receive, FAILED)
        lab.end_guests()
