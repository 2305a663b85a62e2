# SPDX-License-Identifier: Apache-2.0
"""Rounds of pre-copy: ended by hand, cancelled, cut off, told other limits, and again and again."""

import os
import random

import cases
import migrating
from migrating import CANCELLED, DONE, FAILED, UNKNOWN, USAGE

BACKED = not migrating.kvm_works()
# Rounds that do not end by themselves within the time of a test.
ENDLESS = ("--bandwidth", "4MB/s", "--downtime-limit", "1ms")


def writing(**settings):
    return cases.Case(**{"mode": "hybrid", "workload": "random", "working_set": 50, "check": 1,
                         "memory_mib": 64, "thread_backed": BACKED, **settings})


class Rounds(migrating.Case):
    def begin(self, case, *options, target_environment=None, proxied=False):
        """A guest that works and is in rounds: (source, target, migrate, proxy)."""
        source = self.site.vm("a", *case.guest_options())
        target = self.site.receive("b", *case.receive_options(), environment=target_environment)
        proxy = self.site.proxy(target.peer) if proxied else None
        self.site.until_working("a")
        command = self.site.migrate("a", (proxy or target).peer, *case.migrate_options(), *options)
        return source, target, command, proxy

    def in_rounds(self):
        return self.site.until(
            "a", lambda status: (status["migration"] or {}).get("phase") == "pre-copy",
            "memory is copied")

    def moves_now(self, source, case):
        """It runs at the source as if nothing had happened, and can be moved."""
        before = self.site.status("a")["guest"]["operations"]
        self.site.until("a", lambda status: status["guest"]["operations"] > before, "it runs on")
        target = self.site.receive("c", *case.receive_options())
        command = self.site.migrate("a", target.peer, *case.migrate_options())
        self.assertEqual(command.wait(60), DONE)
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, case, target, "c")

    def check_ended_at_source(self, command, target, code, word):
        self.assertEqual(command.wait(30), code)
        target.wait(30)
        for process in (command, target):
            report = process.json()
            self.assertEqual((report["result"], report["vm_is_at"]), (word, "source"))

    def test_switch_ends_the_rounds_and_the_rest_follows(self):
        case = writing()
        source, target, command, _ = self.begin(case, *ENDLESS)
        self.site.until("a", lambda status: (status["migration"] or {}).get("remaining_bytes"),
                        "it says what remains")
        code, answer = self.site.run("switch", "a")
        self.assertEqual(code, DONE, answer.transcript())
        code, answer = self.site.run("set", "a", "bandwidth=none")
        self.assertEqual(code, DONE, answer.transcript())
        self.assertEqual(command.wait(60), DONE)
        report = command.json()
        self.assertGreater(report["pages"]["pushed"] + report["pages"]["demanded"], 0)
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, case, target)

    def test_other_limits_while_it_runs_end_it_too(self):
        case = writing(mode="pre-copy", workload="idle")
        _, target, command, _ = self.begin(case, *ENDLESS)
        # At 4 MB/s the end is seconds away.
        self.site.until("a", lambda status: (status["migration"] or {}).get("eta_ms", 0) > 1000,
                        "it says when it expects the end")
        code, answer = self.site.run("set", "a", "bandwidth=none", "downtime-limit=10s")
        self.assertEqual(code, DONE, answer.transcript())
        self.assertEqual(command.wait(60), DONE)
        report = command.json()
        self.assertEqual(report["eta_ms"], 0)
        self.assertLessEqual({"at_25", "at_50", "at_75"}, set(report["eta_error_percent"]))
        cases.finish(self.site, case, target)

    def test_a_cancel_at_any_moment_of_rounds_leaves_the_source_as_it_was(self):
        chance = random.Random(int(os.environ.get("JAUNT_TEST_SEED", "1")))
        for number in range(3):
            with self.subTest(number=number), migrating.Site() as self.site:
                case = writing(mode=chance.choice(("hybrid", "pre-copy", "auto")),
                               vcpus=chance.choice((1, 2)), streams=chance.choice((1, 4)),
                               verify=chance.random() < 0.5)
                source, target, command, _ = self.begin(case, "--bandwidth", "4MB/s",
                                                        "--no-post-copy")\
                    if case.mode != "hybrid" else self.begin(case, *ENDLESS)
                self.in_rounds()
                code, answer = self.site.run("cancel", chance.choice(("a", "b")))
                self.assertEqual(code, DONE, answer.transcript())
                self.check_ended_at_source(command, target, CANCELLED, "cancelled")
                self.moves_now(source, case)

    def test_a_link_that_goes_in_a_round_ends_it_at_the_source(self):
        case = writing()
        source, target, command, proxy = self.begin(case, *ENDLESS, proxied=True)
        self.in_rounds()
        proxy.kill()
        self.check_ended_at_source(command, target, FAILED, "failed")
        self.moves_now(source, case)

    def test_a_target_that_dies_in_a_round_leaves_the_vm_at_the_source(self):
        if os.environ.get("JAUNT_TEST_INJECT") != "1":
            self.skipTest("built without the points of fault injection (-Dinject=true)")
        case = writing()
        source, _, command, _ = self.begin(
            case, target_environment={"JAUNT_INJECT": "target.side.kill.round"})
        self.assertEqual(command.wait(30), FAILED)
        self.assertEqual(command.json()["vm_is_at"], "source")
        self.moves_now(source, case)

    def test_a_source_that_dies_in_a_round_is_forgotten_by_the_target(self):
        if os.environ.get("JAUNT_TEST_INJECT") != "1":
            self.skipTest("built without the points of fault injection (-Dinject=true)")
        case = writing()
        self.site.vm("a", *case.guest_options(),
                     environment={"JAUNT_INJECT": "source.side.kill.round"})
        target = self.site.receive("b", *case.receive_options())
        self.site.until_working("a")
        command = self.site.migrate("a", target.peer, *case.migrate_options(), *ENDLESS)
        # It died with its VM; the copy at the target never ran.
        self.assertEqual(command.wait(30), UNKNOWN)
        self.assertEqual(command.json()["reason"], "owner-gone")
        self.assertEqual(target.wait(30), FAILED)
        report = target.json()
        self.assertEqual((report["result"], report["vm_is_at"]), ("failed", "source"))
        self.assertTrue(report["reason"], report)
        self.assertIsNone(self.site.status("b"))

    def test_rounds_that_may_not_end_otherwise_are_given_up_at_their_timeout(self):
        case = writing(mode="pre-copy")
        source, target, command, _ = self.begin(
            case, *ENDLESS, "--timeout", "300ms", "--timeout-action", "abort", "--no-post-copy")
        self.check_ended_at_source(command, target, FAILED, "failed")
        self.moves_now(source, case)

    def test_the_last_of_the_rounds_allowed_is_the_end_as_a_timeout_is(self):
        case = writing(mode="pre-copy")
        source, target, command, _ = self.begin(
            case, "--bandwidth", "40MB/s", "--downtime-limit", "1ms", "--max-rounds", "1",
            "--timeout-action", "abort")
        self.check_ended_at_source(command, target, FAILED, "failed")
        self.moves_now(source, case)

    def test_rounds_that_sent_most_of_it_again_were_limited_by_what_the_guest_wrote(self):
        case = writing(mode="pre-copy")
        source, target, command, _ = self.begin(
            case, "--bandwidth", "100MB/s", "--downtime-limit", "1ms", "--max-rounds", "4")
        self.assertEqual(command.wait(60), DONE)
        report = command.json()
        self.assertGreater(report["bytes"]["again"], report["bytes"]["payload"] / 2)
        self.assertEqual(report["limited_by"], "dirty-rate")
        self.assertEqual(source.wait(), DONE)
        cases.finish(self.site, case, target)

    def test_a_switch_that_was_forbidden_is_refused(self):
        case = writing(mode="pre-copy")
        source, target, command, _ = self.begin(case, *ENDLESS, "--no-post-copy")
        self.in_rounds()
        code, answer = self.site.run("set", "a", "bandwidth=100kB/s", "downtime-limit=10s")
        self.assertEqual(code, USAGE, answer.transcript())
        self.assertIn("too little", answer.transcript())
        code, answer = self.site.run("switch", "a")
        self.assertEqual(code, FAILED, answer.transcript())
        self.assertIn("no-post-copy", answer.transcript())
        code, answer = self.site.run("cancel", "a")
        self.assertEqual(code, DONE, answer.transcript())
        self.check_ended_at_source(command, target, CANCELLED, "cancelled")
        self.moves_now(source, case)

    def test_a_vm_that_stands_still_for_its_last_pages_gets_them_without_push(self):
        case = writing(mode="pre-copy", workload="idle")
        _, target, command, _ = self.begin(case, *ENDLESS)
        self.in_rounds()
        code, answer = self.site.run("set", "b", "push=off")
        self.assertEqual(code, DONE, answer.transcript())
        code, answer = self.site.run("set", "a", "bandwidth=none", "downtime-limit=3600s")
        self.assertEqual(code, DONE, answer.transcript())
        self.assertEqual(command.wait(60), DONE)
        cases.finish(self.site, case, target)

    def test_a_refused_migration_says_the_mode_that_was_asked_for(self):
        command = self.site.migrate("nobody", "tcp:127.0.0.1:1", "--mode", "hybrid")
        self.assertEqual(command.wait(30), USAGE)
        self.assertEqual(command.json()["mode"], "hybrid")

    def test_pre_copy_of_an_idle_guest_sends_each_page_once(self):
        case = writing(mode="pre-copy", workload="idle")
        _, target, command, _ = self.begin(case)
        self.assertEqual(command.wait(60), DONE)
        report = command.json()
        file = 64 << 20
        self.assertLessEqual(report["bytes"]["payload"], file * case.working_set // 100 + (2 << 20))
        cases.finish(self.site, case, target)

    def test_there_and_back_ten_times(self):
        case = writing(vcpus=2)
        here = self.site.vm("h0", *case.guest_options())
        self.site.until_working("h0")
        modes = ("hybrid", "pre-copy", "auto", "post-copy", "stop-and-copy")
        for number in range(1, 11):
            there = self.site.receive(f"h{number}", *case.receive_options())
            command = self.site.migrate(f"h{number - 1}", there.peer, "--mode",
                                        modes[number % len(modes)])
            self.assertEqual(command.wait(60), DONE)
            cases.check_pages(command.json(), "migrate")
            self.assertEqual(here.wait(30), DONE)
            name = f"h{number}"
            self.site.until(name, lambda status: status["guest"]["operations_since_arrival"] > 0,
                            "it runs on")
            here = there
        report = cases.stop(here)
        cases.check_guest(report["guest"], "the last host")

    def test_what_is_not_migrating_can_be_neither_switched_nor_set(self):
        self.site.vm("a", *writing().guest_options())
        for words in (("switch", "a"), ("set", "a", "bandwidth=1Gbit"),
                      ("set", "a", "downtime-limit=10ms")):
            code, answer = self.site.run(*words)
            self.assertEqual(code, FAILED, words)
            self.assertIn("not being moved", answer.transcript())
        for word in ("bandwidth=0", "bandwidth=fast", "downtime-limit=-1", "rounds=3"):
            code, answer = self.site.run("set", "a", word)
            self.assertEqual(code, USAGE, word)


if __name__ == "__main__":
    migrating.main()
