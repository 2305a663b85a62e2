#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whole lives of VMs through the commands: what is said, who may end what, and what goes on alone."""

import json
import os
import pty
import resource
import signal
import socket
import subprocess
import unittest

import cli_harness as harness

MIGRATE_FIELDS = {
    "schema": str, "result": str, "vm_is_at": str, "reason": str, "error": str, "mode": str,
    "ram_bytes": int, "total_ms": float, "downtime_us": float, "pages": dict, "bytes": dict,
    "throughput_bytes_per_s": float, "verified_pages": int, "mismatched_pages": int, "host": str,
    "kernel": str, "build": dict, "exit_code": int,
}
PAGES = ("total", "zero", "hole", "pushed", "demanded", "duplicate")
PERCENTILES = ("count", "p50", "p90", "p99", "p999", "max")


class Case(harness.Case):
    def assert_report(self, report, schema):
        self.assertEqual(report["schema"], schema)
        for field, kind in MIGRATE_FIELDS.items():
            self.assertIsInstance(report[field], kind, field)
        for field in PAGES:
            self.assertIsInstance(report["pages"][field], int, field)
        for field in ("wire", "payload"):
            self.assertIsInstance(report["bytes"][field], int, field)
        self.assertEqual(report["result"], "completed")
        self.assertEqual(report["vm_is_at"], "target")
        self.assertEqual(report["mode"], "auto")
        self.assertEqual(report["ram_bytes"], 64 << 20)
        self.assertEqual(report["pages"]["missing"], 0)
        self.assertGreater(report["downtime_us"], 0)

    def begin_without_push(self, *options):
        """A VM that runs at the target and cannot become complete by itself: its source, its target,
        and the command that follows."""
        source = self.start_vm("web")
        target = self.start_receive("tcp:127.0.0.1:0", "--as", "web2", "--json")
        migrate = self.start("migrate", "web", target.peer, "--mode=post-copy", "--push=off",
                             "--json", *options)
        target.wait_line("runs here now")
        source.wait_line("runs at")
        migrate.wait_line("missing")
        return source, target, migrate


