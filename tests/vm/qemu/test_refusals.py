# SPDX-License-Identifier: Apache-2.0
"""A target that is not what the guest runs on: refused with all that differs, before anything moves."""

import pathlib

import lab
from migrating import DONE, FAILED

OTHER = "7e9f6b0c-93f4-4dc7-b8e2-cbc9b4e8d1c7"


class SingleRefusals(lab.Case):
    shape = lab.Shape(devices=True)

    def target(self, guest, *words, disk=None, incoming=True):
        """A QEMU that waits with more of a command line, or with another disk, and its receive."""
        before, guest.words = guest.words, words
        own, guest.disk = guest.disk, disk or guest.disk
        target = guest.start_qemu(incoming)
        guest.words, guest.disk = before, own
        self.addCleanup(target.end)
        receiving = guest.site.start("receive", "tcp:127.0.0.1:0", "--as", target.vm, "--json")
        receiving.peer = receiving.line(r"ready: listening on (\S+) as").group(1)
        return target, receiving

    def migrate(self, guest, receiving, *options):
        return guest.site.start("migrate", guest.here.vm, receiving.peer, "--json", *options)

    def refused(self, process):
        """The differences, by their items."""
        self.assertEqual(process.wait(), FAILED, process.transcript())
        report = process.json()
        self.assertEqual(report["reason"], "configuration", process.transcript())
        self.assertEqual(report["vm_is_at"], "source")
        for one in report["differences"]:
            self.assertTrue(one["advice"], one)
            self.assertIn(one["item"], process.transcript())
        return {one["item"]: one for one in report["differences"]}

    def end(self, guest, target, receiving):
        guest.site.start("cancel", target.vm).wait()
        receiving.wait()
        target.end()

    def test_another_disk_and_device_and_machine_is_refused_and_the_guest_notices_nothing(self):
        guest = self.guest()
        other = pathlib.Path(guest.site.directory) / "copy"
        other.write_bytes(guest.disk.read_bytes())
        target, receiving = self.target(guest, "-uuid", OTHER, "-device", "virtio-rng-pci,id=rng",
                                        disk=other)
        before = guest.here.report()
        for options in (("--dry-run",), (), ("--allow-difference", "device rng")):
            items = self.refused(self.migrate(guest, receiving, *options))
            disks = [item for item in items if item.startswith("disk ")]
            self.assertEqual(len(disks), 1, items)
            self.assertIn(str(guest.disk), items[disks[0]]["source"])
            self.assertIn(str(other), items[disks[0]]["target"])
            self.assertFalse(items[disks[0]]["allowable"])
            self.assertEqual(items["device rng"]["source"], "")
            self.assertEqual(items["device rng"]["target"], "virtio-rng-pci")
            self.assertEqual(items["uuid"]["target"], OTHER)
            self.assertTrue(items["uuid"]["allowable"])
            self.assertEqual(guest.here.status(), "running")
            self.assertEqual(target.status(), "inmigrate")
        self.assertIn("never safe", items["device rng"]["advice"])
        guest.until_beats()
        guest.works(before, guest.check())
        self.end(guest, target, receiving)

    def test_a_qemu_that_was_not_started_to_take_a_guest_in_is_refused(self):
        guest = self.guest()
        own = pathlib.Path(guest.site.directory) / "own"
        own.write_bytes(guest.disk.read_bytes())
        before = guest.here.report()
        target, receiving = self.target(guest, "-S", disk=own, incoming=False)
        command = self.migrate(guest, receiving, "--mode", "post-copy")
        self.assertEqual(command.wait(), FAILED, command.transcript())
        self.assertIn("-incoming defer", command.transcript() + receiving.transcript())
        self.assertEqual(command.json()["vm_is_at"], "source")
        self.assertEqual(target.status(), "prelaunch")
        guest.until_beats()
        guest.works(before, guest.check())
        self.end(guest, target, receiving)

    def test_what_is_safe_moves_once_it_is_allowed(self):
        guest = self.boot()
        target, receiving = self.target(guest, "-uuid", OTHER)
        self.assertEqual(list(self.refused(self.migrate(guest, receiving, "--dry-run"))), ["uuid"])
        allowed = ("--allow-difference", "uuid")
        dry = self.migrate(guest, receiving, "--dry-run", *allowed)
        self.assertEqual(dry.wait(), DONE, dry.transcript())
        guest.finish(target, receiving,
                     self.migrate(guest, receiving, "--mode", "post-copy", *allowed))
        guest.until_beats()
        guest.check()

    def test_the_doctor_says_all_of_it_beforehand(self):
        guest = self.guest()
        target, receiving = self.target(guest)
        doctor = guest.site.start("doctor", guest.here.vm, receiving.peer, "--json")
        doctor.wait()
        report = doctor.json()
        found = {check["name"]: check for check in report["checks"]}
        for name in ("qemu.monitor", "qemu.state", "qemu.agent", "qemu.memory",
                     "qemu.capabilities", "peer", "pair"):
            self.assertTrue(found[name]["ok"], doctor.transcript())
        self.assertNotIn("qemu.cannot-move", found)
        self.assertEqual(report["differences"], [])
        self.end(guest, target, receiving)
        target, receiving = self.target(guest, "-uuid", OTHER)
        doctor = guest.site.start("doctor", guest.here.vm, receiving.peer, "--json")
        self.assertEqual(doctor.wait(), FAILED, doctor.transcript())
        report = doctor.json()
        self.assertEqual([one["item"] for one in report["differences"]], ["uuid"])
        self.assertEqual(guest.here.status(), "running")
        self.end(guest, target, receiving)
