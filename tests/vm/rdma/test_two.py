# SPDX-License-Identifier: Apache-2.0
"""Two nested machines with a cable between them: two hosts, each with soft RoCE on its network card."""

import time

import journeys
import lab

# Against a second without a link.
PATIENT = ("--peer-timeout", "20s")


class TwoHosts(journeys.Journeys, lab.Case):
    def setUp(self):
        super().setUp()
        self.left, self.right = self.machines(lab.two)

    def site(self, scheme):
        return super().site(scheme, {"a": self.left, "b": self.right})

    def set_link(self, up):
        """Both ends: a machine whose own port is up goes on as if nobody listened."""
        self.left.set_link(up)

    # --- The laboratory itself ----------------------------------------------------------------------

    def test_rping_goes_from_one_to_the_other(self):
        server = self.left.run(f"rping -s -a {self.left.address} -C 10 -P >/dev/null 2>&1 & echo $!")
        text = self.right.run(f"for i in 1 2 3 4 5; do rping -c -a {self.left.address} -C 10 -V -v "
                              "&& break; usleep 200000; done")
        self.left.run(f"kill {server}")
        self.assertEqual(text.count("ping data:"), 10)

    # --- Whole migrations ---------------------------------------------------------------------------

    def test_tcp_push_verified(self):
        self.migrate("tcp", verify=True)

    def test_rdma_push_verified(self):
        self.migrate("rdma", verify=True)

    def test_rdma_push_on_4_streams_verified(self):
        self.migrate("rdma", verify=True, streams=4)

    def test_rdma_a_link_that_comes_back_in_time_is_not_noticed(self):
        case = lab.small(verify=True, **self.LARGE)
        with self.site("rdma") as site:
            source, target, command = self.hand_over(site, case, *PATIENT,
                                                     receive=PATIENT)
            self.begin_reading(site)
            self.set_link(False)
            time.sleep(1)
            self.set_link(True)
            report = self.finish(site, case, source, target, command)
            self.assertEqual(report["reason"], "")

    def test_rdma_a_link_that_comes_back_late_is_found_again(self):
        """Both sides are blocked until then: the source connects again, and all goes on."""
        case = lab.small(verify=True, **self.LARGE)
        with self.site("rdma") as site:
            source, target, command = self.lose_link(site, case)
            self.set_link(True)
            self.finish(site, case, source, target, command)
