# SPDX-License-Identifier: Apache-2.0
"""Migrations whose pages the target READs: what arrives, how, and what is counted of it."""

import cases
import lab


class Reads(lab.Case):
    """On one host, where a machine is there soonest."""

    def setUp(self):
        super().setUp()
        self.host, = self.machines(lab.one)

    def migrate(self, **settings):
        """The target's report, and the source's."""
        with self.site("rdma", {"a": self.host, "b": self.host}) as site:
            report = cases.run(site, lab.small(**settings))
            source = next(process for process in site.processes if "migrate" in process.arguments)
            return report, source.json()

    def check_figures(self, report, source):
        """What carried bytes was READ, but for pages that the guest got at the last moment."""
        pages = report["pages"]
        self.assertGreater(pages["read"], 0.9 * (pages["pushed"] + pages["demanded"]))
        self.assertEqual(report["bytes"]["read"], pages["read"] * 4096)
        self.assertEqual(source["pages"]["read"], pages["read"])
        for end in (report, source):
            self.assertRegex(end["device"], "^rxe0 port 1, GID 0000:[0-9a-f:]+:0a08:0001, MTU 4096, ")
        registered = source["registered"]
        self.assertEqual(source["register_error"], "")
        self.assertGreater(registered["bytes"],
                           0.9 * (pages["pushed"] + pages["demanded"]) * 4096)
        self.assertGreater(registered["ms"], 0)
        self.assertGreater(registered["estimate_ms"], 0)

    def test_pages_are_read(self):
        self.check_figures(*self.migrate())

    def test_pages_are_read_and_verified(self):
        self.check_figures(*self.migrate(verify=True))

    def test_pages_are_read_by_four_streams_and_two_fault_threads(self):
        self.check_figures(*self.migrate(verify=True, streams=4, fault_threads=2))

    def test_faults_alone_are_read_and_then_the_rest(self):
        self.check_figures(*self.migrate(verify=True, push="later"))

    def test_a_stopped_guest_is_read_before_it_runs_there(self):
        self.check_figures(*self.migrate(mode="stop-and-copy", verify=True))

    def test_pages_that_the_guest_gave_back_are_not_read_from_what_was_registered(self):
        report, source = self.migrate(workload="discard", verify=True)
        self.assertEqual(report["mismatched_pages"], 0)
        self.assertGreater(source["registered"]["stale"], 0, "no page was given back in time")
