# SPDX-License-Identifier: Apache-2.0
"""The durable job store as a client sees it: jobs and results survive kill -9 and SIGTERM, a second
daemon is refused, a store that cannot be used is told and predictions go on."""
import base64
import json
import os
import shutil
import signal
import subprocess
import unittest

from jemd_test import BIN, MODEL, SAMPLES, SLOW, Daemon, run_job, wait_ended, wait_until
from jobs_help import job


def submit(daemon, document, key):
    return daemon.post("/v1/jobs", document, headers={"Idempotency-Key": key})


def artifacts(daemon, done):
    """name -> bytes of what a job left."""
    return {a["name"]: daemon.get(done["links"]["artifacts"] + a["name"]).body
            for a in done["result"]["artifacts"]}


class Store(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon("--sampler.checkpoint_ms=200", "--sampler.nice=0").start()
        self.changes = 0
        self.addCleanup(self.daemon.discard)

    def again(self, number):
        """Ends the daemon with a signal and starts it on the same directory."""
        self.daemon.signal(number)
        self.daemon.process.wait()
        self.daemon.start()

    def change(self, path, times):
        """Each is an event."""
        for _ in range(times):
            self.changes += 1
            answer = self.daemon.request("PATCH", path, json.dumps({"labels": {"n": str(self.changes)}}),
                                         {"Content-Type": "application/json"})
            self.assertEqual(answer.status, 200, answer)

    def follow(self, path, last_id=None):
        """The events that are there at once."""
        connection = self.daemon.connection(30)
        self.addCleanup(connection.close)
        connection.request("GET", path + "/events", headers={"Last-Event-ID": str(last_id)} if last_id else {})
        response = connection.getresponse()
        events, text = [], response.read1(65536)
        connection.sock.settimeout(.1)
        try:
            while more := response.read1(65536):
                text += more
        except TimeoutError:
            pass
        for part in text.decode().split("\n\n")[:-1]:
            event = dict(line.split(": ", 1) for line in part.split("\n"))
            events.append({**event, "id": int(event["id"]), "data": json.loads(event["data"])})
        return events

    def check(self, name):
        checks = self.daemon.get("/readyz?verbose").json()["checks"]
        return [c for c in checks if c["name"] == name][0]

    def test_results_and_keys_survive_kill_9(self):
        first = submit(self.daemon, job(), "k")
        self.assertEqual(first.status, 202)
        path = "/v1/jobs/" + first.json()["id"]
        done = wait_ended(self.daemon, first.json()["id"], 60)
        before = artifacts(self.daemon, done)
        self.assertIn("grid.png", before)
        self.again(signal.SIGKILL)
        self.assertEqual(self.daemon.get(path).json(), done)
        self.assertEqual(artifacts(self.daemon, done), before)
        again = submit(self.daemon, job(), "k")
        self.assertEqual(again.json()["id"], first.json()["id"])

    def test_a_job_goes_on_after_kill_9_to_the_same_bytes(self):
        document = job(2, 100 if SLOW else 1500)
        expected = artifacts(self.daemon, run_job(self.daemon, document, 200))
        for number in (signal.SIGKILL, signal.SIGTERM):
            answer = submit(self.daemon, document, str(number))
            self.assertEqual(answer.status, 202)
            path = "/v1/jobs/" + answer.json()["id"]
            wait_until(lambda: self.daemon.get(path).json()["progress"]["chain_steps_done"] > 0, 60,
                       "progress")
            self.again(number)
            done = wait_ended(self.daemon, answer.json()["id"], 120)
            self.assertEqual(done["state"], "succeeded")
            self.assertEqual(artifacts(self.daemon, done), expected)
            if not SLOW:
                self.assertEqual(done["attempts"], 2, "it had ended before: the test shows nothing")
            resumed = done["resumed_from_step"] is not None
            if number == signal.SIGTERM and done["attempts"] == 2:
                self.assertTrue(resumed, "a drain makes a checkpoint")
            self.assertIn(f"\njemd_job_resumes_total {int(resumed)}\n", self.daemon.get("/metrics").body.decode())

    def test_a_stream_that_an_earlier_daemon_began_is_gone_on_with_from_a_snapshot(self):
        """Whatever the two daemons have told of it: none of the ids of the one is one of the other's."""
        path = submit(self.daemon, job() | {"scheduled_at": "2030-01-01T00:00:00Z"}, "k").json()["links"]["self"]
        self.change(path, 3)
        snapshot, *_ = self.follow(path)
        ids = range(snapshot["id"] - 3, snapshot["id"] + 1)
        self.assertEqual([e["id"] for e in self.follow(path, ids[1])], list(ids[2:]))
        self.again(signal.SIGKILL)
        for n in (2, 1, 1):  # told nothing yet, less than the other, as much
            labels = self.daemon.get(path).json()["labels"]
            for last in ids:
                first, *more = self.follow(path, last)
                self.assertEqual((first["event"], first["data"]["labels"]), ("snapshot", labels), (n, last))
                self.assertEqual(more, [])
                self.assertNotIn(first["id"], ids)
            self.change(path, n)

    def test_a_second_daemon_on_the_directory_is_refused(self):
        directory = os.path.join(self.daemon.folder.name, "jobs")
        second = subprocess.run([BIN, "serve", "--http.port=0", "--models.directory=",
                                 "--models.cache=", "--store.directory=" + directory],
                                capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(second.returncode, 1)
        self.assertIn(f"another jemd (process {self.daemon.pid}) has the job store", second.stderr)
        self.assertEqual(self.check("store"), {"name": "store", "ok": True, "detail": "sqlite"})
        self.assertEqual(run_job(self.daemon, job())["state"], "succeeded")

    def test_a_store_that_cannot_be_used_is_told_and_predictions_go_on(self):
        self.daemon.stop()
        path = os.path.join(self.daemon.folder.name, "jobs", "jobs.sqlite")
        os.rename(path, path + ".kept")
        os.mkdir(path)  # no file can be opened here
        self.daemon.start()
        check = self.check("store")
        self.assertFalse(check["ok"])
        self.assertIn("cannot open the job store", check["detail"])
        self.assertEqual(self.daemon.get("/readyz").status, 200)
        refused = submit(self.daemon, job(), "k")
        self.assertEqual((refused.status, refused.json()["code"]), (503, "store_unavailable"))
        listed = self.daemon.get("/v1/jobs")
        self.assertEqual(listed.status, 503)
        for answer in (refused, listed):  # it is tried again within half a minute
            self.assertIn(int(answer.headers["retry-after"]), range(1, 32))
        with open(os.path.join(SAMPLES, "orc-blue-hair.png"), "rb") as f:
            answer = self.daemon.post("/v1/predict", f.read(), "image/png")
        self.assertEqual(answer.status, 200)
        os.rmdir(path)
        os.rename(path + ".kept", path)
        wait_until(lambda: self.check("store")["ok"], 60, "recovery")
        self.assertEqual(run_job(self.daemon, job())["state"], "succeeded")


class Retention(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon("--jobs.retention_jobs=1").start()
        self.addCleanup(self.daemon.discard)

    def put(self, path, document):
        return self.daemon.request("PUT", path, json.dumps(document), {"Content-Type": "application/json"})

    def check_gone(self, path, document):
        asked = [self.daemon.get(path + end) for end in
                 ("", "?wait=1", "/events", "/artifacts/grid.png", "/artifacts/preview.png", "/artifacts/no.png")]
        asked += [self.daemon.post(path + end) for end in (":cancel", ":retry")]
        asked += [self.daemon.request("DELETE", path), self.put(path, document),
                  self.daemon.request("PATCH", path, b"{}", {"Content-Type": "application/json"})]
        for answer in asked:
            self.assertEqual((answer.status, answer.json()["code"]), (410, "expired"), answer)
            self.assertRegex(answer.json()["detail"], f"^sample job {path[-36:]} ended at .* as (succeeded|canceled) and is not kept")
        return asked[0].json()["detail"]

    def test_jobs_that_are_not_kept_any_longer_say_what_they_were(self):
        canceled, gone = (f"/v1/jobs/123e4567-e89b-42d3-a456-42661417400{n}" for n in range(2))
        later = job() | {"scheduled_at": "2030-01-01T00:00:00Z"}
        self.assertEqual(self.put(canceled, later).status, 202)
        self.assertEqual(self.daemon.post(canceled + ":cancel").status, 202)
        self.assertEqual(self.put(gone, job()).status, 202)
        wait_ended(self.daemon, gone[-36:])
        kept = run_job(self.daemon, job())
        wait_until(lambda: self.daemon.get(gone).status == 410, 10, "retention")
        for _ in range(2):
            self.assertIn(" as canceled ", self.check_gone(canceled, later))
            self.assertIn(" as succeeded ", self.check_gone(gone, job()))
            self.assertEqual(self.daemon.get(kept["links"]["self"]).json(), kept)
            self.assertEqual([j["id"] for j in self.daemon.get("/v1/jobs").json()["jobs"]], [kept["id"]])
            self.daemon.stop()
            self.daemon.start()


class Versions(unittest.TestCase):
    """Jobs of a version that does not serve any more when the daemon starts again."""

    def setUp(self):
        self.daemon = Daemon("--sampler.checkpoint_ms=200", "--sampler.nice=0")
        self.addCleanup(self.daemon.discard)
        self.models = os.path.join(self.daemon.folder.name, "models")
        self.staged = os.path.join(self.models, "sprites", "next.safetensors")
        self.daemon.flags.append("--models.directory=" + self.models)
        os.makedirs(os.path.dirname(self.staged))
        shutil.copy(MODEL, self.models)
        with open(MODEL, "rb") as f:
            data = f.read()
        old = b'\\"version\\":\\"2\\"'
        new = old.replace(b"2", b"next")
        self.assertEqual(data.count(old), 1)
        length = int.from_bytes(data[:8], "little")
        header = data[8:8 + length].replace(old, new).rstrip()
        header += b" " * (-len(header) % 8)
        with open(self.staged, "wb") as f:
            f.write(len(header).to_bytes(8, "little") + header + data[8 + length:])
        self.daemon.start()

    def promote(self, version):
        answer = self.daemon.post(f"/v1/models/sprites/versions/{version}:promote")
        self.assertEqual(answer.status, 200, answer)

    def submit(self, document):
        answer = self.daemon.post("/v1/jobs", document)
        self.assertEqual(answer.status, 202, answer)
        return answer.json()["id"]

    def kill_and_start(self):
        self.daemon.kill()
        self.daemon.start()

    def test_a_promotion_and_kill_9_do_not_change_a_byte(self):
        with open(os.path.join(SAMPLES, "orc-blue-hair.png"), "rb") as f:
            image = base64.b64encode(f.read()).decode()
        documents = [job(2, 100), job(1, 6), {"type": "predict", "images": [{"b64": image}] * 3}]
        whole = [artifacts(self.daemon, run_job(self.daemon, d, 200)) for d in documents]
        ids = [self.submit(documents[0])]
        wait_until(lambda: self.daemon.get("/v1/jobs/" + ids[0]).json()["progress"]["chain_steps_done"] > 0,
                   60, "progress")
        self.daemon.post("/v1/queue:pause")
        ids += [self.submit(d) for d in documents[1:]]
        self.promote("next")
        self.kill_and_start()
        for document, name, expected in zip(documents, ids, whole):
            done = wait_ended(self.daemon, name, 120)
            self.assertEqual((done["state"], done["model"]["version"]), ("succeeded", "2"), done["error"])
            self.assertEqual(artifacts(self.daemon, done), expected)
        self.assertEqual(len(self.daemon.logged("model_revived")), 1)
        self.assertEqual(run_job(self.daemon, documents[1])["model"]["version"], "next")

    def test_a_job_whose_version_was_removed_fails_as_model_gone(self):
        self.promote("next")
        self.daemon.post("/v1/queue:pause")
        name = self.submit(job())
        self.promote("2")
        os.unlink(self.staged)
        self.kill_and_start()
        done = wait_ended(self.daemon, name, 60)
        self.assertEqual((done["state"], done["error"]["code"]), ("failed", "model_gone"))
        self.assertIn('no version "next"', done["error"]["detail"])


if __name__ == "__main__":
    unittest.main()
