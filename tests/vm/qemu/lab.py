# SPDX-License-Identifier: Apache-2.0
"""What the tests with guests of QEMU share: guests that are booted once for a class of tests."""

import atexit
import mmap
import pathlib
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "integration")]

import migrating  # noqa: E402
import recovery  # noqa: E402
import travel  # noqa: E402
from image import Missing  # noqa: E402
from qemu import Broken, Shape  # noqa: E402, F401

PAGE = 4096
MAGIC = b"JUNTPAGE"

_kept = {}  # a class of tests -> its (site, guest)


def end_guests():
    for site, guest in _kept.values():
        guest.end()
        site.__exit__(None, None, None)
    _kept.clear()


atexit.register(end_guests)


class Case(unittest.TestCase):
    maxDiff = None
    shape = Shape()

    def setUp(self):
        self.sites = []

    def boot(self, shape=None, **how):
        """A guest, and a site, of this test alone."""
        end_guests()
        site = migrating.Site()
        self.addCleanup(site.__exit__, None, None, None)
        self.sites.append(site)
        guest = self._boot(site, shape or self.shape, **how)
        self.addCleanup(guest.end)
        return guest

    def _boot(self, site, shape, **how):
        try:
            return travel.Guest(site, shape, **how)
        except Missing as error:
            self.skipTest(str(error))

    def guest(self):
        """That of the class, wherever the tests before have left it; booted anew after a failure."""
        kind = type(self)
        if kind not in _kept:
            end_guests()
            site = migrating.Site()
            try:
                _kept[kind] = site, self._boot(site, self.shape)
            except BaseException:
                print("\n".join("# " + line for line in site.transcript().splitlines()[-40:]))
                site.__exit__(None, None, None)
                raise
        site, guest = _kept[kind]
        self.sites.append(site)
        return guest

    def until_loaded(self, guest, target):
        """Of a migration that is held before COMMIT: the guest stands still, and its state has been
        loaded."""
        recovery.until_phase(guest.site, guest.here.vm, "switchover")
        target.monitor.event("MIGRATION", status="completed")

    def transcript(self):
        """For the reader of a failure: what the last commands said."""
        return "\n".join(process.transcript() for site in self.sites
                         for process in site.processes[-6:])


# --- What the tests do to a guest behind its back -----------------------------------------------------


class Memory:
    """The guest's RAM as its file has it; a context manager within which the guest stands still."""

    def __init__(self, host):
        self.host = host

    def __enter__(self):
        self.host.monitor.ask("stop")
        with open(self.host.ram, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)
        return self

    def __exit__(self, kind, error, trace):
        self.map.close()
        self.host.monitor.ask("cont")

    def find(self, number):
        """Where the page of that number of the memory workload lies: the offset."""
        head = MAGIC + number.to_bytes(8, "little")
        at = self.map.find(head)
        while at >= 0 and at % PAGE:
            at = self.map.find(head, at + 1)
        if at < 0:
            raise Broken(f"page {number} of the workload is not in the guest's memory")
        return at
