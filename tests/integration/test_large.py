# SPDX-License-Identifier: Apache-2.0
"""A guest that is almost all holes: it moves without its memory being allocated anywhere."""

import unittest

import cases
import migrating

GIB = 1 << 30
MIB = 1 << 20


def bound(ram_bytes):
    """What the engine may use on each side: 32 MiB and 0.02 % of the guest's memory."""
    return 32 * MIB + ram_bytes // 5000


def resident(pid):
    """(anonymous, of shared memory), bytes."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return tuple(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


class Large(unittest.TestCase):
    def check(self, gib, thread_backed):
        case = cases.Case(memory_mib=gib * 1024, working_set=0, thread_backed=thread_backed)
        # What the guest uses: its working set, page tables (8 bytes for 2 MiB), a few pages.
        used = 64 * MIB + case.memory_mib * MIB // (2 * MIB) * 8
        with migrating.Site() as site:
            options = [option.replace("ws=0%", "ws=32m") for option in case.guest_options()]
            source = site.vm("a", *options)
            target = site.receive("b", *case.receive_options())
            site.until_working("a")
            command = site.migrate("a", target.peer, "--mode", "post-copy")
            self.assertEqual(command.wait(120), 0, command.transcript())
            site.until("b", lambda status: status["guest"]["operations_since_arrival"] > 0,
                       "the guest runs on at the target")
            allocated = migrating.memory_file(target.pid).st_blocks * 512
            _, shared = resident(target.pid)
            self.assertEqual(source.wait(60), 0, source.transcript())
            report = cases.stop(target)
            cases.check_completed(report, "receive")
            cases.check_guest(report["guest"], "receive")
            self.assertLess(allocated, used)
            self.assertLess(shared, 2 * used)  # each page may be mapped twice
            ram = report["ram_bytes"]
            self.assertEqual(ram, gib * GIB)
            self.assertGreater(report["pages"]["hole"] + report["pages"]["zero"],
                               (ram - used) // 4096)
            for side in (report, command.json()):
                self.assertGreater(side["engine_bytes"], 0)
                self.assertLess(side["engine_bytes"], bound(ram))
            print(f"\n  {gib} GiB: total {report['total_ms']:.0f} ms, allocated "
                  f"{allocated // MIB} MiB, engine {command.json()['engine_bytes'] // MIB} and "
                  f"{report['engine_bytes'] // MIB} MiB")

    def test_64_gib_of_holes_on_kvm(self):
        if not migrating.kvm_works():
            self.skipTest("no /dev/kvm that could be used")
        self.check(64, False)

    def test_64_gib_of_holes_on_threads(self):
        self.check(64, True)

    def test_256_gib_of_holes_on_kvm(self):
        if not migrating.kvm_works():
            self.skipTest("no /dev/kvm that could be used")
        # The kernel's own tables of such a guest, on both sides.
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        if free < 4 << 20:
            self.skipTest("less than 4 GiB of memory are available for the kernel's tables")
        self.check(256, False)

    def test_as_many_streams_as_there_can_be_stay_within_the_memory_of_a_few(self):
        case = cases.Case(memory_mib=256, streams=64, fault_threads=16, verify=True,
                          thread_backed=not migrating.kvm_works())
        with migrating.Site() as site:
            source = site.vm("a", *case.guest_options())
            target = site.receive("b", *case.receive_options())
            site.until_working("a")
            command = site.migrate("a", target.peer, *case.migrate_options())
            self.assertEqual(command.wait(120), 0, command.transcript())
            site.until("b", lambda status: status["guest"]["operations_since_arrival"] > 0,
                       "the guest runs on at the target")
            self.assertEqual(source.wait(60), 0, source.transcript())
            report = cases.stop(target)
            cases.check_completed(report, "receive", verify=True)
            cases.check_guest(report["guest"], "receive")
            for side in (report, command.json()):
                self.assertGreater(side["engine_bytes"], 0)
                self.assertLess(side["engine_bytes"], bound(report["ram_bytes"]))
            print(f"\n  64 streams: engine {command.json()['engine_bytes'] // 1024} and "
                  f"{report['engine_bytes'] // 1024} KiB")

    def test_the_source_allocates_nothing_for_holes_while_it_serves_them(self):
        case = cases.Case(memory_mib=8192, push="later", thread_backed=not migrating.kvm_works())
        with migrating.Site() as site:
            options = [option.replace("ws=50%", "ws=32m") for option in case.guest_options()]
            source = site.vm("a", *options)
            target = site.receive("b", *case.receive_options())
            site.until_working("a")
            command = site.migrate("a", target.peer, "--mode", "post-copy", "--push", "off", "--verify")
            site.until("b", lambda status: (status["migration"] or {}).get("phase") == "post-copy"
                       and status["migration"]["pages"]["hole"] > 0, "holes are told")
            before = migrating.memory_file(source.pid).st_blocks
            self.assertEqual(site.run("set", "b", "push=on")[0], 0)
            # The source ends with the migration: look at it for as long as it is there.
            most = before
            while command.running():
                try:
                    most = max(most, migrating.memory_file(source.pid).st_blocks)
                except (migrating.Failure, OSError):
                    break
            self.assertEqual(command.wait(60), 0, command.transcript())
            self.assertEqual(most, before)
            cases.finish(site, case, target)


if __name__ == "__main__":
    migrating.main()
