# SPDX-License-Identifier: Apache-2.0
"""A job that crashes its daemon is found and given up, and those that ran beside it are not.

The daemon runs under crash.c, which crashes it over certain jobs, and is started again each time it has
died, as systemd would.
"""
import os
import re
import signal
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "http")]
import load  # noqa: E402
from jemd_test import BIN, ENDED, Daemon, patience, submit, wait_ended  # noqa: E402
from test_mcmc import SIDE, grey, write_bowl  # noqa: E402

LIBRARY = os.environ.get("JEMD_CRASH_LIBRARY") or os.path.join(
    os.path.dirname(BIN), "..", "tests", "libchaos_crash.so")
SETTINGS = ("--sampler.checkpoint_ms=300", "--sampler.nice=0", "--sampler.workers=1")
MARKED = [[0, 255, 0, 255]] + [[128] * SIDE] * (SIDE - 1)


def innocent(number, steps=4000, count=4):
    return {"type": "sample", "model": "bowl", "seed": str(number), "outputs": ["grid", "tensor"],
            "sampler": {"kind": "sgld", "steps": steps, "step_size": .05, "noise": .3},
            "conditions": [{"count": count, "attributes": {"y": "low"}}]}


def guilty_worker():
    return {**innocent(99), "image": grey(MARKED), "sampler": {"kind": "sgld", "steps": 2000, "step_size": .05, "start": {"kind": "image"}}}


def guilty_render():
    return innocent(98, 50, 9)


class Crash(unittest.TestCase):
    def setUp(self):
        self.models = tempfile.TemporaryDirectory(prefix="jemd-crash-")
        self.addCleanup(self.models.cleanup)
        write_bowl(self.models.name)
        self.deaths, self.ends = 0, []

    def daemon(self, how):
        environment = {"LD_PRELOAD": LIBRARY, "JEMD_CRASH": how} if how else {}
        daemon = Daemon(*SETTINGS, "--models.directory=" + self.models.name, environment=environment)
        self.addCleanup(daemon.discard)
        return daemon.start()

    def expected(self, documents):
        daemon = self.daemon("")
        done = [wait_ended(daemon, submit(daemon, d)["id"]) for d in documents]
        return [load.outcome(lambda path: daemon.get(path, check=False), job) for job in done]

    def supervise(self, daemon, ids, most, seconds=60):
        """Starts the daemon again whenever it has died, until all jobs have ended; these."""
        until = time.monotonic() + patience(seconds)
        left, jobs = set(ids), {}
        while left and time.monotonic() < until:
            if daemon.process.poll() is not None:
                self.ends.append(daemon.process.returncode)
                self.assertLessEqual(len(self.ends), most, daemon.log()[-2000:])
                daemon.spawn()
                while daemon.process.poll() is None and not daemon.logged("ready"):
                    time.sleep(.01)
                ready = daemon.logged("ready")
                if ready:
                    daemon.port = int(re.search(r"port=(\d+)", ready[0]).group(1))
                continue
            try:
                for job_id in sorted(left):
                    job = daemon.get("/v1/jobs/" + job_id).json()
                    if job["state"] in ENDED:
                        jobs[job_id] = job
                        left.discard(job_id)
            except OSError:
                pass
            time.sleep(.02)
        self.assertEqual(left, set(), f"not ended, after {self.ends}")
        return [jobs[i] for i in ids]

    def scene(self, how, guilty, most):
        """Innocent jobs, one that is not, and more of the former."""
        documents = [innocent(n) for n in range(6)]
        expected = self.expected(documents)
        daemon = self.daemon(how)
        self.assertEqual(daemon.post("/v1/queue:pause").status, 200)  # so that they begin together
        accepted = [submit(daemon, d)["id"] for d in (*documents[:3], guilty, *documents[3:])]
        try:
            daemon.post("/v1/queue:resume")
        except OSError:
            pass  # it has died already
        jobs = self.supervise(daemon, accepted, most)
        bad = jobs.pop(3)
        self.assertEqual((bad["state"], bad["error"]["code"]), ("failed", "crash_loop"), bad)
        for job, outcome in zip(jobs, expected):
            self.assertEqual(job["state"], "succeeded", job)
            self.assertLessEqual(job["crashes"], 1, job)
            self.assertEqual(load.outcome(lambda path: daemon.get(path, check=False), job), outcome)
        self.assertEqual(wait_ended(daemon, submit(daemon, innocent(77, 50))["id"])["state"], "succeeded")
        self.assertIn("store", daemon.get("/readyz?verbose").body.decode())
        # of the last daemon, which has found what ended the one before
        self.assertIn(f"\njemd_job_crashes_total {int(bad['crashes'] > 0)}\n", daemon.get("/metrics").body.decode())
        daemon.stop()
        return bad

    def test_one_that_crashes_the_engine_beside_others(self):
        bad = self.scene("worker", guilty_worker(), 4)
        self.assertEqual((bad["crashes"], set(self.ends)), (3, {-signal.SIGSEGV}))
        self.assertGreaterEqual(bad["attempts"], 3)
        self.assertRegex(bad["error"]["detail"], r"^given up after 3 crashes, the last of them: signal 11 \(Segmentation fault\)")

    def test_one_that_crashes_while_its_result_is_made(self):
        bad = self.scene("render", guilty_render(), 3)
        self.assertEqual((bad["crashes"], self.ends), (3, [-signal.SIGABRT] * 3))
        self.assertIn("signal 6", bad["error"]["detail"])

    def test_one_that_gets_the_daemon_killed(self):
        bad = self.scene("kill", guilty_worker(), 13)
        self.assertEqual((bad["crashes"], set(self.ends)), (0, {-signal.SIGKILL}))
        self.assertRegex(bad["error"]["detail"], "^the daemon died 13 times while this job ran, the last 10 ")


if __name__ == "__main__":
    unittest.main()