class Complete(Case):
    def test_a_migration_tells_all_it_promised_on_both_sides(self):
        source = self.start_vm("web", "--json")
        target = self.start_receive("tcp:127.0.0.1:0", "--as", "web2", "--json")
        migrate = self.run_jaunt("migrate", "web", target.peer, "--verify", "--json")
        self.assertEqual(migrate.code, 0, migrate.errors())
        self.assertEqual(len(migrate.output.strip().split("\n")), 1)
        report = migrate.json()
        self.assert_report(report, "jaunt.migrate/1")
        self.assertGreater(report["verified_pages"], 0)
        self.assertEqual(report["mismatched_pages"], 0)

        self.assertEqual(source.wait(), 0, source.errors())
        self.assertEqual(source.json()["result"], "moved")
        self.assertEqual(self.run_jaunt("status", "web").code, 2)
        self.assert_runs("web2")

        self.stop(target)
        report = target.json()
        self.assert_report(report, "jaunt.receive/1")
        for field in PERCENTILES:
            self.assertIn(field, report["fault_latency_us"])
            self.assertIn(field, report["guest"]["touch_latency_us"])
        for field in ("operations", "memory_errors", "longest_stall_us",
                      "ms_to_90_percent_throughput"):
            self.assertIn(field, report["guest"])
        self.assertEqual(report["guest"]["memory_errors"], 0)
        self.assertEqual(report["guest"]["self_check"], "clean")
        self.assertGreater(report["guest"]["operations"], 0)

    def test_people_are_told_in_words_and_progress_stays_off_stdout(self):
        self.start_vm("web")
        target = self.start_receive("tcp:127.0.0.1:0", "--as", "web2")
        migrate = self.run_jaunt("migrate", "web", target.peer)
        self.assertEqual(migrate.code, 0, migrate.errors())
        self.assertIn(f"runs at {target.peer} now", migrate.output)
        self.assertIn("downtime", migrate.output)
        self.assertNotIn("missing", migrate.output)
        self.assertNotIn("\033", migrate.errors() + migrate.output)
        self.assertNotIn("\r", migrate.errors() + migrate.output)
        self.stop(target)
        self.assertIn("memory errors", target.output)

    def test_a_terminal_gets_one_line_that_is_redrawn(self):
        self.start_vm("web")
        target = self.start_receive("tcp:127.0.0.1:0", "--as", "web2")
        leader, follower = pty.openpty()
        migrate = subprocess.Popen([harness.JAUNT, "migrate", "web", target.peer], env=self.env,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=follower, start_new_session=True)
        os.close(follower)
        shown = b""
        try:
            while data := os.read(leader, 65536):
                shown += data
        except OSError:
            pass  # the other end is closed: all of it was read
        output, _ = migrate.communicate(timeout=harness.PATIENCE)
        os.close(leader)
        self.assertEqual(migrate.returncode, 0, shown)
        self.assertIn(b"100 %", shown)
        self.assertIn(b"\033[K", shown)
        self.assertEqual(shown.count(b"\n"), 1, shown)
        self.assertIn(b"runs at", output)

    def test_a_dry_run_moves_nothing_and_leaves_the_target_waiting(self):
        self.start_vm("web")
        target = self.start_receive("tcp:127.0.0.1:0", "--as", "web2")
        dry = self.run_jaunt("migrate", "web", target.peer, "--dry-run", "--json")
        self.assertEqual(dry.code, 0, dry.errors())
        self.assertEqual(dry.json()["vm_is_at"], "source")
        self.assertTrue(dry.json()["dry_run"])
        self.assert_runs("web")
        self.wait_status("web2", lambda status: status["state"] == "waiting")
        wet = self.run_jaunt("migrate", "web", target.peer)
        self.assertEqual(wet.code, 0, wet.errors())
        self.assert_runs("web2")

    def test_a_receive_without_a_name_takes_the_vms(self):
        other = {"JAUNT_RUNTIME_DIR": os.path.join(self.directory, "other-host")}
        self.start_vm("web")
        target = self.start_receive(env=other)
        self.assertRegex(target.name, r"^receive-\d+$")
        self.assertEqual(self.run_jaunt("migrate", "web", target.peer).code, 0)
        answer = self.run_jaunt("status", "--json", env=other)
        self.assertEqual([vm["name"] for vm in answer.json()["vms"]], ["web"])
        # Gone from there without a trace, the former name too.
        self.stop(target)
        self.assertEqual(os.listdir(other["JAUNT_RUNTIME_DIR"]), [])

    def test_a_vm_can_be_moved_on(self):
        self.start_vm("a")
        first = self.start_receive("tcp:127.0.0.1:0", "--as", "b", "--json")
        second = self.start_receive("tcp:[::1]:0", "--as", "c", "--json")
        self.assertEqual(self.run_jaunt("migrate", "a", first.peer).code, 0)
        self.assert_runs("b")
        onward = self.run_jaunt("migrate", "b", second.peer)
        self.assertEqual(onward.code, 0, onward.errors())
        self.assertEqual(first.wait(), 0, first.errors())
        self.assertEqual(first.json()["result"], "completed")
        self.assertEqual(first.json()["onward"]["result"], "completed")
        self.assert_runs("c")
        self.stop(second)
        self.assertEqual(second.json()["guest"]["memory_errors"], 0)

    def test_a_trace_is_json_lines(self):
        self.start_vm("web")
        target = self.start_receive("tcp:127.0.0.1:0", "--as", "web2", "--trace",
                                    os.path.join(self.directory, "target.jsonl"))
        migrate = self.start("migrate", "web", target.peer, "--mode=post-copy", "--push=off",
                             "--trace", os.path.join(self.directory, "source.jsonl"))
        target.wait_line("runs here now")
        self.wait_status("web2", lambda vm: vm["migration"]["pages"]["demanded"])
        self.assertEqual(self.run_jaunt("set", "web2", "push=on").code, 0)
        self.assertEqual(migrate.wait(), 0, migrate.errors())
        self.stop(target)
        for name in ("source.jsonl", "target.jsonl"):
            with open(os.path.join(self.directory, name)) as lines:
                records = [json.loads(line) for line in lines if line.strip()]
            self.assertEqual((records[0]["what"], records[-1]["what"]), ("trace", "end"), name)
            kinds = {record["what"] for record in records}
            fates = {record["fate"] for record in records if record["what"] == "run"}
            if name == "target.jsonl":
                self.assertLessEqual({"fault", "grant", "run", "event"}, kinds)
                self.assertLessEqual({"pushed", "demanded"}, fates)
            else:
                self.assertLessEqual({"run", "event"}, kinds)
                self.assertLessEqual({"fetched", "granted"}, fates)

    def test_a_service_manager_hears_of_readiness(self):
        path = os.path.join(self.directory, "notify")
        for address in (path, f"@jaunt-test-{os.getpid()}"):
            manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            manager.settimeout(harness.PATIENCE)
            manager.bind("\0" + address[1:] if address[0] == "@" else address)
            receive = self.start("receive", "tcp:127.0.0.1:0", env={"NOTIFY_SOCKET": address})
            self.assertIn(b"READY=1", manager.recv(4096))
            manager.close()
            receive.kill()


