#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad input and bad surroundings: each has its own message and the right exit code, and the VM goes on
running where it was."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import unittest

import cli_harness as harness


class Peer:
    """Listens on loopback and does to each connection what a jaunt target would not."""

    def __init__(self, behave):
        self.behave = behave
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            self.behave(connection)
        except OSError:
            pass

    def close(self):
        # shutdown() too: close() alone does not wake a thread in accept().
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            connection.close()


def http(connection):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    connection.recv(1)


def noise(connection):
    connection.sendall(os.urandom(65536))
    connection.recv(1)


def silence(connection):
    while connection.recv(65536):
        pass


def hang_up(connection):
    connection.close()


class TheOtherSide(harness.Case):
    """Whatever is at the address, the VM stays where it is."""

    def assert_stays(self, peer, *words, options=(), code=1):
        answer = self.run_jaunt("migrate", "web", peer, "--json", *options)
        report = answer.json()
        self.assertEqual(answer.code, code, f"{peer}: {answer.errors()}")
        self.assertEqual(report["exit_code"], code)
        self.assertEqual(report["result"], "failed")
        self.assertEqual(report["vm_is_at"], "source")
        self.assertTrue(report["reason"], report)
        for word in words:
            self.assertIn(word, answer.errors())
        self.assertEqual(report["error"] in answer.errors(), True)
        self.assert_runs("web")
        return report

    def test_nobody_listens(self):
        self.start_vm()
        keeper, port = harness.closed_port()
        with keeper:
            report = self.assert_stays(f"tcp:127.0.0.1:{port}", "refused", str(port))
        self.assertEqual(report["reason"], "connect-refused")

    def test_the_name_does_not_resolve(self):
        self.start_vm()
        report = self.assert_stays("tcp:no-such-host.invalid", "no-such-host.invalid")
        self.assertEqual(report["reason"], "resolve")

    def test_an_address_beyond_loopback_needs_a_word(self):
        self.start_vm()
        report = self.assert_stays("tcp:192.0.2.1", "--insecure", "encrypted", code=2)
        self.assertEqual(report["reason"], "insecure")
        answer = self.run_jaunt("receive", "tcp:0.0.0.0:0")
        self.assertEqual(answer.code, 2)
        self.assertIn("--insecure", answer.errors())

    def check_peer(self, behave, *words):
        self.start_vm()
        peer = Peer(behave)
        self.addCleanup(peer.close)
        return self.assert_stays(peer.address, *words, options=("--peer-timeout=1s",))

    def test_the_peer_speaks_http(self):
        self.check_peer(http, "jaunt")

    def test_the_peer_speaks_noise(self):
        self.check_peer(noise, "jaunt")

    def test_the_peer_says_nothing(self):
        self.check_peer(silence)

    def test_the_peer_hangs_up(self):
        self.check_peer(hang_up)

    def test_a_target_is_not_impressed_by_visitors(self):
        self.start_vm()
        receive = self.start_receive("tcp:127.0.0.1:0", "--as", "web2", "--peer-timeout=1s")
        port = int(receive.peer.rsplit(":", 1)[1])
        silent = socket.create_connection(("127.0.0.1", port))
        for words in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(65536), b"\0" * 100000):
            with socket.create_connection(("127.0.0.1", port)) as visitor:
                try:
                    visitor.sendall(words)
                except OSError:
                    pass  # it has hung up already
        answer = self.run_jaunt("migrate", "web", receive.peer)
        silent.close()
        self.assertEqual(answer.code, 0, answer.errors())
        self.assert_runs("web2")
        self.stop(receive)


class Versions(harness.Case):
    """A relay changes what the target says of itself."""

    def relay(self, target_port, change):
        def behave(source):
            target = socket.create_connection(("127.0.0.1", target_port))

            def back():
                first = True
                try:
                    while data := target.recv(1 << 16):
                        source.sendall(change(data) if first else data)
                        first = first and data == change(data)
                except OSError:
                    pass
                finally:
                    source.close()

            threading.Thread(target=back, daemon=True).start()
            try:
                while data := source.recv(1 << 16):
                    target.sendall(data)
            finally:
                target.close()

        return Peer(behave)

    def test_versions_that_differ_are_refused_with_both(self):
        self.start_vm()
        receive = self.start_receive("tcp:127.0.0.1:0", "--as", "web2")
        # Hello begins with protocol_min (field 1) and protocol_max (field 2), both 1 now; 99 takes as
        # many bytes.
        peer = self.relay(int(receive.peer.rsplit(":", 1)[1]),
                          lambda data: data.replace(b"\x08\x01\x10\x01", b"\x08\x63\x10\x63", 1))
        self.addCleanup(peer.close)
        answer = self.run_jaunt("migrate", "web", peer.address, "--json")
        self.assertEqual(answer.code, 1, answer.errors())
        self.assertIn("99", answer.errors())
        self.assertIn("version", answer.errors())
        self.assertEqual(answer.json()["vm_is_at"], "source")
        self.assert_runs("web")
        self.assertTrue(receive.alive())


