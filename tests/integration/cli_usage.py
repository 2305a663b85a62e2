#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What makes no sense on the command line is refused at once, with exit code 2 and a way out."""

import os
import re
import unittest

import cli_harness as harness


class Usage(harness.Case):
    def assert_refused(self, arguments, *words):
        answer = self.run_jaunt(*arguments)
        self.assertEqual(answer.code, 2, f"{arguments}: {answer.errors()}")
        for word in words:
            self.assertIn(word, answer.errors(), arguments)
        self.assertEqual(answer.output, "")

    def test_an_unknown_command_is_answered_with_those_there_are(self):
        self.assert_refused(["migrat", "web", "tcp:127.0.0.1"], 'did you mean "migrate"',
                            "receive", "doctor")
        self.assert_refused(["frobnicate"], "no command", "status")

    def test_sizes_that_make_no_sense(self):
        for size in ["", "0", "-1G", "pig", "1Q", "1e9", "nan", "99999999999G", "1G1", "0x10"]:
            self.assert_refused(["vm", "run", "web", f"--memory={size}"], "512M")
        for size in ["1", "63M", "65M", "1025K"]:
            self.assert_refused(["vm", "run", "web", f"--memory={size}"], "64M")

    def test_rates_that_make_no_sense(self):
        for rate in ["", "0", "fast", "-1MB/s", "10MB/h", "1.G"]:
            self.assert_refused(["migrate", "web", "tcp:127.0.0.1", f"--bandwidth={rate}"],
                                "125MB/s")

    def test_rates_that_are_too_little_to_tell_the_other_side_from_a_silent_one(self):
        for options, least in ((["--bandwidth=100kB/s"], "0.4"),
                               (["--bandwidth=4MB/s", "--streams=16"], "6.7"),
                               (["--bandwidth=4MB/s", "--peer-timeout=500ms"], "8.3")):
            self.assert_refused(["migrate", "web", "tcp:127.0.0.1", *options],
                                "too little", f"It can be {least}")

    def test_options_that_contradict_each_other(self):
        for options, word in (
                (["--mode=post-copy", "--no-post-copy"], "no-post-copy forbids"),
                (["--mode=hybrid", "--no-post-copy"], "no-post-copy forbids"),
                (["--push=off"], "modes post-copy and hybrid do without"),
                (["--mode=pre-copy", "--push=off"], "nothing else would complete"),
                (["--mode=hybrid", "--throttle"], "nothing to throttle"),
                (["--mode=post-copy", "--max-rounds=3"], "has no rounds"),
                (["--mode=stop-and-copy", "--timeout=3s"], "has no rounds"),
                (["--mode=post-copy", "--tracker=driver"], "tracks no writes"),
                (["--timeout-action=abort"], "--timeout and --max-rounds"),
                (["--total-limit=100ms"], "below that of the downtime"),
                (["--downtime-limit=2h"], "10s"), (["--downtime-limit=0"], "10s"),
                (["--tracker=magic"], "magic"),
                (["--total-weight=0"], "above 0"), (["--total-weight=nan"], "above 0"),
                (["--total-weight=1001"], "0 to 1000"),
                (["--max-rounds=0"], "from 1 to 10000"), (["--timeout-action=pray"], "pray")):
            self.assert_refused(["migrate", "web", "tcp:127.0.0.1", *options], word)

    def test_numbers_out_of_their_limits(self):
        for streams in ["0", "65", "-1", "many", "1.5", ""]:
            self.assert_refused(["migrate", "web", "tcp:127.0.0.1", f"--streams={streams}"],
                                "from 1 to 64")
        for vcpus in ["0", "65", "two"]:
            self.assert_refused(["vm", "run", "web", f"--vcpus={vcpus}"], "from 1 to 64")
        for threads in ["0", "17"]:
            self.assert_refused(["receive", "tcp:127.0.0.1", f"--fault-threads={threads}"],
                                "from 1 to 16")
        for time in ["0", "-1", "1h", "4000"]:
            self.assert_refused(["migrate", "web", "tcp:127.0.0.1", f"--peer-timeout={time}"],
                                "10s")

    def test_options_that_make_no_sense(self):
        self.assert_refused(["migrate", "web", "tcp:127.0.0.1", "--push=maybe"], "on or off")
        self.assert_refused(["migrate", "web", "tcp:127.0.0.1", "--mode=teleport"], "post-copy")
        self.assert_refused(["migrate", "web", "tcp:127.0.0.1", "--frob"], "--help")
        self.assert_refused(["migrate", "web", "tcp:127.0.0.1", "--trace="], "--trace")
        self.assert_refused(["vm", "run", "web", "--page-size=8k"], "4k")
        self.assert_refused(["vm", "run", "web", "--workload=dance"], "random", "sweep")
        self.assert_refused(["vm", "run", "web", "--workload=random:ws=elephant"], "ws")
        self.assert_refused(["vm", "run", "web", "--workload=random:colour=red"], "colour")
        self.assert_refused(["set", "web", "push=perhaps"], "on or")
        self.assert_refused(["set", "web", "pull=on"], "push=on")

    def test_arguments_too_few_or_too_many(self):
        self.assert_refused(["vm"], "vm run")
        self.assert_refused(["vm", "run"], "name")
        self.assert_refused(["vm", "run", "a", "b"], '"b"')
        self.assert_refused(["receive"], "address")
        self.assert_refused(["receive", "tcp:127.0.0.1", "tcp:127.0.0.2"], "one address")
        self.assert_refused(["migrate", "web"], "where to move it")
        self.assert_refused(["migrate", "a", "tcp:127.0.0.1", "c"], '"c"')
        self.assert_refused(["cancel"], "name of a VM")
        self.assert_refused(["status", "a", "b"], '"b"')
        self.assert_refused(["version", "a"], '"a"')

    def test_addresses_that_are_none(self):
        for peer in ["127.0.0.1", "tcp:", "tcp::7420", "tcp:a:b", "tcp:[::1", "tcp:::1", "ib:a",
                     "tcp:a:99999", "http://a"]:
            self.assert_refused(["migrate", "web", peer], "tcp:")
            self.assert_refused(["receive", peer], "tcp:")
        self.assert_refused(["migrate", "web", "tcp:127.0.0.1:0"], "port 0")

    def test_names_that_could_be_anything_else(self):
        for name in ["", "../web", "a/b", "a b", ".web", "x" * 64, "web\n", "wéb"]:
            self.assert_refused(["vm", "run", name], "letters")
            self.assert_refused(["receive", "tcp:127.0.0.1", "--as", name], "letters")
            self.assert_refused(["cancel", name], "letters")

    def test_resume_without_the_warrant_says_what_it_would_do(self):
        self.assert_refused(["resume", "web"], "--peer-fenced", "other host")

    def test_an_unknown_vm_is_answered_with_the_known_ones(self):
        self.start_vm("web")
        for arguments in (["migrate", "wbe", "tcp:127.0.0.1"], ["cancel", "wbe"], ["status", "wbe"],
                          ["set", "wbe", "push=on"], ["resume", "wbe", "--peer-fenced"]):
            self.assert_refused(arguments, "no VM named wbe", "web")
        self.assert_runs("web")

    def test_a_json_report_is_given_even_for_an_unknown_vm(self):
        answer = self.run_jaunt("migrate", "nobody", "tcp:127.0.0.1", "--json")
        self.assertEqual(answer.code, 2)
        self.assertEqual(answer.json()["reason"], "unknown-vm")
        self.assertEqual(answer.json()["result"], "failed")

    def test_help_is_there_for_every_command_and_goes_to_stdout(self):
        commands = [["vm", "run"], ["receive"], ["migrate"], ["status"], ["cancel"], ["resume"],
                    ["set"], ["switch"], ["doctor"], ["version"], []]
        for command in commands:
            answer = self.run_jaunt(*command, "--help")
            self.assertEqual(answer.code, 0, command)
            self.assertIn("Usage: jaunt", answer.output)
            self.assertEqual(answer.errors(), "", command)
        self.assertIn("zipf", self.run_jaunt("vm", "run", "--help").output)

    def test_every_option_is_in_the_man_page_and_the_other_way_round(self):
        pages = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "man")
        for command in ("vm run", "receive", "migrate", "status", "cancel", "resume", "set", "switch",
                        "doctor", "version"):
            words = self.run_jaunt(*command.split(), "--help").output
            offered = set(re.findall(r"^ +(?:-\S, )?--([a-z-]+)", words, re.MULTILINE))
            offered -= {"help", "usage"}
            with open(os.path.join(pages, f"jaunt-{command.split()[0]}.1")) as page:
                described = set(re.findall(r"Fl -([a-z-]+)", page.read()))
            if command == "doctor":
                described -= {"dry-run"}  # of migrate, which it recommends
            self.assertLessEqual(offered, described, command)
            # `vm' and `receive' name the way out, `cancel --abandon'.
            self.assertLessEqual(described - {"abandon", "peer-fenced"} if command != "cancel"
                                 else described, offered | {"help"}, command)

    def test_a_bare_jaunt_is_the_status(self):
        answer = self.run_jaunt()
        self.assertEqual(answer.code, 0)
        self.assertIn("No VMs", answer.output)
        self.start_vm("web")
        self.assertIn("web", self.run_jaunt().output)
        self.assertEqual(len(self.run_jaunt("--json").json()["vms"]), 1)

    def test_version_names_the_build(self):
        answer = self.run_jaunt("version", "--json")
        self.assertEqual(answer.code, 0)
        for field in ("schema", "version", "host", "kernel", "build"):
            self.assertIn(field, answer.json())
        self.assertTrue(self.run_jaunt("version").output.startswith("jaunt "))


class RuntimeDirectory(harness.Case):
    def test_a_directory_that_others_may_write_to_is_refused(self):
        os.mkdir(self.runtime)
        os.chmod(self.runtime, 0o777)
        for arguments in (["vm", "run", "web"], ["status"], ["receive", "tcp:127.0.0.1:0"]):
            answer = self.run_jaunt(*arguments)
            self.assertEqual(answer.code, 1, answer.errors())
            self.assertIn("chmod 700", answer.errors())

    def test_a_directory_that_cannot_be_made_is_named(self):
        answer = self.run_jaunt("status", env={"JAUNT_RUNTIME_DIR": "/proc/nowhere"})
        self.assertEqual(answer.code, 1)
        self.assertIn("/proc/nowhere", answer.errors())


if __name__ == "__main__":
    unittest.TestCase.longMessage = True
    harness.main()
