# SPDX-License-Identifier: Apache-2.0
"""Modes that copy memory while the guest runs, on a kernel that tells written pages by soft-dirty bits
alone: over TCP, and over RDMA, where what rounds left is READ."""

import cases
import lab


class Tracking(lab.Case):
    """On one host, where a machine is there soonest."""

    def setUp(self):
        super().setUp()
        self.host, = self.machines(lab.one)

    def migrate(self, scheme, **settings):
        """The target's report, and the source's; every page was verified, and the guest is right."""
        with self.site(scheme, {"a": self.host, "b": self.host}) as site:
            there = cases.run(site, lab.small(verify=True, tracker="soft-dirty", **settings))
            self.assertGreater(there["pages"]["copied"], 0, "nothing came before the switch")
            here = next(process for process in site.processes if "migrate" in process.arguments)
            return there, here.json()

    def test_hybrid_by_soft_dirty_bits(self):
        self.migrate("tcp", mode="hybrid", workload="sweep")

    def test_rdma_pre_copy_by_soft_dirty_bits(self):
        self.migrate("rdma", mode="pre-copy")

    def test_rdma_auto_by_soft_dirty_bits(self):
        self.migrate("rdma", mode="auto")

    def test_rdma_hybrid_by_soft_dirty_bits_reads_what_rounds_left(self):
        there, _ = self.migrate("rdma", mode="hybrid", workload="sweep")
        self.assertGreater(there["pages"]["read"], 0, "no page came by READ")

    def test_rdma_hybrid_registers_again_what_the_guest_gave_back(self):
        _, here = self.migrate("rdma", mode="hybrid", workload="discard")
        self.assertGreater(here["registered"]["stale"], 0, "no page was given back in time")
