# SPDX-License-Identifier: Apache-2.0
"""One nested machine: source and target are two processes that meet over soft RoCE, or over TCP."""

import journeys
import lab
import recovery

ADDRESS = "10.8.0.1"


class OneHost(journeys.Journeys, lab.Case):
    def setUp(self):
        super().setUp()
        self.host, = self.machines(lab.one)

    def site(self, scheme):
        return super().site(scheme, {"a": self.host, "b": self.host})

    def set_link(self, up):
        """Of the device itself: soft RoCE then fails what is sent at once, whatever the retries. It is
        made anew behind the test: connections are not answered reliably over one that was down."""
        if not up:
            self.addCleanup(self.host.run, "rdma link delete rxe0; "
                            "rdma link add rxe0 type rxe netdev dummy0")
        self.host.run(f"ip link set dummy0 {'up' if up else 'down'}")

    # --- The laboratory itself ----------------------------------------------------------------------

    def test_soft_roce_is_up(self):
        self.assertIn("state ACTIVE physical_state LINK_UP netdev dummy0",
                      self.host.run("rdma link"))
        self.assertIn("PORT_ACTIVE", self.host.run("ibv_devinfo"))

    def test_rping_reads_and_writes(self):
        server = self.host.run(f"rping -s -a {ADDRESS} -C 10 -P >/dev/null 2>&1 & echo $!")
        text = self.host.run(f"for i in 1 2 3 4 5; do rping -c -a {ADDRESS} -C 10 -V -v "
                             "&& break; usleep 200000; done")
        self.host.run(f"kill {server}")
        self.assertEqual(text.count("ping data:"), 10)

    # --- The transport's contract: the suites that TCP passes -----------------------------------

    def contract(self, suite):
        program = f"test-transport-{suite}"
        status, text = self.host.try_(
            f"JAUNT_TEST_ADDRESS=rdma:{ADDRESS}:0 {program} --color=never", 100)
        self.assertEqual(status, 0, f"{program} ended with {status}\n{text}")
        self.assertRegex(text, r"Tested: [1-9]\d* \| Passing: [1-9]", "it tested nothing")

    def test_contract_over_rdma(self):
        self.contract("contract")

    def test_contract_over_rdma_ends(self):
        self.contract("ends")

    def test_contract_over_rdma_listener(self):
        self.contract("listener")

    def test_contract_over_rdma_reads(self):
        self.contract("reads")

    def test_contract_over_rdma_failures(self):
        self.contract("rdma")
        # The device is made again behind the last test.
        self.host.run("until rdma link show rxe0/1 >/dev/null 2>&1; do usleep 50000; done")

    # --- The link goes away, for good ---------------------------------------------------------------

    def test_rdma_a_link_that_stays_away_blocks_both_sides(self):
        case = lab.small(**self.LARGE)
        with self.site("rdma") as site:
            source, target, command = self.lose_link(site, case)
            self.check_target_ends(site, target)
            recovery.resume_at_source(site, source, command)
        self.set_link(True)

    # --- Whole migrations: beside these, those of test_reads.py ----------------------------------

    def test_tcp_push_verified(self):
        self.migrate("tcp", verify=True)
