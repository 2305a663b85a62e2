# SPDX-License-Identifier: Apache-2.0
"""A guest that moves from one QEMU to the next: by Jaunt, or by QEMU itself."""

import pathlib
import re
import time

import cases
import migrating
from image import Image, Missing  # noqa: F401, for others
from migrating import DONE
from qemu import Broken, Qemu, programs

POLL_S = 0.02
MIGRATE_S = 60
MODES = ("stop-and-copy", "pre-copy", "post-copy", "hybrid", "auto")
# Far above what a loopback does: QEMU limits itself otherwise.
NO_LIMIT = 100 << 30

_images = {}


def image(build=None):
    build = str(build or migrating.build_folder())
    if build not in _images:
        _images[build] = Image(build)
    return _images[build]


class Guest:
    """Booted by the constructor. `site`: a migrating.Site, whose commands it uses; `booting` is called
    with the QEMU once it runs."""

    def __init__(self, site, shape, words=(), pulse_port=0, user=None, booting=None):
        self.site, self.shape, self.words, self.pulse_port = site, shape, words, pulse_port
        self.user = user
        self.image = image(site.build)
        self.count = 0
        self.hosts = []  # those that it ran in, in order
        self.started = []  # those and all others that were to take it in
        self.disk = None
        if shape.devices:
            self.disk = pathlib.Path(site.directory) / "disk"
            with open(self.disk, "wb") as file:
                file.truncate(shape.disk_mib << 20)
            self.disk.chmod(0o666)
        self.here = self.start_qemu()
        self.hosts.append(self.here)
        if booting:
            booting(self.here)
        self.here.boot()

    def start_qemu(self, incoming=False):
        self.count += 1
        program = programs()[:len(self.hosts) + 1][-1]
        self.started.append(Qemu(self.site, self.image, self.shape, f"q{self.count}", incoming,
                                 self.words, self.pulse_port, self.disk, self.user, program))
        return self.started[-1]

    def arrived(self, target, keep_source=False):
        """The guest is at the target now."""
        source, self.here = self.here, target
        self.hosts.append(target)
        if not keep_source:
            source.end()
        return source

    def end(self):
        for host in self.started:
            host.end()

    # --- What it says ----------------------------------------------------------------------------------

    def console(self):
        """All of it, from the first QEMU to this one: a line may have begun at one and ended at the
        next."""
        return "".join(host.console.read_text(errors="replace") for host in self.hosts)

    def beats(self):
        return [int(number) for number in
                re.findall(r"^beat (\d+) .*errors\r?$", self.console(), re.MULTILINE)]

    def until_beats(self, count=3, seconds=30):
        """Waits for so many lines of its console, from now on."""
        before = len(self.beats())
        deadline = time.monotonic() + seconds * migrating.PATIENCE
        while len(self.beats()) < before + count:
            if time.monotonic() > deadline:
                raise Broken(f"the guest's heart does not beat; {self.here.name}'s console:\n"
                             f"{self.here.tail()}")
            time.sleep(POLL_S)

    def check(self):
        """It verifies everything and finds nothing; its heart has not missed a beat. Its report."""
        report = self.here.report("check", seconds=120)
        for part in ("memory", "disk", "screen"):
            if report[part] and report[part]["errors"]:
                raise migrating.Failure(f"the guest found {report[part]['errors']} errors, the first "
                                        f"in its {part}: {report[part]['first']}")
        beats = self.beats()
        cases.require(beats == list(range(len(beats))) and beats,
                      f"beats are missing or come twice: {_odd(beats)}")
        return report

    def works(self, before, after):
        """Between two reports, all that it does has gone on."""
        cases.require(after["memory"]["operations"] > before["memory"]["operations"],
                      "the guest visits no memory")
        if self.shape.devices:
            cases.require(after["disk"]["operations"] > before["disk"]["operations"],
                          "the guest's disk does nothing")
            cases.require(after["net"]["answered"] > before["net"]["answered"],
                          f"the guest's network does not answer: {after['net']}")
            cases.require(after["screen"]["operations"] > before["screen"]["operations"],
                          "the guest's screen does nothing")

    # --- By Jaunt --------------------------------------------------------------------------------------

    def begin(self, *options, receive=(), target=None, go=True, environment=None):
        """(target, receive, migrate): the commands run. Without `go`, migrate is a function that
        starts it. `environment`: of migrate."""
        target = target or self.start_qemu(incoming=True)
        receiving = self.site.start("receive", "tcp:127.0.0.1:0", "--as", target.vm, "--json",
                                    *receive)
        receiving.peer = receiving.line(r"ready: listening on (\S+) as").group(1)
        allowed = []
        if target.program != self.here.program:
            # The flags: of more than one processor newer releases tell some that older ones only show
            # to the guest.
            for item in ("qemu version", "qemu package", "cpu flags"):
                allowed += ["--allow-difference", item]

        def migrate():
            return self.site.start("migrate", self.here.vm, receiving.peer, "--json", *allowed,
                                   *options, environment=environment)
        return target, receiving, migrate() if go else migrate

    def finish(self, target, receiving, migrating_, keep_source=False):
        """Both commands end as they must, and the guest runs at the target alone. Both reports."""
        cases.require(migrating_.wait(MIGRATE_S) == DONE, f"migrate\n{migrating_.transcript()}")
        cases.require(receiving.wait(MIGRATE_S) == DONE, f"receive\n{receiving.transcript()}")
        reports = migrating_.json(), receiving.json()
        for report, who in zip(reports, ("migrate", "receive")):
            cases.check_completed(report, who)
        # Jaunt ends it when the guest has left for good.
        cases.require(not self.here.process.running(), "the source's QEMU has not ended")
        cases.require(target.status() == "running", f"the target is {target.status()}")
        self.arrived(target, keep_source)
        return reports

    def migrate(self, mode, *options, receive=()):
        """A whole migration in which nothing goes wrong; both reports."""
        before = self.here.report()
        reports = self.finish(*self.begin("--mode", mode, *options, receive=receive))
        self.until_beats()
        self.works(before, self.check())
        return reports

    # --- By QEMU itself ----------------------------------------------------------------------------------

    def migrate_by_qemu(self, *capabilities, bandwidth=NO_LIMIT, target=None, keep_source=False,
                        **parameters):
        """Its own migration over TCP, to the end. (seconds in all, STOP to RESUME in seconds)"""
        target, source = target or self.start_qemu(incoming=True), self.here.monitor
        for monitor in (source, target.monitor):
            monitor.ask("migrate-set-capabilities", capabilities=[
                {"capability": name, "state": name in ("events", *capabilities)}
                for name in ("events", "postcopy-ram", "postcopy-preempt", "multifd",
                             "x-ignore-shared", "late-block-activate")])
            monitor.ask("migrate-set-parameters", max_bandwidth=bandwidth,
                        **{"max_postcopy_bandwidth": 0, **parameters})
            monitor.events.clear()
        target.monitor.ask("migrate-incoming", uri="tcp:127.0.0.1:0")
        address = target.monitor.ask("query-migrate")["socket-address"][0]
        began = time.time()
        source.ask("migrate", uri=f"tcp:127.0.0.1:{address['port']}")
        if "postcopy-ram" in capabilities:
            source.event("MIGRATION", status="active")
            source.ask("migrate-start-postcopy")
        ended = max(monitor.event("MIGRATION", MIGRATE_S, status="completed")
                    for monitor in (source, target.monitor))
        down = target.monitor.event("RESUME") - source.event("STOP")
        self.arrived(target, keep_source)
        return ended - began, down


def _odd(beats):
    """The first place where they do not follow each other."""
    for expected, beat in enumerate(beats):
        if beat != expected:
            return beats[max(0, expected - 3):expected + 4]
    return "none"
