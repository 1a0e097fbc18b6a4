#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The web page in a real browser: runs test_page.mjs where it can be run.

It needs JEMD_BIN, node >= 20, chromium (or CHROMIUM=path) and, once, `npm ci` in this folder.
"""
import os
import shutil
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.environ.get("JEMD_SOURCE") or os.path.join(HERE, "..", "..")


def missing():
    if not os.path.exists(os.environ.get("JEMD_BIN", "")):
        return "JEMD_BIN names no daemon"
    if not shutil.which("node"):
        return "there is no node"
    if not shutil.which(os.environ.get("CHROMIUM", "chromium")):
        return "there is no chromium"
    if not os.path.isdir(os.path.join(HERE, "node_modules", "playwright-core")):
        return "playwright-core is not installed (npm ci in tests/browser)"
    if not os.path.exists(os.path.join(SOURCE, "models", "sprites.safetensors")):
        return "models/sprites.safetensors is absent"
    return None


class Browser(unittest.TestCase):
    def test_the_page_works_in_chromium(self):
        environment = dict(os.environ, JEMD_SOURCE=os.path.abspath(SOURCE))
        environment["CHROMIUM"] = shutil.which(os.environ.get("CHROMIUM", "chromium"))
        command = ["node", "--test", "--test-reporter=spec", "test_page.mjs"]
        done = subprocess.run(command, cwd=HERE, env=environment, timeout=600, check=False)
        self.assertEqual(done.returncode, 0, "see the lines marked ✖ above")


if __name__ == "__main__":
    reason = missing()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(0)
    unittest.main()
