# SPDX-License-Identifier: Apache-2.0
"""A disk that is really full, or read-only, not one that says so: a small file system under the job
store. The daemon tells it, predicts on, loses nothing that it has accepted, and goes on when it can.
Needs the right to mount one, so it is for root."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest

SOURCE = os.environ.get("JEMD_SOURCE") or os.path.abspath(
    os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(SOURCE, "tests", "http"))
# pylint: disable=wrong-import-position
from jemd_test import Daemon, run_job, submit, wait_ended, wait_until  # noqa: E402
from train_help import by_command, picture, recipe, stripes  # noqa: E402


def job(count=2, steps=6):
    return {"type": "sample", "model": "stripes", "seed": "7", "sampler": {"steps": steps},
            "conditions": [{"count": count, "attributes": {"way": "down"}}]}


class Case(unittest.TestCase):
    size_kb = 8192

    @classmethod
    def setUpClass(cls):
        cls.root = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="jemd-disk-"))
        data, cls.models = os.path.join(cls.root, "stripes"), os.path.join(cls.root, "models")
        for split, rows in (("train", 64), ("calib", 40), ("test", 48)):
            stripes(data, split, rows)
        os.mkdir(cls.models)
        with open(os.path.join(cls.models, "stripes.safetensors"), "wb") as f:
            f.write(by_command(cls.root, data, recipe(steps=5)))

    def setUp(self):
        self.daemon = Daemon("--models.directory=" + self.models, "--sampler.checkpoint_ms=200",
                             "--sampler.nice=0")
        self.addCleanup(self.daemon.discard)
        self.disk = os.path.join(self.daemon.folder.name, "jobs")
        self.filler = os.path.join(self.disk, "filler")
        os.mkdir(self.disk)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size_kb}k,mode=0700", "none",
                               self.disk], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.skipTest(f"no file system can be mounted here: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", self.disk], check=True)
        self.addCleanup(self.daemon.kill)
        self.daemon.start()

    def fill(self, leave=0):
        """Until nothing more fits, but for some bytes."""
        with open(self.filler, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                f.truncate(max(0, f.tell() - leave))
        room = os.statvfs(self.disk)
        self.assertEqual(room.f_bavail * room.f_bsize, leave)

    def check(self):
        checks = self.daemon.get("/readyz?verbose").json()["checks"]
        return [c for c in checks if c["name"] == "store"][0]

    def predicts(self):
        answer = self.daemon.post("/v1/models/stripes:predict", picture(), "image/png")
        self.assertEqual(answer.status, 200, answer)


class FullDisk(Case):
    def refused(self):
        """What a job that is refused is told."""
        answer = self.daemon.post("/v1/jobs", job())
        self.assertIn(answer.status, (503, 507), answer)
        self.assertIn(answer.json()["code"], ("store_full", "store_unavailable"))
        self.assertGreater(len(answer.json()["detail"]), 10)
        return answer

    def fill_until_told(self):
        """Small free pages of the database may take a job more even so."""
        self.fill()
        accepted = []
        for _ in range(200):
            answer = self.daemon.post("/v1/jobs", job(2, 300))
            if answer.status != 202:
                self.assertEqual((answer.status, answer.json()["code"]), (507, "store_full"), answer)
                return accepted
            accepted.append(answer.json()["id"])
        self.fail("200 jobs went onto a full disk")

    def artifacts(self, done):
        return {a["name"]: self.daemon.get(done["links"]["artifacts"] + a["name"]).body
                for a in done["result"]["artifacts"]}

    def test_a_full_disk_is_told_and_nothing_accepted_is_lost(self):
        document = job(2, 150)
        expected = self.artifacts(run_job(self.daemon, document))
        kept = run_job(self.daemon, job(4, 10))
        before = self.artifacts(kept)
        running = [submit(self.daemon, document)["id"] for _ in range(3)]
        more = self.fill_until_told()
        check = wait_until(lambda: not (c := self.check())["ok"] and c, 20, "the full disk is told")
        self.assertIn("its disk is full", check["detail"])
        self.assertEqual(self.daemon.get("/readyz").status, 200)
        self.predicts()
        self.assertEqual(self.artifacts(self.daemon.get(kept["links"]["self"]).json()), before)
        os.unlink(self.filler)
        wait_until(lambda: self.check()["ok"], 30, "recovery")
        for job_id in running:
            done = wait_ended(self.daemon, job_id, 120)
            self.assertEqual((done["state"], done["error"]), ("succeeded", None))
            self.assertEqual(self.artifacts(done), expected)
        for job_id in more:
            self.assertEqual(self.daemon.post(f"/v1/jobs/{job_id}:cancel").status, 202)
            self.assertEqual(wait_ended(self.daemon, job_id)["state"], "canceled")
        self.assertEqual(run_job(self.daemon, job())["state"], "succeeded")
        self.daemon.stop()
        self.daemon.start()
        for job_id in running + more + [kept["id"]]:
            self.assertEqual(self.daemon.get(f"/v1/jobs/{job_id}").status, 200)

    def test_a_daemon_that_dies_on_a_full_disk_starts_there_and_has_all_jobs(self):
        document = job(2, 150)
        expected = self.artifacts(run_job(self.daemon, document))
        running = [submit(self.daemon, document)["id"] for _ in range(3)]
        more = self.fill_until_told()
        self.daemon.signal(signal.SIGKILL)
        self.daemon.process.wait()
        self.fill()  # what the death has left free, too
        self.daemon.start()
        self.predicts()
        self.refused()
        self.assertFalse(self.check()["ok"])
        os.unlink(self.filler)
        wait_until(lambda: self.check()["ok"], 60, "recovery")
        for job_id in more:
            self.assertEqual(self.daemon.post(f"/v1/jobs/{job_id}:cancel").status, 202)
        for job_id in running:
            done = wait_ended(self.daemon, job_id, 120)
            self.assertEqual((done["state"], done["error"]), ("succeeded", None))
            self.assertEqual(self.artifacts(done), expected)


class ReadOnly(Case):
    def remount(self, how):
        subprocess.run(["mount", "-o", "remount," + how, self.disk], check=True)

    def test_a_read_only_disk_is_told_and_nothing_accepted_is_lost(self):
        document = job(2, 150)
        kept = run_job(self.daemon, document)
        running = [submit(self.daemon, document)["id"] for _ in range(3)]
        self.daemon.signal(signal.SIGKILL)
        self.daemon.process.wait()
        self.remount("ro")
        self.addCleanup(self.remount, "rw")
        self.daemon.start()
        self.predicts()
        self.assertEqual(self.daemon.get("/readyz").status, 200)
        check = self.check()
        self.assertFalse(check["ok"])
        self.assertIn("Read-only file system", check["detail"])
        for answer in (self.daemon.post("/v1/jobs", job()), self.daemon.get(kept["links"]["self"])):
            self.assertEqual((answer.status, answer.json()["code"]), (503, "store_unavailable"), answer)
            self.assertIn("Read-only file system", answer.json()["detail"])
        self.remount("rw")
        wait_until(lambda: self.check()["ok"], 60, "recovery")
        self.assertEqual(self.daemon.get(kept["links"]["self"]).json(), kept)
        for job_id in running:
            done = wait_ended(self.daemon, job_id, 120)
            self.assertEqual((done["state"], done["result"]["artifacts"]), ("succeeded", kept["result"]["artifacts"]))


class SmallDisk(Case):
    """Smaller than what the write-ahead log may hold."""
    size_kb = 2048

    def test_the_log_alone_does_not_fill_it(self):
        later = submit(self.daemon, job() | {"scheduled_at": "2030-01-01T00:00:00Z"})["links"]["self"]
        for n in range(600):
            answer = self.daemon.request("PATCH", later, json.dumps({"labels": {"n": str(n)}}),
                                         {"Content-Type": "application/json"})
            self.assertEqual(answer.status, 200, answer)
        self.assertEqual(run_job(self.daemon, job())["state"], "succeeded")


if __name__ == "__main__":
    unittest.main()