class Names(harness.Case):
    def test_a_name_that_is_taken_is_refused_by_process(self):
        vm = self.start_vm("web")
        answer = self.run_jaunt("vm", "run", "web", "--memory=64M", *harness.BACKING)
        self.assertEqual(answer.code, 1)
        self.assertIn(f"process {vm.process.pid}", answer.errors())
        answer = self.run_jaunt("receive", "tcp:127.0.0.1:0", "--as", "web")
        self.assertEqual(answer.code, 1)
        self.assertIn(f"process {vm.process.pid}", answer.errors())
        self.assert_runs("web")

    def test_a_vm_whose_name_is_taken_at_the_target_stays(self):
        self.start_vm("web")
        receive = self.start_receive()  # the same runtime directory: the name is the source's
        answer = self.run_jaunt("migrate", "web", receive.peer, "--json")
        self.assertEqual(answer.code, 1, answer.errors())
        self.assertIn("--as", answer.errors())
        self.assertEqual(answer.json()["reason"], "name-taken")
        self.assert_runs("web")
        receive.wait_line("still waiting")
        self.assertEqual(self.status(receive.name)["state"], "waiting")

    def test_a_killed_owner_leaves_nothing_in_the_way(self):
        vm = self.start_vm("web")
        vm.kill()
        self.assertEqual(self.run_jaunt("status", "web").code, 2)
        self.start_vm("web")
        self.assert_runs("web")

    def test_a_port_that_is_taken_is_named(self):
        receive = self.start_receive()
        answer = self.run_jaunt("receive", receive.peer, "--json")
        self.assertEqual(answer.code, 1)
        self.assertIn(receive.peer.rsplit(":", 1)[1], answer.errors())
        self.assertIn("in use", answer.errors())
        self.assertEqual(answer.json()["result"], "failed")
        self.assertTrue(receive.alive())


class Files(harness.Case):
    def test_a_trace_that_cannot_be_written_moves_nothing(self):
        self.start_vm()
        receive = self.start_receive("tcp:127.0.0.1:0", "--as", "web2")
        for path, word in (("/dev/full", "space"), ("/no/such/trace.jsonl", "No such file"),
                           ("/proc/trace.jsonl", "trace")):
            answer = self.run_jaunt("migrate", "web", receive.peer, "--trace", path, "--json")
            self.assertEqual(answer.code, 1, answer.errors())
            self.assertIn(word, answer.errors())
            self.assertIn(path, answer.errors())
            self.assertEqual(answer.json()["vm_is_at"], "source")
            answer = self.run_jaunt("receive", "tcp:127.0.0.1:0", "--trace", path)
            self.assertEqual(answer.code, 1, answer.errors())
            self.assertIn(word, answer.errors())
        self.assert_runs("web")
        self.assertEqual(self.status("web2")["state"], "waiting")