class Stopping(Case):
    def test_a_signal_stops_a_vm_that_is_at_home(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            vm = self.start_vm("web", "--json")
            vm.signal(number)
            self.assertEqual(vm.wait(), 0, vm.errors())
            self.assertEqual(vm.json()["result"], "stopped")
            self.assertEqual(vm.json()["guest"]["self_check"], "clean")
            self.assertEqual(os.listdir(self.runtime), [])

    def test_a_vm_outlives_that_its_commands_cannot_be_listened_to(self):
        # poll() takes no more descriptors than a process may have: with 2 the signals are still
        # heard by it, with none nothing is. At its end the leak sanitizer would need some, too.
        env = {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}
        for most in (2, 0):
            vm = self.start_vm("web", "--json", env=env)
            pid = vm.process.pid
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            for _ in range(2):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, limits[1]))
                # What it waits in begins with the next thing that happens.
                ask = self.start("status", "web", "--json")
                vm.wait_line("cannot listen to other commands")
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
                self.assertEqual(ask.wait(), 0, ask.errors())
                self.assert_runs("web")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, limits[1]))
            vm.signal(signal.SIGTERM)
            self.assertEqual(vm.wait(), 0, vm.errors())
            self.assertEqual(vm.json()["guest"]["self_check"], "clean")

    def test_a_waiting_receive_ends_by_signal_or_by_cancel(self):
        receive = self.start_receive("tcp:127.0.0.1:0", "--json")
        receive.signal(signal.SIGINT)
        self.assertEqual(receive.wait(), 3, receive.errors())
        self.assertEqual(receive.json()["result"], "cancelled")
        receive = self.start_receive("tcp:127.0.0.1:0", "--json")
        cancel = self.run_jaunt("cancel", receive.name)
        self.assertEqual(cancel.code, 0, cancel.errors())
        self.assertEqual(receive.wait(), 3, receive.errors())
        self.assertIsNone(receive.json()["guest"])

    def test_after_commit_signals_and_cancel_are_refused_on_both_sides(self):
        source, target, migrate = self.begin_without_push()
        for process in (source, target):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                process.signal(number)
                self.assertIn("abandon", process.wait_line("refused"))
            self.assertTrue(process.alive())
        for name in ("web", "web2"):
            answer = self.run_jaunt("cancel", name)
            self.assertEqual(answer.code, 4, answer.errors())
            self.assertIn("COMMIT", answer.errors())
        migrate.signal(signal.SIGINT)
        migrate.wait_line("too late")
        self.assert_runs("web2")
        answer = self.run_jaunt("set", "web", "push=on")
        self.assertEqual(answer.code, 0, answer.errors())
        self.assertEqual(migrate.wait(), 0, migrate.errors())
        self.assertEqual(source.wait(), 0)
        self.stop(target)
        self.assertEqual(target.json()["guest"]["memory_errors"], 0)

    def test_push_can_be_turned_on_at_the_target(self):
        source, target, migrate = self.begin_without_push()
        self.assertEqual(self.run_jaunt("set", "web2", "push=on").code, 0)
        self.assertEqual(migrate.wait(), 0, migrate.errors())
        self.assertEqual(source.wait(), 0)
        self.stop(target)

    def test_a_second_signal_makes_migrate_leave_it_alone(self):
        source, target, migrate = self.begin_without_push()
        migrate.signal(signal.SIGINT)
        migrate.wait_line("too late")
        migrate.signal(signal.SIGINT)
        self.assertEqual(migrate.wait(), 4, migrate.errors())
        self.assertEqual(migrate.json()["reason"], "not-followed")
        self.assertEqual(self.run_jaunt("set", "web", "push=on").code, 0)
        self.assertEqual(source.wait(), 0, source.errors())
        self.stop(target)

    def test_a_migration_goes_on_without_the_command_that_asked_for_it(self):
        source, target, migrate = self.begin_without_push()
        migrate.kill()
        self.assert_runs("web2")
        self.assertEqual(self.run_jaunt("set", "web", "push=on").code, 0)
        self.assertEqual(source.wait(), 0, source.errors())
        self.assert_runs("web2")
        self.stop(target)

    def test_abandoning_the_source_is_an_incomplete_migration(self):
        source, target, migrate = self.begin_without_push()
        answer = self.run_jaunt("cancel", "web", "--abandon")
        self.assertEqual(answer.code, 0, answer.errors())
        self.assertEqual(source.wait(), 4, source.errors())
        self.assertEqual(migrate.wait(), 4, migrate.errors())
        self.assertEqual(migrate.json()["result"], "incomplete")
        self.wait_status("web2", lambda status: status["state"] == "blocked")
        answer = self.run_jaunt("cancel", "web2", "--abandon")
        self.assertEqual(answer.code, 0, answer.errors())
        self.assertEqual(target.wait(), 4, target.errors())
        self.assertEqual(target.json()["result"], "incomplete")


