# SPDX-License-Identifier: Apache-2.0
"""Device state that travels, and is loaded, while the guest still runs at the source: a screen that is
written all the while, and what ends a migration in that moment."""

import json
import re
import time

import lab
from migrating import CANCELLED, DONE, FAILED

MIB = 1 << 20
FILL_S = 2
BRIEF = ":delay_us=1000000"
APART_S = 0.2  # the two stops at least
LONG = ":delay_us=3200000"  # longer than the guest is left running for it


class Ending:
    """What ends a migration at the point where it is held."""

    def begin(self):
        """(guest, target, receive, migrate), at that point."""
        guest = self.guest()
        parts = guest.begin("--mode", "post-copy",
                            environment={"JAUNT_INJECT": self.point})
        self.await_it(guest, *parts)
        self.addCleanup(lambda: parts[0] is guest.here or parts[0].end())
        return guest, *parts

    def ends(self, process, code):
        self.assertEqual(process.wait(30), code, process.transcript())
        return process.json()

    def goes_on(self, guest, target):
        """At the source, nothing of it left; the other QEMU has not run it and never will."""
        self.assertFalse(target.process.running() and target.status() == "running")
        self.assertIsNone(target.monitor.when("RESUME"))
        before = guest.here.report()
        guest.until_beats()
        guest.works(before, guest.check())
        self.assertEqual(guest.here.status(), "running")
        self.assertNotIn(guest.here.monitor.ask("query-migrate").get("status"),
                         ("setup", "active", "pre-switchover", "device"))
        guest.migrate("post-copy")

    def test_cancelled_at_the_source(self):
        guest, target, receive, migrate = self.begin()
        self.assertEqual(guest.site.run("cancel", guest.here.vm)[0], DONE)
        self.assertEqual(self.ends(migrate, CANCELLED)["vm_is_at"], "source")
        self.ends(receive, CANCELLED)
        self.goes_on(guest, target)

    def test_receive_is_killed(self):
        guest, target, receive, migrate = self.begin()
        receive.kill()
        self.assertEqual(self.ends(migrate, FAILED)["vm_is_at"], "source")
        self.goes_on(guest, target)


