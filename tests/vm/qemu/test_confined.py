# SPDX-License-Identifier: Apache-2.0
"""A QEMU that is not root and may do little."""

import os
import subprocess

import lab

NOBODY = 65534
SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


class SingleConfined(lab.Case):
    def setUp(self):
        super().setUp()
        if os.geteuid():
            self.skipTest("only root can start a QEMU of another user's")
        jaunt = lab.migrating.build_folder() / "cli" / "jaunt"
        if subprocess.run(["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
                           jaunt, "version"], capture_output=True, check=False).returncode:
            self.skipTest("another user cannot reach the build folder")

    def test_there_and_back_in_a_sandbox_as_another_user(self):
        guest = self.boot(user=NOBODY, words=SANDBOX)
        for mode in ("post-copy", "hybrid"):
            guest.migrate(mode)
            with open(f"/proc/{guest.here.pid}/status", encoding="ascii") as file:
                status = file.read()
            self.assertIn(f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}", status)
            self.assertIn("Seccomp:\t2", status)