class Permissions(harness.Case):
    def as_nobody(self, *arguments):
        """Runs a command without any privilege, in a runtime directory of its own."""
        directory = os.path.join(self.directory, "nobody")
        os.makedirs(directory, exist_ok=True)
        os.chown(directory, 65534, 65534)
        os.chmod(self.directory, 0o755)
        copy = os.path.join(self.directory, "jaunt")
        shutil.copy(shutil.which(harness.JAUNT), copy)
        os.chmod(copy, 0o755)
        return subprocess.run([copy, *arguments], env={**self.env, "JAUNT_RUNTIME_DIR": directory},
                              user=65534, group=65534, extra_groups=[], text=True,
                              capture_output=True, timeout=harness.PATIENCE, cwd="/")

    @harness.needs_kvm
    def test_without_permission_for_kvm_no_vm_is_started(self):
        if os.stat("/dev/kvm").st_mode & 0o006:
            self.skipTest("everybody may use /dev/kvm here")
        answer = self.as_nobody("vm", "run", "web", "--json")
        self.assertEqual(answer.returncode, 1, answer.stderr)
        self.assertIn("/dev/kvm", answer.stderr)
        self.assertEqual(json.loads(answer.stdout.splitlines()[-1])["reason"], "kvm-permission")

    def test_the_doctor_names_what_is_not_permitted(self):
        answer = self.as_nobody("doctor", "--json")
        report = json.loads(answer.stdout.splitlines()[-1])
        ill = [check for check in report["checks"] if not check["ok"]]
        self.assertTrue(ill, "nobody lacks nothing?")
        for check in ill:
            self.assertTrue(check["advice"], check)
        self.assertEqual(answer.returncode, 0 if report["ok"] else 1)

    def test_commands_of_another_user_are_not_heard(self):
        self.start_vm("web")
        os.chmod(self.runtime, 0o755)  # let the directory not be what keeps it out
        for name in os.listdir(self.runtime):
            os.chmod(os.path.join(self.runtime, name), 0o666)
        os.chmod(self.directory, 0o755)
        copy = os.path.join(self.directory, "jaunt")
        shutil.copy(shutil.which(harness.JAUNT), copy)
        os.chmod(copy, 0o755)
        answer = subprocess.run([copy, "cancel", "web"], env=self.env, user=65534, group=65534,
                                extra_groups=[], text=True, capture_output=True,
                                timeout=harness.PATIENCE, cwd="/")
        self.assertNotEqual(answer.returncode, 0)
        self.assertNotIn("nothing to cancel", answer.stderr)
        self.assert_runs("web")


class Room(harness.Case):
    """What the target lacks is found out before anything moves."""

    def control_group(self, limit):
        """A memory control group of v1 or v2, and how a process gets into it."""
        name = f"jaunt-test-{os.getpid()}"
        for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                           ("/sys/fs/cgroup", "memory.max")):
            path = os.path.join(root, name)
            try:
                os.mkdir(path)
            except OSError:
                continue
            self.addCleanup(os.rmdir, path)
            try:
                with open(os.path.join(path, file), "w") as out:
                    out.write(str(limit))
            except OSError:
                continue
            return path
        self.skipTest("no memory control group can be made here")

    def test_a_control_group_without_room_is_refused_at_prepare(self):
        group = self.control_group(96 << 20)

        def enter():
            with open(os.path.join(group, "cgroup.procs"), "w") as procs:
                procs.write(str(os.getpid()))

        source = self.start("vm", "run", "web", "--memory", "512M", "--workload",
                            "random:ws=256M,rate=20000", *harness.BACKING)
        source.wait_line("ready:")
        receive = self.start_receive("tcp:127.0.0.1:0", "--as", "web2", preexec_fn=enter)
        answer = self.run_jaunt("migrate", "web", receive.peer, "--json")
        self.assertEqual(answer.code, 1, answer.errors())
        self.assertEqual(answer.json()["reason"], "cgroup-memory")
        self.assertIn("limit", answer.errors())
        self.assert_runs("web")
        # Processes in the group end before it is removed: cleanups run last in, first out.
        receive.kill()

    def test_too_few_huge_pages_are_refused_at_prepare(self):
        pool = "/proc/sys/vm/nr_hugepages"
        with open("/proc/meminfo") as file:
            figures = dict(line.split(":") for line in file)
        before = figures["HugePages_Total"].strip()
        if figures["HugePages_Free"].strip() != before or figures["HugePages_Rsvd"].strip() != "0":
            self.skipTest("somebody else uses the host's huge pages")
        wanted = 40  # a VM of 32, and too few for a second

        def restore():
            with open(pool, "w") as file:
                file.write(before)

        try:
            with open(pool, "w") as file:
                file.write(str(wanted))
        except OSError as error:
            self.skipTest(f"the pool of huge pages cannot be changed: {error}")
        self.addCleanup(restore)
        with open(pool) as file:
            if int(file.read()) != wanted:
                self.skipTest("the host has no huge pages to give")
        source = self.start("vm", "run", "web", "--memory", "64M", "--page-size", "2m", *harness.BACKING)
        source.wait_line("ready:")
        receive = self.start_receive("tcp:127.0.0.1:0", "--as", "web2")
        answer = self.run_jaunt("migrate", "web", receive.peer, "--json")
        self.assertEqual(answer.code, 1, answer.errors())
        self.assertEqual(answer.json()["reason"], "no-hugepages")
        self.assertIn("nr_hugepages", answer.errors())
        self.assert_runs("web")
        again = self.run_jaunt("vm", "run", "big", "--memory", "64M", "--page-size", "2m",
                               *harness.BACKING)
        self.assertEqual(again.code, 1)
        self.assertIn("nr_hugepages", again.errors())
        for process in self.processes:
            process.kill()

    def test_a_limit_on_files_is_named(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))

        process = self.start("vm", "run", "web", *harness.BACKING, preexec_fn=limit)
        self.assertEqual(process.wait(), 1)
        self.assertIn("open files", process.errors().lower())


