# SPDX-License-Identifier: Apache-2.0
"""Jaunt's process dies at the target, and another goes on where it was: `jaunt resume qemu:SOCKET`."""

import signal
import socket

import lab
import migrating
import recovery
from migrating import DONE, FAILED
from test_silence import MuteProxy

ON_DEMAND = ("--mode", "post-copy", "--push", "off")
FOR_A_WHILE = f"delay_us={int(2000000 * migrating.PATIENCE)}"
HYBRID = ("--mode", "hybrid", "--max-rounds", "1")


class Resume(lab.Case):
    shape = lab.Shape(devices=True, vcpus=2)

    def begin(self, *options, dies=None, through=None, holds=None):
        """(guest, target, receive, migrate). `dies`: where the receiver kills itself; `through`: makes
        what is between the two sides; `holds`: where the source waits."""
        guest = self.guest()
        target = guest.start_qemu(incoming=True)
        self.addCleanup(lambda: target is guest.here or target.end())
        target.monitor.ask("migrate-set-parameters", downtime_limit=123)
        self.settings = self.settings_of(target)
        environment = {"JAUNT_INJECT": f"target.side.kill.{dies}"} if dies else None
        receive = guest.site.start("receive", "tcp:127.0.0.1:0", "--as", target.vm, "--json",
                                   environment=environment)
        peer = receive.line(r"ready: listening on (\S+) as").group(1)
        if through:
            peer = through(peer).peer
        environment = {"JAUNT_INJECT": f"source.side.hold.{holds}"} if holds else None
        migrate = guest.site.start("migrate", guest.here.vm, peer, "--json", *options,
                                   environment=environment)
        return guest, target, receive, migrate

    @staticmethod
    def settings_of(host):
        return [host.monitor.ask(question) for question in ("query-migrate-capabilities",
                                                            "query-migrate-parameters")]

    def resume(self, guest, target, dies=None):
        environment = {"JAUNT_INJECT": f"target.side.kill.{dies}"} if dies else None
        process = guest.site.start("resume", target.vm, "--json", environment=environment)
        process.line("ready: listening on")
        return process

    def dead(self, process):
        """It has killed itself, as it was told to."""
        self.assertEqual(process.wait(60), -9, process.transcript())

    def completes(self, guest, target, resume, migrate):
        """Both ends say so, the pages add up, and the guest finds nothing wrong with any of them."""
        there, here = guest.finish(target, resume, migrate)
        self.assertEqual(here["pages"]["kept"], there["pages"]["kept"])
        self.assertEqual(self.settings_of(target), self.settings)
        guest.until_beats()
        guest.check()
        return here

    def in_post_copy(self):
        parts = self.begin(*ON_DEMAND)
        recovery.until_phase(parts[0].site, parts[0].here.vm, "post-copy")
        recovery.until_phase(parts[0].site, parts[1].vm, "post-copy")
        return parts

    def push(self, guest, target):
        code, answer = guest.site.run("set", target.vm, "push=on")
        self.assertEqual(code, DONE, answer.transcript())

    # --- At any moment of post-copy ------------------------------------------------------------------

    def test_killed_twice_in_a_row_with_pages_missing(self):
        guest, target, receive, migrate = self.in_post_copy()
        receive.kill()
        code, answer = guest.site.run("status", target.vm)
        self.assertEqual(code, FAILED, answer.transcript())
        self.assertIn(f"jaunt resume {target.vm}", "\n".join(answer.output["stderr"]))
        first = self.resume(guest, target)
        recovery.until_phase(guest.site, target.vm, "post-copy")
        # One at a time.
        code, answer = guest.site.run("resume", target.vm)
        self.assertEqual(code, FAILED, answer.transcript())
        first.kill()
        second = self.resume(guest, target)
        recovery.until_phase(guest.site, target.vm, "post-copy")
        self.push(guest, target)
        report = self.completes(guest, target, second, migrate)
        self.assertGreater(report["pages"]["kept"], 0)
        code, answer = guest.site.run("resume", target.vm, "--json")
        self.assertEqual((code, answer.json()["reason"]), (FAILED, "nothing-to-resume"))

    def settles(self, mode, dies):
        guest, target, receive, migrate = self.begin(*mode, dies=dies)
        self.dead(receive)
        return self.completes(guest, target, self.resume(guest, target), migrate)

    def test_killed_with_pages_claimed(self):
        self.settles(("--mode", "post-copy"), "claimed:nth=2000")

    def test_killed_with_pages_visible_and_not_yet_present(self):
        self.settles(("--mode", "post-copy"), "visible:nth=2000")

    # With older copies of pages in the file.

    def test_killed_in_hybrid_with_pages_claimed(self):
        self.settles(HYBRID, "claimed:nth=60")

    def test_killed_in_hybrid_with_pages_in_the_file_and_not_yet_visible(self):
        self.settles(HYBRID, "written:nth=60")

    def test_killed_in_hybrid_with_pages_visible_and_not_yet_present(self):
        self.settles(HYBRID, "visible:nth=60")

    # Those that rounds had brought are not known any more, and come again.

    def test_killed_in_hybrid_with_digests(self):
        report = self.settles((*HYBRID, "--verify"), "visible:nth=60")
        pages = report["pages"]
        self.assertEqual(pages["copied"], 0)
        self.assertGreaterEqual(report["verified_pages"],
                                pages["total"] - pages["kept"] - pages["hole"])
        self.assertEqual(report["mismatched_pages"], 0)

    def test_killed_in_post_copy_with_digests(self):
        report = self.settles(("--mode", "post-copy", "--verify"), "claimed:nth=2000")
        self.assertGreater(report["verified_pages"], 0)
        self.assertEqual(report["mismatched_pages"], 0)

    def test_killed_again_and_again_while_pages_come(self):
        guest, target, receive, migrate = self.begin("--mode", "post-copy", dies="visible:nth=50")
        self.dead(receive)
        for dies in ("visible:nth=700", "claimed:nth=900", "visible:nth=1200"):
            self.dead(self.resume(guest, target, dies=dies))
        self.completes(guest, target, self.resume(guest, target), migrate)

    # --- Before it ran, and at the end ----------------------------------------------------------------

    def test_killed_when_commit_was_heard_and_the_guest_has_not_run(self):
        self.settles(("--mode", "post-copy"), "after-commit")

    def test_killed_before_it_was_loaded_there_is_nothing_to_go_on_with(self):
        guest, target, receive, migrate = self.begin("--mode", "post-copy", dies="before-commit")
        self.dead(receive)
        self.assertEqual(migrate.wait(60), FAILED, migrate.transcript())
        code, answer = guest.site.run("resume", target.vm, "--json")
        self.assertEqual((code, answer.json()["reason"]), (FAILED, "nothing-to-resume"),
                         answer.transcript())
        self.assertNotEqual(target.status(), "running")
        target.end()
        guest.until_beats()
        guest.check()

    # --- Somebody else has QEMU's monitor -------------------------------------------------------------

    def monopolise(self, target):
        """The monitor that Jaunt uses, which hears one client at a time."""
        other = socket.socket(socket.AF_UNIX)
        self.addCleanup(other.close)
        other.settimeout(20 * migrating.PATIENCE)
        other.connect(str(target.monitor_path))
        self.assertIn(b"QMP", other.recv(4096))
        return other

    def test_a_loaded_guest_whose_qemu_is_silent_runs_only_when_commit_comes(self):
        made = []

        def through(peer):
            made.append(MuteProxy(peer))
            self.addCleanup(made[0].close)
            return made[0]
        guest, target, receive, migrate = self.begin("--mode", "post-copy", through=through,
                                                     holds=f"before-commit:{FOR_A_WHILE}")
        self.until_loaded(guest, target)
        made[0].mute()  # COMMIT is recorded, and not heard
        recovery.until_phase(guest.site, guest.here.vm, "post-copy", "blocked")
        migrate.signal(signal.SIGSTOP)
        receive.kill()
        other = self.monopolise(target)
        resume = self.resume(guest, target)
        recovery.until_phase(guest.site, target.vm, "in-doubt")
        code, answer = guest.site.run("status", target.vm, "--json")
        migration = answer.json()["vms"][0]["migration"]
        self.assertEqual(migration["reason"], "in-doubt", answer.transcript())
        self.assertIn("not known yet", migration["error"])
        self.assertEqual(target.status(), "paused")
        other.close()
        migrate.signal(signal.SIGCONT)
        self.completes(guest, target, resume, migrate)

    # --- What cannot be ---------------------------------------------------------------------------------

    def test_a_source_that_is_gone_too_is_said_to_be(self):
        guest, target, receive, migrate = self.in_post_copy()
        receive.kill()
        migrate.kill()
        resume = self.resume(guest, target)
        recovery.until_phase(guest.site, target.vm, "blocked")
        code, answer = guest.site.run("status", target.vm, "--json")
        migration = answer.json()["vms"][0]["migration"]
        self.assertEqual(migration["reason"], "taken-up", answer.transcript())
        self.assertIn("until the source comes back", migration["error"])
        self.assertTrue(resume.running())
        target.process.kill()
        resume.wait(30)
        self.assertEqual(resume.json()["reason"], "vm-gone", resume.transcript())
        lab.end_guests()

    def test_a_qemu_that_is_gone_or_has_got_no_guest(self):
        guest = self.guest()
        target = guest.start_qemu(incoming=True)
        code, answer = guest.site.run("resume", target.vm, "--json")
        self.assertEqual((code, answer.json()["reason"]), (FAILED, "nothing-to-resume"))
        target.end()
        code, answer = guest.site.run("resume", target.vm, "--json")
        self.assertEqual((code, answer.json()["reason"]), (FAILED, "qemu-unreachable"))
