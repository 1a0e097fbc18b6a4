# SPDX-License-Identifier: Apache-2.0
"""Packed weights: one daemon makes them, others of the user attach, whatever happens to the first."""
import glob
import os
import re
import stat
import tempfile
import unittest

import jemd_test


class SharedWeights(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="jemd-share-")
        self.addCleanup(self.folder.cleanup)

    def daemon(self, *flags, environment=None):
        d = jemd_test.Daemon("--compute.share=" + self.folder.name, *flags,
                             environment=environment).start()
        self.addCleanup(d.discard)
        return d

    def segments(self):
        return sorted(glob.glob(os.path.join(self.folder.name, "jemd-*")))

    def how(self, daemon):
        """What the log says of the model's packed weights: made (shared), attached or private."""
        return re.search(r"packed=(\w+)", daemon.logged("model_loaded")[0]).group(1)

    def packed(self, daemon):
        """(bytes in shared, in private memory) by /metrics."""
        page = daemon.get("/metrics").body.decode()
        return tuple(float(re.search(rf'jemd_model_packed_bytes{{memory="{m}"}} (\S+)', page)[1])
                     for m in ("shared", "private"))

    def energy(self, daemon):
        with open(os.path.join(jemd_test.SAMPLES, "orc-blue-hair.png"), "rb") as f:
            answer = daemon.post("/v1/predict", f.read(), "image/png")
        self.assertEqual(answer.status, 200, answer)
        return answer.json()["results"][0]["energy"]

    def test_the_second_daemon_and_one_after_a_crash_attach(self):
        first = self.daemon()
        self.assertEqual(self.how(first), "shared")
        made = self.segments()
        self.assertTrue(made)
        for path in made:
            mode = os.lstat(path)
            self.assertTrue(stat.S_ISREG(mode.st_mode))
            self.assertEqual(stat.S_IMODE(mode.st_mode), 0o600)
        second = self.daemon()
        self.assertEqual(self.how(second), "attached")
        self.assertGreater(self.packed(second)[0], 0)
        self.assertEqual(self.packed(second)[1], 0)
        energy = self.energy(first)
        self.assertEqual(self.energy(second), energy)
        first.kill()
        self.assertEqual(self.energy(second), energy)
        second.kill()
        third = self.daemon()
        self.assertEqual(self.how(third), "attached")
        self.assertEqual(self.energy(third), energy)
        self.assertEqual(self.segments(), made)
        entry = third.get("/v1/models").json()["models"][0]
        self.assertTrue(entry["packed_shared"])
        self.assertEqual(entry["packed_bytes"], self.packed(third)[0])

    def test_without_room_or_directory_the_memory_is_private_and_the_answers_the_same(self):
        energy = self.energy(self.daemon())
        made = self.segments()
        for flags in (["--compute.share_limit_bytes=0"],
                      ["--compute.share=" + os.path.join(self.folder.name, "missing")]):
            d = self.daemon(*flags)
            self.assertEqual(self.how(d), "private")
            self.assertEqual(self.packed(d)[0], 0)
            self.assertGreater(self.packed(d)[1], 0)
            self.assertEqual(self.energy(d), energy)
        self.assertEqual(self.segments(), made)

    def test_a_damaged_segment_is_not_used(self):
        d = self.daemon()
        energy = self.energy(d)
        d.kill()
        for path in self.segments():
            with open(path, "r+b") as f:
                f.truncate(os.path.getsize(path) // 2)
        again = self.daemon()
        self.assertNotEqual(self.how(again), "attached")
        self.assertEqual(self.energy(again), energy)

    def test_another_instruction_set_has_its_own_weights(self):
        self.daemon()
        made = self.segments()
        d = self.daemon(environment={"JEMD_ISA": "generic"})
        self.assertEqual(self.how(d), "shared")
        self.assertEqual(d.get("/version").json()["compute"].split("/")[0], "generic")
        self.assertGreater(len(self.segments()), len(made))


class Precision(unittest.TestCase):
    def test_bfloat16_is_served_or_refused_with_a_sentence(self):
        d = jemd_test.Daemon("--compute.precision=bfloat16",
                             "--models.directory=", "--models.model=" + jemd_test.MODEL)
        self.addCleanup(d.discard)
        try:
            d.start()
        except AssertionError as e:
            self.assertIn("AVX512_BF16", str(e))
            return
        compute = d.get("/v1/models").json()["models"][0]["compute"]
        self.assertIn(compute.split("/")[0], ("amx-bf16", "avx512-bf16"))


if __name__ == "__main__":
    unittest.main()
