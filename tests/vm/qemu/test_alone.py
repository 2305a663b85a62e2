# SPDX-License-Identifier: Apache-2.0
"""The laboratory itself: a guest that stays where it is, or that QEMU moves. Its checks can fail."""

import lab


class Alone(lab.Case):
    shape = lab.Shape(work_mib=64, devices=True)

    def changed(self, change):
        """The report of a guest of which one page was changed behind its back."""
        guest = self.guest()
        before = guest.here.report("check")["memory"]["errors"]
        with lab.Memory(guest.here) as memory:
            change(memory.map, memory.find(7777))
        report = guest.here.report("check")["memory"]
        self.assertEqual(report["errors"], before + 1)
        # Only the first is told: each test of a kind boots its own.
        lab.end_guests()
        return report["first"]

    def test_a_guest_that_is_left_alone_finds_no_error(self):
        guest = self.guest()
        before = guest.here.report()
        guest.until_beats(5)
        guest.works(before, guest.check())

    def test_a_changed_word_is_found_and_told(self):
        def change(memory, at):
            memory[at + 8 * 300] ^= 1
        self.assertRegex(self.changed(change), r"page 7777, generation \d+, word 300: expected 0x")

    def test_a_page_of_zeros_is_found(self):
        def change(memory, at):
            memory[at:at + lab.PAGE] = bytes(lab.PAGE)
        self.assertRegex(self.changed(change), r"page 7777, generation \d+, word 0: expected 0x\w+, found 0$")

    def test_a_page_as_it_was_before_is_found(self):
        guest = self.guest()
        with lab.Memory(guest.here) as memory:
            at = memory.find(4321)
            old = memory.map[at:at + lab.PAGE]
        while True:
            guest.until_beats(5)
            with lab.Memory(guest.here) as memory:
                if memory.map[at:at + lab.PAGE] != old:
                    memory.map[at:at + lab.PAGE] = old
                    break
        report = guest.here.report("check")["memory"]
        self.assertEqual(report["errors"], 1)
        self.assertRegex(report["first"], r"page 4321, generation \d+, word 2: expected")
        lab.end_guests()

    def test_a_block_that_is_lost_is_found(self):
        guest = self.guest()
        guest.until_beats(20)
        guest.here.monitor.ask("stop")
        with open(guest.disk, "r+b") as disk:
            disk.write(bytes(guest.shape.disk_mib << 20))
        guest.here.monitor.ask("cont")
        report = guest.here.report("check")["disk"]
        self.assertGreater(report["errors"], 0)
        self.assertRegex(report["first"], r"block \d+, generation \d+, word 0: expected")
        lab.end_guests()

    def test_a_guest_that_qemu_itself_moves_by_post_copy_beats_on(self):
        guest = self.guest()
        before = guest.here.report()
        guest.migrate_by_qemu("postcopy-ram", "postcopy-preempt")
        guest.until_beats()
        guest.works(before, guest.check())
