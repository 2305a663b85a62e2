# SPDX-License-Identifier: Apache-2.0
"""A guest that gives memory back, by its balloon: before it is moved, meanwhile, and afterwards."""

import time

import lab
from migrating import DONE

MIB = 1 << 20
SMALL = 300 * MIB


class SingleBalloon(lab.Case):
    shape = lab.Shape(devices=True, work_mib=64)

    def resize(self, host, size, wait=True):
        """Asks the guest to have so much memory, and waits until it has."""
        host.monitor.ask("balloon", value=size)
        deadline = time.monotonic() + 30
        while wait:
            now = host.monitor.ask("query-balloon")["actual"]
            if abs(now - size) < MIB:
                return
            self.assertLess(time.monotonic(), deadline, f"the balloon stays at {now >> 20} MiB")
            time.sleep(0.02)

    def grow_back(self, guest):
        """The guest has all its memory again, and what was given back can be used: as zeros first."""
        self.resize(guest.here, self.shape.memory_mib * MIB)
        self.assertEqual(guest.here.ask("allocate", 200 * MIB), "done")
        guest.check()
        self.assertEqual(guest.here.ask("allocate", 0), "done")

    def use(self, guest):
        """So that there is something to give back: pages that were written once."""
        self.assertEqual(guest.here.ask("allocate", 200 * MIB), "done")
        self.assertEqual(guest.here.ask("allocate", 0), "done")

    def check_before(self, mode):
        guest = self.guest()
        self.use(guest)
        self.resize(guest.here, SMALL)
        guest.migrate(mode)
        self.grow_back(guest)

    def test_inflated_before_a_post_copy(self):
        self.check_before("post-copy")

    def test_inflated_before_a_hybrid(self):
        self.check_before("hybrid")

    def test_inflated_while_memory_is_copied(self):
        guest = self.guest()
        self.use(guest)
        parts = guest.begin("--mode", "hybrid", "--bandwidth", "60MB/s")
        guest.site.until(guest.here.vm, lambda status: status["migration"] and
                         status["migration"]["bytes"]["payload"] > 10 * MIB, "it copies memory")
        self.resize(guest.here, SMALL)
        self.assertTrue(parts[2].running(), "it had ended before the balloon was large")
        guest.finish(*parts)
        guest.until_beats()
        guest.check()
        self.grow_back(guest)

    def test_inflated_and_deflated_while_pages_are_missing(self):
        guest = self.guest()
        self.use(guest)
        target, *commands = guest.begin("--mode", "post-copy", "--push", "off")
        target.monitor.event("RESUME")
        self.resize(target, SMALL)
        self.resize(target, self.shape.memory_mib * MIB)
        self.assertEqual(target.ask("allocate", 150 * MIB), "done")
        code, answer = guest.site.run("set", target.vm, "push=on")
        self.assertEqual(code, DONE, answer.transcript())
        guest.finish(target, *commands)
        guest.check()
        self.grow_back(guest)

    def test_inflated_when_it_has_arrived(self):
        guest = self.guest()
        guest.migrate("post-copy")
        self.resize(guest.here, SMALL)
        guest.check()
        self.grow_back(guest)
        # And from there on.
        guest.migrate("hybrid")
