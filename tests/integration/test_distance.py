# SPDX-License-Identifier: Apache-2.0
"""Every mode over a line with a delay and a rate: each ends, and every page is the source's. How fast
is measured by `jaunt-bench far`; no time is asserted here."""

import unittest

import cases
import migrating

# Of the proxy, each way of a connection: more than any of these lines holds.
UNDER_WAY = "64M"


class Distance(migrating.Case):
    def check(self, mode, round_trip_ms, rate, **settings):
        # At a pace that lets rounds converge over the longest line.
        case = cases.Case(mode=mode, vcpus=2, rate=2000, check=16,
                          thread_backed=not migrating.kvm_works(), **settings)
        source = self.site.vm("a", *case.guest_options())
        self.site.until_working("a")
        target = self.site.receive("b", *case.receive_options())
        line = self.site.proxy(target.peer, "--delay-us", round_trip_ms * 500, "--rate", rate,
                               "--buffer", UNDER_WAY)
        command = self.site.migrate("a", line.peer, *case.migrate_options())
        cases.require(command.wait(100) == migrating.DONE,
                      f"migrate failed\n{command.transcript()}")
        cases.check_completed(command.json(), "migrate", case.verify)
        cases.require(source.wait(60) == migrating.DONE, "the source did not end with 0")
        cases.finish(self.site, case, target)


def add_tests():
    """A test for each mode and line."""
    # A check with digests takes a round trip for each run of pages, so not over the longest.
    lines = {"1_ms_at_1250_mb_s": (1, 1250000000, {"verify": True}),
             "10_ms_at_125_mb_s": (10, 125000000, {"verify": True, "streams": 4}),
             "150_ms_at_125_mb_s": (150, 125000000, {})}
    for mode in cases.PRODUCT["mode"]:
        for name, (round_trip_ms, rate, settings) in lines.items():
            def test(self, mode=mode, round_trip_ms=round_trip_ms, rate=rate, settings=settings):
                self.check(mode, round_trip_ms, rate, **settings)
            setattr(Distance, f"test_{mode.replace('-', '_')}_over_{name}", test)


add_tests()

if __name__ == "__main__":
    migrating.main()
