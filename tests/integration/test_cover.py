# SPDX-License-Identifier: Apache-2.0
"""Whole migrations over a pairwise cover of all settings."""

import os
import sys
import time
import unittest

import cases
import migrating

SEED = int(os.environ.get("JAUNT_TEST_SEED", "1"))


def product():
    settings = dict(cases.PRODUCT)
    if not migrating.ipv6_works():
        settings["address"] = ("127.0.0.1",)
    if os.environ.get("JAUNT_TEST_THREAD_BACKED") == "1":
        settings["thread_backed"] = (True,)
    return settings


class Cover(unittest.TestCase):
    """Its tests are made below, one for each row."""


def add(number, row):
    case = cases.Case(**row, memory_mib=(64, 96, 128)[number % 3], seed=number + 1,
                      check=(1, 64, 16)[number % 3])

    def test(self):
        if not case.thread_backed and not migrating.kvm_works():
            self.skipTest("no /dev/kvm that could be used")
        with migrating.HugePages(case.huge_pages()) as huge, migrating.Site() as site:
            if not huge.enough:
                self.skipTest(f"{case.huge_pages()} huge pages could not be reserved")
            started = time.monotonic()
            try:
                report = cases.run(site, case)
            except migrating.Failure as failure:
                if site.lacked_huge_pages():
                    self.skipTest("somebody else took the huge pages meanwhile")
                self.fail(f"{failure}\n\n{case}\n{site.transcript()}")
            print(f"\n  {time.monotonic() - started:.1f} s, {report['pages']}")
            for process in site.processes:
                print(f"  {process.command_line()}")
            sys.stdout.flush()

    name = (f"{case.mode.replace('-', '_')}_{case.workload}_{case.vcpus}_vcpu_{case.page_size}_{case.streams}_stream_"
            f"{'verify_' if case.verify else ''}push_{case.push}_"
            f"{'threads' if case.thread_backed else 'kvm'}")
    setattr(Cover, f"test_{number:02}_{name}_arrives_whole", test)


for place, settings_of_row in enumerate(cases.pairwise(product(), SEED)):
    add(place, settings_of_row)


class Pairs(unittest.TestCase):
    def test_every_two_settings_of_any_two_keys_meet_in_some_case(self):
        rows = cases.pairwise(product(), SEED)
        settings = product()
        for a in settings:
            for b in settings:
                if a < b:
                    met = {(row[a], row[b]) for row in rows}
                    self.assertEqual(len(met), len(settings[a]) * len(settings[b]), (a, b))


if __name__ == "__main__":
    migrating.main()