class Losses(Case):
    def test_a_killed_source_blocks_the_target_which_says_so(self):
        source, target, migrate = self.begin_without_push()
        missing = self.status("web2")["migration"]["pages"]["missing"]
        self.assertGreater(missing, 0)
        source.kill()
        self.assertEqual(migrate.wait(), 4, migrate.errors())
        self.assertEqual(migrate.json()["reason"], "owner-gone")
        status = self.wait_status("web2", lambda now: now["state"] == "blocked")
        self.assertEqual(status["migration"]["vm_is_at"], "blocked")
        self.assertTrue(status["migration"]["reason"])
        self.assertEqual(status["guest"]["memory_errors"], 0)
        words = self.run_jaunt("status", "web2").output
        self.assertRegex(words, r"blocked, \d+ pages missing: ")
        self.assertIn("--abandon", words)
        target.signal(signal.SIGTERM)
        target.wait_line("refused")
        self.assertTrue(target.alive())

    def test_a_killed_target_leaves_the_source_blocked_until_it_is_fenced(self):
        source, target, migrate = self.begin_without_push()
        target.kill()
        status = self.wait_status("web", lambda now: now["state"] == "blocked")
        self.assertGreater(status["migration"]["pages"]["missing"], 0)
        source.signal(signal.SIGTERM)
        source.wait_line("refused")
        answer = self.run_jaunt("resume", "web")
        self.assertEqual(answer.code, 2)
        answer = self.run_jaunt("resume", "web", "--peer-fenced")
        self.assertEqual(answer.code, 0, answer.errors())
        self.assertEqual(migrate.wait(), 1, migrate.errors())
        self.assertEqual(migrate.json()["vm_is_at"], "source")
        self.assert_runs("web")
        self.stop(source)

    def test_resume_is_refused_while_the_other_side_lives(self):
        source, target, migrate = self.begin_without_push()
        for name in ("web", "web2"):
            answer = self.run_jaunt("resume", name, "--peer-fenced")
            self.assertEqual(answer.code, 1, answer.errors())
        self.assert_runs("web2")


