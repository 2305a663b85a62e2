# SPDX-License-Identifier: Apache-2.0
"""One nested machine: source and target are two processes that meet over soft RoCE, or over TCP."""

import cases
import lab

ADDRESS = "10.8.0.1"


class OneHost(lab.Case):
    def setUp(self):
        super().setUp()
        self.host, = self.machines(lab.one)

    def site(self, scheme):
        return super().site(scheme, {"a": self.host, "b": self.host})

    def contract(self, program, address):
        status, text = self.host.try_(
            f"JAUNT_TEST_ADDRESS={address} {program} --color=never", 100)
        self.assertEqual(status, 0, f"{program} on {address} ended with {status}\n{text}")
        self.assertRegex(text, r"Tested: [1-9]\d* \| Passing: [1-9]", "it tested nothing")

    # --- The laboratory itself ----------------------------------------------------------------------

    def test_soft_roce_is_up(self):
        self.assertIn("state ACTIVE physical_state LINK_UP netdev dummy0",
                      self.host.run("rdma link"))
        self.assertIn("PORT_ACTIVE", self.host.run("ibv_devinfo"))

    def test_rping_reads_and_writes(self):
        text = self.host.run(f"rping -s -a {ADDRESS} -C 10 -P >/dev/null 2>&1 & "
                             f"for i in 1 2 3 4 5; do rping -c -a {ADDRESS} -C 10 -V -v "
                             "&& break; usleep 200000; done; kill $!")
        self.assertEqual(text.count("ping data:"), 10)

    # --- The transport's contract ---------------------------------------------------------------

    def test_contract_over_tcp(self):
        self.contract("test-transport-contract", f"tcp:{ADDRESS}:0")

    def test_contract_over_rdma(self):
        for program in ("contract", "ends", "listener", "reads"):
            self.contract(f"test-transport-{program}", f"rdma:{ADDRESS}:0")

    def test_rdma_fails_as_it_says(self):
        self.contract("test-transport-rdma", f"rdma:{ADDRESS}:0")
        # The device is made again behind the last test.
        self.host.run("until rdma link show rxe0/1 >/dev/null 2>&1; do usleep 50000; done")

    # --- Whole migrations ---------------------------------------------------------------------------

    def migrate(self, scheme, **settings):
        with self.site(scheme) as site:
            cases.run(site, lab.small(**settings))

    def test_tcp_post_copy_verified(self):
        self.migrate("tcp", verify=True)


