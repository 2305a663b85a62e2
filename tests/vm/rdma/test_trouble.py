# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around a migration over RDMA: limits, a side that is stopped, a device that is taken
away; and the other kind of address. On one host, where a machine is there soonest."""

import signal
import time

import cases
import journeys
import lab
import migrating
import nested
import recovery
from migrating import DONE, FAILED

IMPATIENT = ("--peer-timeout", "2s")


class Confined(nested.Site):
    """VMs run without CAP_IPC_LOCK and may lock `self.lockable_kib`."""

    lockable_kib = 0

    def vm(self, name, *options, environment=None):
        words = " ".join(map(str, ("vm", "run", name, "--json", *options)))
        process = self.start(
            name, "--bounding-set=-ipc_lock", "sh", "-c",
            f"ulimit -l {self.lockable_kib}; exec jaunt {words}", program="/bin/setpriv",
            environment=environment)
        process.line(r"ready: ", 60)
        return process


class Troubled(lab.Case):
    # More data than a limit of some chunks; work that leaves something to be pushed.
    LARGE = journeys.Journeys.LARGE
    hand_over = journeys.Journeys.hand_over
    finish = journeys.Journeys.finish
    check_read = journeys.Journeys.check_read

    def setUp(self):
        super().setUp()
        self.host, = self.machines(lab.one)

    def site(self, scheme="rdma", kind=nested.Site):
        return kind({"a": self.host, "b": self.host}, scheme)

    def impatient_site(self):
        site = self.site()
        migrate, receive = site.migrate, site.receive
        site.migrate = lambda *words: migrate(*words, *IMPATIENT)
        site.receive = lambda *words, **how: receive(*words, *IMPATIENT, **how)
        return site

    def begin_held(self, site, source=None, target=None):
        """Held before COMMIT, at either side."""
        processes = recovery.begin(site, lab.small(),
                                   {"JAUNT_INJECT": source} if source else None,
                                   {"JAUNT_INJECT": target} if target else None)[:3]
        recovery.until_phase(site, "b", "switchover")
        return processes


class Trouble(Troubled):
    # --- Addresses ----------------------------------------------------------------------------------

    def test_a_vm_moves_over_ipv6(self):
        self.addCleanup(setattr, self.host, "address", self.host.address)
        self.host.run("/bin/ip -6 address add fd08::1/64 dev dummy0 nodad")
        self.host.address = "[fd08::1]"
        with self.site() as site:
            report = cases.run(site, lab.small(verify=True))
            self.check_read("rdma", report)
            self.assertRegex(report["device"], r"GID fd08:0000:[0:]*:0001, ")

    # --- Limits -------------------------------------------------------------------------------------

    def test_what_exceeds_the_limit_of_locked_memory_moves_all_the_same_and_that_is_said(self):
        case = lab.small(working_set=45, verify=True)
        with self.site(kind=Confined) as site:
            site.lockable_kib = 24 << 10
            report = cases.run(site, case)
            self.check_read("rdma", report)
            source = next(process for process in site.processes
                          if "migrate" in process.arguments).json()
            self.assertIn("may pin", source["register_error"])
            self.assertIn("LimitMEMLOCK", source["register_error"])
            self.assertLessEqual(source["registered"]["bytes"], 24 << 20)
            self.assertLess(source["registered"]["bytes"], source["registered"]["wanted_bytes"])
            self.assertLess(report["pages"]["read"],
                            report["pages"]["pushed"] + report["pages"]["demanded"])

    def test_a_limit_too_low_for_the_channels_is_an_error_that_says_what_to_raise(self):
        with self.site(kind=Confined) as site:
            site.lockable_kib = 256
            source = site.vm("a", *lab.small().guest_options())
            target = site.receive("b", *lab.small().receive_options())
            site.until_working("a")
            command = site.migrate("a", target.peer)
            self.assertEqual(command.wait(), FAILED)
            report = command.json()
            self.assertEqual((report["reason"], report["vm_is_at"]), ("memory-lock", "source"))
            self.assertIn("LimitMEMLOCK", report["error"])
            recovery.runs_at_source(site, source)

    # --- A side that is stopped, and not dead: its device goes on -----------------------------------

    def test_a_target_that_is_stopped_before_commit_leaves_the_vm_at_the_source(self):
        with self.impatient_site() as site:
            source, target, command = self.begin_held(site, target="target.side.hold.switchover")
            target.signal(signal.SIGSTOP)
            self.assertEqual(command.wait(), FAILED)
            report = command.json()
            self.assertEqual((report["reason"], report["vm_is_at"]), ("peer-silent", "source"))
            recovery.runs_at_source(site, source)

    def test_a_source_that_is_stopped_before_commit_goes_on_with_the_switch(self):
        with self.impatient_site() as site:
            source, target, command = self.begin_held(
                site, source="source.side.hold.before-commit:delay_us=3000000")
            source.signal(signal.SIGSTOP)
            # In doubt the target neither runs the VM nor gives it up, however long that takes.
            time.sleep(3)
            status = site.status("b")
            self.assertEqual(recovery.phase(status), "switchover")
            self.assertEqual(status["guest"]["operations_since_arrival"], 0)
            source.signal(signal.SIGCONT)
            self.assertEqual(command.wait(60), DONE)
            cases.finish(site, lab.small(), target)

    def test_each_side_that_is_stopped_after_commit_blocks_the_other_until_it_goes_on(self):
        case = lab.small(verify=True, **self.LARGE)
        with self.site() as site:
            source, target, command = self.hand_over(site, case, *IMPATIENT, receive=IMPATIENT)
            for stopped, name in ((source, "b"), (target, "a")):
                stopped.signal(signal.SIGSTOP)
                status = recovery.until_phase(site, name, "blocked")
                recovery.check_blocked(status, ["peer-silent"])
                stopped.signal(signal.SIGCONT)
                recovery.until_phase(site, name, "post-copy")
            recovery.until_works(site, "b")
            self.assertEqual(site.run("set", "b", "push=on")[0], DONE)
            self.finish(site, case, source, target, command)


class Devices(Troubled):
    """One is taken away."""

    def remove_device(self):
        """It is gone when no process has it open any more (rxe cannot take it away from one), and made
        again behind the test."""
        self.addCleanup(self.host.run, "while rdma link show rxe0/1 >/dev/null 2>&1; do "
                        "usleep 50000; done; rdma link add rxe0 type rxe netdev dummy0")
        self.host.run("rdma link delete rxe0 >/dev/null 2>&1 &")

    def test_a_device_that_is_removed_before_commit_leaves_the_vm_at_the_source(self):
        # The target is told for as long as the peer timeout.
        with self.impatient_site() as site:
            source, target, command = self.begin_held(site,
                                                      source="source.side.hold.before-commit")
            self.remove_device()
            self.assertEqual(command.wait(), FAILED)
            report = command.json()
            self.assertEqual((report["reason"], report["vm_is_at"]), ("link-lost", "source"))
            self.assertIn("removed", report["error"])
            recovery.runs_at_source(site, source)

    def test_a_device_that_is_removed_during_reads_blocks_both_sides(self):
        case = lab.small(**self.LARGE)
        with self.site() as site:
            source, target, command = self.hand_over(site, case)
            self.assertEqual(site.run("set", "b", "push=on")[0], DONE)
            self.remove_device()
            recovery.until_phase(site, "b", "blocked")
            status = recovery.until_still(site, "b")
            # By its own device, or by the other side's having gone already.
            recovery.check_blocked(status, ["link-lost"])
            recovery.abandon_target(site, target)
            recovery.resume_at_source(site, source, command)