class Manners(Case):
    def connect(self, name):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(harness.PATIENCE)
        connection.connect(os.path.join(self.runtime, f"{name}.sock"))
        return connection

    def test_hostile_requests_keep_nobody_waiting(self):
        self.start_vm("web")
        kept = []
        for words in (b"", b"{", b'{"command":', b"\0" * 70000, b"[" * 60000 + b"\n",
                      b"GET / HTTP/1.1\r\n\r\n", b'{"command":"migrate"}\n',
                      b'{"command":"migrate","peer":7}\n',
                      b'{"command":"migrate","peer":"tcp:x","streams":1e9}\n',
                      b'{"command":"set","push":"x"}\n', b'{"command":"\xff"}\n',
                      b'{"command":"explode"}\n', b'{"command":null}\n', b"7\n"):
            connection = self.connect("web")
            try:
                connection.sendall(words)
            except OSError:
                pass  # it was refused before it had said all
            kept.append(connection)
        for _ in range(80):
            kept.append(self.connect("web"))
            self.run_jaunt("status", "web") if len(kept) % 20 == 0 else None
        self.assert_runs("web")
        for connection in kept:
            connection.close()

    def test_a_request_that_makes_no_sense_is_answered_with_why(self):
        self.start_vm("web")
        with self.connect("web") as connection:
            with connection.makefile("rw") as file:
                file.write('{"command":"explode"}\n{"command":"migrate"}\n')
                file.flush()
                for code in (2, 2):
                    answer = json.loads(file.readline())
                    self.assertFalse(answer["ok"])
                    self.assertEqual(answer["code"], code)
                    self.assertTrue(answer["error"])

    def test_status_shows_both_sides_and_every_vm(self):
        source, target, migrate = self.begin_without_push()
        waiting = self.start_receive("tcp:127.0.0.1:0", "--as", "spare")
        vms = {vm["name"]: vm for vm in self.run_jaunt("status", "--json").json()["vms"]}
        self.assertEqual(set(vms), {"web", "web2", "spare"})
        self.assertEqual(vms["web"]["state"], "leaving")
        self.assertEqual(vms["web"]["migration"]["direction"], "outgoing")
        self.assertEqual(vms["web2"]["state"], "running")
        self.assertEqual(vms["web2"]["migration"]["direction"], "incoming")
        self.assertFalse(vms["web"]["migration"]["push"])
        self.assertEqual(vms["spare"]["state"], "waiting")
        self.assertEqual(vms["web"]["memory_bytes"], 64 << 20)
        words = self.run_jaunt().output
        for name in vms:
            self.assertIn(name, words)
        self.assertEqual(self.run_jaunt("cancel", "spare").code, 0)
        self.assertEqual(waiting.wait(), 3)

    def test_the_doctor_looks_at_host_vm_and_peer(self):
        self.start_vm("web")
        keeper, port = harness.closed_port()
        with keeper:
            answer = self.run_jaunt("doctor", "web", f"tcp:127.0.0.1:{port}", "--json")
        checks = {check["name"]: check for check in answer.json()["checks"]}
        self.assertTrue(checks["userfaultfd"]["ok"], checks["userfaultfd"])
        self.assertTrue(checks["io_uring"]["ok"])
        self.assertTrue(checks["vm"]["ok"])
        self.assertTrue(checks["vm-can-move"]["ok"])
        self.assertFalse(checks["peer"]["ok"])
        self.assertIn("receive", checks["peer"]["advice"])
        self.assertEqual(answer.code, 1)
        target = self.start_receive("tcp:127.0.0.1:0", "--as", "web2")
        answer = self.run_jaunt("doctor", "web", target.peer, "--json")
        self.assertEqual(answer.code, 0, answer.output)
        self.assertTrue(answer.json()["ok"])
        # The visit does not count as a source.
        self.assertEqual(self.run_jaunt("migrate", "web", target.peer).code, 0)
        answer = self.run_jaunt("doctor", "nobody")
        self.assertEqual(answer.code, 1)
        self.assertIn("MISSING", answer.output)


if __name__ == "__main__":
    unittest.TestCase.longMessage = True
    harness.main()
