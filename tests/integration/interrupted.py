# SPDX-License-Identifier: Apache-2.0
"""A test case of migrations that fault injection interrupts, and the guests that they move."""

import os

import cases
import migrating
import recovery


def busy(**settings):
    return cases.Case(**{"workload": "random", "working_set": 90, "check": 1,
                         **recovery.backing(), **settings})


def slow():
    """Asks for so few pages a second that most are still missing when something happens."""
    return busy(push="off", rate=3000, check=0)


class Interrupted(migrating.Case):
    def setUp(self):
        if os.environ.get("JAUNT_TEST_INJECT") != "1":
            self.skipTest("built without the points of fault injection (-Dinject=true)")
        super().setUp()

    def begin(self, case, source=None, target=None, **how):
        return recovery.begin(self.site, case, {"JAUNT_INJECT": source} if source else None,
                              {"JAUNT_INJECT": target} if target else None, **how)
