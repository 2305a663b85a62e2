# SPDX-License-Identifier: Apache-2.0
"""What the tests in nested machines share: machines that are booted once, and small migrations."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "integration")]

import cases  # noqa: E402
import migrating  # noqa: E402
import nested  # noqa: E402
from image import Image, Missing  # noqa: E402
from machine import Broken, Machine  # noqa: E402

_folder = None
_image = None
_running = {}  # a function that makes machines -> what it made, or the reason why it could not


def folder():
    """Of this run, removed at its end."""
    global _folder
    if not _folder:
        _folder = pathlib.Path(tempfile.mkdtemp(prefix="jaunt-vm-"))
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    return _folder


def image():
    global _image
    _image = _image or Image(os.environ.get("JAUNT_BUILD") or migrating.build_folder())
    return _image


def one():
    """One host on a dummy network device."""
    return [Machine(image(), folder(), "one", None, "10.8.0.1")]


def two():
    """Two hosts with a cable between them."""
    path = folder() / "cable"
    return [Machine(image(), folder(), "left", ("server", path), "10.9.0.1"),
            Machine(image(), folder(), "right", ("client", path), "10.9.0.2")]


def end_machines():
    for machines in _running.values():
        for machine in machines:
            machine.end()
    _running.clear()


atexit.register(end_machines)


def small(**settings):
    """A guest that an emulated processor moves in seconds. Its work leaves time to others: its
    thread ranks above most of them."""
    return cases.Case(**{"thread_backed": True, "memory_mib": 64, "working_set": 15, "rate": 1000,
                         **settings})


class Case(unittest.TestCase):
    maxDiff = None

    def machines(self, make):
        """Those that `make` makes, booted by the first test that wants them. Others are ended: there
        is little memory and few processors."""
        if make not in _running:
            end_machines()
            try:
                _running[make] = make()
            except Missing as error:
                self.skipTest(str(error))
            self.used = _running[make]
            for machine in self.used:
                machine.boot()
        self.used = _running[make]
        for machine in self.used:
            machine.forget()
        return self.used

    def site(self, scheme, machines):
        return nested.Site(machines, scheme)

    def transcript(self):
        """For the reader of a failure: what the machines of the test said last."""
        return "\n".join(machine.transcript() for machine in getattr(self, "used", []))