class BeforeCommit(harness.Case):
    @harness.needs_inject
    def test_a_target_that_dies_before_commit_costs_nothing(self):
        for place in ("prepare", "switchover", "before-commit"):
            vm = self.start_vm("web")
            receive = self.start_receive("tcp:127.0.0.1:0", "--as", "web2",
                                         env={"JAUNT_INJECT": f"side.kill.{place}"})
            answer = self.run_jaunt("migrate", "web", receive.peer, "--json")
            self.assertEqual(receive.wait(), -signal.SIGKILL, place)
            self.assertEqual(answer.code, 1, f"{place}: {answer.errors()}")
            self.assertEqual(answer.json()["vm_is_at"], "source")
            self.assert_runs("web")
            self.stop(vm)

    def test_ctrl_c_on_migrate_cancels(self):
        self.start_vm("web")
        peer = Peer(silence)
        self.addCleanup(peer.close)
        migrate = self.start("migrate", "web", peer.address, "--json")
        migrate.wait_line("preparing")
        migrate.signal(signal.SIGINT)
        self.assertEqual(migrate.wait(), 3, migrate.errors())
        self.assertEqual(migrate.json()["result"], "cancelled")
        self.assertEqual(migrate.json()["vm_is_at"], "source")
        self.assert_runs("web")

    def test_a_terminal_that_goes_before_commit_leaves_it_unknown_how_it_ends(self):
        self.start_vm("web")
        peer = Peer(silence)
        self.addCleanup(peer.close)
        migrate = self.start("migrate", "web", peer.address, "--json")
        migrate.wait_line("preparing")
        migrate.signal(signal.SIGHUP)
        self.assertEqual(migrate.wait(), 5, migrate.errors())
        self.assertEqual(migrate.json()["reason"], "not-followed")
        self.assertEqual(migrate.json()["vm_is_at"], "unknown")
        # It goes on without the command.
        self.assertIsNotNone(self.status("web")["migration"])
        self.assertEqual(self.run_jaunt("cancel", "web").code, 0)
        self.assert_runs("web")

    def test_cancel_from_another_terminal(self):
        vm = self.start_vm("web")
        peer = Peer(silence)
        self.addCleanup(peer.close)
        migrate = self.start("migrate", "web", peer.address)
        migrate.wait_line("preparing")
        answer = self.run_jaunt("cancel", "web")
        self.assertEqual(answer.code, 0, answer.errors())
        self.assertEqual(migrate.wait(), 3, migrate.errors())
        self.assert_runs("web")
        self.assertEqual(self.run_jaunt("cancel", "web").code, 1)
        self.stop(vm)

    def test_a_signal_to_the_owner_cancels_and_stops(self):
        vm = self.start_vm("web")
        peer = Peer(silence)
        self.addCleanup(peer.close)
        migrate = self.start("migrate", "web", peer.address)
        migrate.wait_line("preparing")
        self.stop(vm)
        self.assertEqual(migrate.wait(), 3, migrate.errors())

    def test_a_second_migration_is_refused_while_one_is_under_way(self):
        self.start_vm("web")
        peer = Peer(silence)
        self.addCleanup(peer.close)
        migrate = self.start("migrate", "web", peer.address)
        migrate.wait_line("preparing")
        answer = self.run_jaunt("migrate", "web", "tcp:127.0.0.1", "--json")
        self.assertEqual(answer.code, 1)
        self.assertEqual(answer.json()["reason"], "busy")
        migrate.signal(signal.SIGINT)
        self.assertEqual(migrate.wait(), 3)

    def test_an_owner_that_is_killed_is_not_said_to_run_the_vm(self):
        vm = self.start_vm("web")
        peer = Peer(silence)
        self.addCleanup(peer.close)
        migrate = self.start("migrate", "web", peer.address, "--json")
        migrate.wait_line("preparing")
        vm.kill()
        self.assertEqual(migrate.wait(), 5, migrate.errors())
        self.assertEqual(migrate.json()["vm_is_at"], "unknown")
        self.assertEqual(migrate.json()["reason"], "owner-gone")


if __name__ == "__main__":
    harness.main()
