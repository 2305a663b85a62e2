# SPDX-License-Identifier: Apache-2.0
"""Every mode, with guests of every shape. A guest goes on from where the test before has left it: so
each QEMU that was a target becomes a source."""

import lab


class Modes:
    """A class that takes these in has a shape."""

    def migrate(self, mode, *options):
        reports = self.guest().migrate(mode, *options)
        self.assertEqual(reports[0]["mode"], mode)
        return reports

    def test_stop_and_copy(self):
        pages = self.migrate("stop-and-copy")[1]["pages"]
        self.assertEqual(pages["demanded"], 0)

    def test_pre_copy(self):
        # However fast it writes here, it ends.
        self.migrate("pre-copy", "--max-rounds", "5", "--downtime-limit", "5s")

    def test_post_copy(self):
        pages = self.migrate("post-copy")[1]["pages"]
        self.assertEqual(pages["copied"], 0)
        self.assertGreater(pages["pushed"] + pages["demanded"], 1000)

    def test_hybrid(self):
        pages = self.migrate("hybrid", "--max-rounds", "2")[1]["pages"]
        self.assertGreater(pages["copied"], 1000)

    def test_auto(self):
        self.migrate("auto")

    def test_verified(self):
        self.migrate("hybrid", "--max-rounds", "2", "--verify")


class Single(Modes, lab.Case):
    shape = lab.Shape()


class SingleDevices(Modes, lab.Case):
    shape = lab.Shape(devices=True)


class SingleLarge(Modes, lab.Case):
    shape = lab.Shape(memory_mib=2048, work_mib=512)


class SingleLargeDevices(Modes, lab.Case):
    shape = lab.Shape(memory_mib=2048, work_mib=512, devices=True)


class Double(Modes, lab.Case):
    shape = lab.Shape(vcpus=2)


class DoubleDevices(Modes, lab.Case):
    shape = lab.Shape(vcpus=2, devices=True)


class DoubleLarge(Modes, lab.Case):
    shape = lab.Shape(memory_mib=2048, work_mib=512, vcpus=2)


class DoubleLargeDevices(Modes, lab.Case):
    shape = lab.Shape(memory_mib=2048, work_mib=512, vcpus=2, devices=True)