class Ahead(Ending, lab.Case):
    point = "source.side.hold.ahead"
    shape = lab.Shape(work_mib=64, devices=True, screen_rate=2000)

    def guest(self):
        """One with something on its screen."""
        guest = super().guest()
        if not hasattr(guest, "painted"):
            time.sleep(FILL_S)
            guest.painted = True
        return guest

    @staticmethod
    def await_it(_guest, target, *_):
        target.monitor.event("MIGRATION", status="active")

    def migrate(self, mode, *options, environment=None):
        """A whole migration; how many bytes of device state were sent ahead, and how many stale pages
        were told meanwhile."""
        guest = self.guest()
        trace = f"{guest.site.directory}/{mode}.trace"
        before = guest.here.report()
        parts = guest.begin("--mode", mode, "--trace", trace, *options, environment=environment)
        guest.finish(*parts)
        guest.until_beats()
        report = guest.check()
        guest.works(before, report)
        self.assertGreater(report["screen"]["operations"], 1000)
        with open(trace, encoding="utf-8") as lines:
            told = [line["text"] for line in map(json.loads, lines)
                    if line.get("name") == "state-ahead"]
        self.assertEqual(len(told), 1, told)
        return [int(word) for word in re.findall(r"\d+", told[0])]

    def test_in_post_copy(self):
        state, stale = self.migrate("post-copy")
        self.assertGreater(state, 2 * MIB)
        self.assertEqual(stale, 0)

    def test_in_hybrid(self):
        state, stale = self.migrate("hybrid", "--max-rounds", "2")
        self.assertGreater(state, 2 * MIB)
        self.assertGreater(stale, 0)

    def test_what_takes_too_long_is_saved_when_the_guest_stands_still(self):
        self.migrate("post-copy", environment={"JAUNT_INJECT": "source.side.hold.ahead" + LONG})

    def begin_briefly(self, moment=BRIEF):
        """Held for a moment, then it goes on; its operator has that long."""
        guest = self.guest()
        parts = guest.begin("--mode", "post-copy", environment={"JAUNT_INJECT": self.point + moment})
        self.await_it(guest, *parts)
        return guest, *parts

    def test_stopped_and_continued_by_another(self):
        guest, target, receive, migrate = self.begin_briefly()
        source, began = guest.here.monitor, time.time()
        source.ask("stop")
        time.sleep(APART_S)
        source.ask("cont")
        reports = guest.finish(target, receive, migrate)
        # Its downtime is from the last stop on, by QEMU's own word.
        stop = source.when("STOP", after=source.when("RESUME", after=began))
        self.assertAlmostEqual(reports[0]["downtime_us"] / 1e6,
                               target.monitor.when("RESUME") - stop, delta=APART_S)
        guest.until_beats()
        guest.check()

    def is_stopped_by_another(self, moment):
        guest, target, receive, migrate = self.begin_briefly(moment)
        source, began = guest.here.monitor, time.time()
        source.ask("stop")
        report = self.ends(migrate, FAILED)
        self.assertEqual((report["vm_is_at"], report["reason"]), ("source", "qemu-state"))
        self.assertIn("had stopped before", report["error"])
        self.ends(receive, FAILED)
        # QEMU, which had all of the screen to write, was asked: it has not written the devices.
        self.assertIsNone(source.when("MIGRATION", after=began, status="pre-switchover"))
        self.assertEqual(guest.here.status(), "paused")
        # Nor by the next command.
        guest.site.run("status", guest.here.vm)
        self.assertEqual(guest.here.status(), "paused")
        guest.here.monitor.ask("cont")
        self.goes_on(guest, target)

    def test_stopped_by_another(self):
        self.is_stopped_by_another(BRIEF)

    def test_stopped_by_another_for_longer_than_the_guest_is_left_running(self):
        self.is_stopped_by_another(LONG)

    def test_cancelled_at_the_target(self):
        guest, target, receive, migrate = self.begin()
        self.assertEqual(guest.site.run("cancel", target.vm)[0], DONE)
        self.ends(migrate, CANCELLED)
        self.ends(receive, CANCELLED)
        self.goes_on(guest, target)

    def test_the_targets_qemu_is_killed(self):
        guest, target, receive, migrate = self.begin()
        target.process.kill()
        self.assertEqual(self.ends(migrate, FAILED)["vm_is_at"], "source")
        self.ends(receive, FAILED)
        self.goes_on(guest, target)

    def test_migrate_is_killed(self):
        guest, target, receive, migrate = self.begin()
        migrate.kill()
        self.ends(receive, FAILED)
        # QEMU goes on by itself, or the next command sees to it.
        guest.site.run("status", guest.here.vm)
        self.goes_on(guest, target)

    def test_the_sources_qemu_is_killed(self):
        guest, target, receive, migrate = self.begin()
        guest.here.process.kill()
        self.ends(migrate, FAILED)
        self.ends(receive, FAILED)
        self.assertIsNone(target.monitor.when("RESUME"))
        lab.end_guests()


class Held(Ending, lab.Case):
    """QEMU has stopped the guest by itself, and waits to write the rest."""
    shape = lab.Shape(work_mib=64, devices=True)
    point = "source.side.hold.held"

    @staticmethod
    def await_it(guest, *_):
        guest.here.monitor.event("MIGRATION", status="pre-switchover")

    def test_migrate_is_killed(self):
        guest, target, receive, migrate = self.begin()
        migrate.kill()
        self.ends(receive, FAILED)
        self.assertEqual(guest.here.status(), "finish-migrate")
        guest.site.run("status", guest.here.vm)
        self.goes_on(guest, target)

    def test_what_its_operator_stops_after_a_death_stays_stopped(self):
        guest, target, receive, migrate = self.begin()
        migrate.kill()
        self.ends(receive, FAILED)
        guest.here.monitor.ask("migrate_cancel")
        guest.here.monitor.event("MIGRATION", status="cancelled")
        guest.here.monitor.ask("stop")
        guest.site.run("status", guest.here.vm)
        self.assertEqual(guest.here.status(), "paused")
        guest.here.monitor.ask("cont")
        self.goes_on(guest, target)
