# SPDX-License-Identifier: Apache-2.0
"""Every call on a job's path that may fail does fail once: memory, files, syncs, SQLite, threads,
sockets. The daemon must neither crash nor leak nor lose a job that it has accepted, and every answer
and every end of a job must be an honest one.

A round arms one fault, uses every route that jobs have, and looks at what came of it. Rounds begin with
faults at random places; JEMD_TORTURE_SECONDS (default 6) is how long they go on. With
JEMD_TORTURE=stacks each place from which a call comes fails once instead, until there is none left.
JEMD_TORTURE_SEED repeats a run.
"""
import collections
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SOURCE = os.environ.get("JEMD_SOURCE") or os.path.abspath(
    os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path[:0] = [os.path.join(SOURCE, "tests", "http"), os.path.join(SOURCE, "tests", "faults")]
# pylint: disable=wrong-import-position
import faults  # noqa: E402
from faults import CALLS, Faults  # noqa: E402
from jemd_test import BIN, ENDED, Answer, Daemon, patience, wait_until  # noqa: E402
from train_help import by_command, recipe, stripes  # noqa: E402

SECONDS = float(os.environ.get("JEMD_TORTURE_SECONDS", "6"))
STACKS = os.environ.get("JEMD_TORTURE") == "stacks"
SEED = int(os.environ.get("JEMD_TORTURE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
RESTART_EVERY = 40
ANSWER_S = 20  # longer than that is no answer
# How an answer may fail that a fault has struck.
HONEST = {500, 503, 507}


def job(steps=4, seed="7", **more):
    return {"type": "sample", "model": "stripes", "seed": seed, "sampler": {"steps": steps},
            "conditions": [{"count": 2, "attributes": {"way": "down"}}], **more}


class Ledger:
    """What was accepted, and what is known of its end."""

    def __init__(self):
        self.open = {}   # id -> request, of jobs that were answered 202 and have not been seen to end
        self.ended = {}  # id -> the job as it was seen at its end

    def accept(self, answer, request):
        if answer is not None and answer.status == 202:
            self.open[answer.json()["id"]] = request
            return answer.json()["id"]
        return None


class Stream(threading.Thread):
    """Reads a job's events until the daemon ends them."""

    def __init__(self, daemon, path):
        super().__init__(daemon=True)
        self.connection = daemon.connection(ANSWER_S)
        self.path, self.late = path, False
        self.start()

    def run(self):
        try:
            self.connection.request("GET", self.path, headers={"Accept": "text/event-stream"})
            self.connection.getresponse().read()
        except TimeoutError:
            self.late = True
        except (OSError, http.client.HTTPException, AttributeError):
            pass
        self.connection.close()


class Torture(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if "libtsan" in subprocess.run(["ldd", BIN], capture_output=True, text=True, check=False).stdout:
            raise unittest.SkipTest("nothing can be preloaded before ThreadSanitizer")
        cls.root = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="jemd-torture-"))
        data = os.path.join(cls.root, "stripes")
        for split, rows in (("train", 64), ("calib", 40), ("test", 48)):
            stripes(data, split, rows)
        cls.made = os.path.join(cls.root, "models")
        os.mkdir(cls.made)
        with open(os.path.join(cls.made, "stripes.safetensors"), "wb") as f:
            f.write(by_command(cls.root, data, recipe(steps=5)))

    def setUp(self):
        self.random = random.Random(SEED)
        self.folder = tempfile.mkdtemp(prefix="jemd-torture-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.faults = Faults(self.folder)
        self.models = os.path.join(self.folder, "models")  # a training puts its own there
        shutil.copytree(self.made, self.models)
        self.daemon = Daemon("--models.directory=" + self.models, "--sampler.checkpoint_ms=100",
                             "--train.enabled=yes", "--train.data_root=" + self.root, "--train.nice=0",
                             "--train.directory=" + os.path.join(self.folder, "runs"),
                             "--jobs.lease_ms=1000", "--jobs.max_queued=900", "--sampler.nice=0",
                             "--jobs.max_queued_per_client=900", "--http.max_connections_per_ip=900",
                             environment=self.faults.environment())
        self.addCleanup(self.daemon.discard)
        self.daemon.start()
        self.assertEqual(self.faults.get("attached"), self.daemon.pid, "faults.c is not in it")
        self.ledger, self.rounds, self.struck = Ledger(), 0, collections.Counter()
        self.expected = {}

    # one round

    def ask(self, method, path, body=None, headers=None):
        """The answer, or None if the connection ended without one."""
        connection = self.daemon.connection(ANSWER_S)
        data = json.dumps(body).encode() if body is not None else None
        headers = {**({"Content-Type": "application/json"} if data else {}), **(headers or {})}
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            answer = Answer(response.status, response.getheaders(), response.read())
        except TimeoutError:
            self.broken(f"no answer to {method} {path} within {ANSWER_S} s")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if answer.status >= 400 and answer.status not in (404, 409, 412):
            if answer.status not in HONEST or "code" not in answer.json():
                self.broken(f"{method} {path}: {answer!r}")
        return answer

    def use_jobs(self):
        """Every route of jobs, once; what fails is gone on without."""
        ask, tag = self.ask, f"{self.rounds}"
        first = job(preview_every_steps=1, labels={"of": "torture"})
        key = {"Idempotency-Key": "key-" + tag}
        ask("POST", "/v1/jobs:validate", first)
        drawn = self.ledger.accept(ask("POST", "/v1/jobs", first, key), first)
        again = self.ledger.accept(ask("POST", "/v1/jobs", first, key), first)
        if drawn and again and again != drawn:
            self.broken("a job was made twice with one key")
        drawn = again or drawn
        streams = [Stream(self.daemon, f"/v1/jobs/{drawn}/events")] if drawn else []
        long = job(5000, seed="8", labels={"of": "torture"})
        name = f"{self.random.getrandbits(128):032x}"
        name = f"{name[:8]}-{name[8:12]}-4{name[13:16]}-8{name[17:20]}-{name[20:]}"
        running = self.ledger.accept(ask("PUT", "/v1/jobs/" + name, long), long)
        if running:
            streams.append(Stream(self.daemon, f"/v1/jobs/{running}/events"))
        later = job(scheduled_at="2099-01-01T00:00:00Z")
        waiting = self.ledger.accept(ask("POST", "/v1/jobs", later), later)
        ask("GET", f"/v1/jobs?label=of:torture&limit=1")
        ask("GET", "/v1/queue")
        ask("GET", "/metrics")
        if running:
            self.change(running)
        if drawn:
            self.look_at(drawn, first)
        if running:
            time.sleep(0.12)  # a checkpoint
            ask("POST", f"/v1/jobs/{running}:cancel")
        if waiting:
            ask("POST", "/v1/jobs:cancel", {"ids": [waiting]})
        return streams

    def change(self, job_id):
        now = self.ask("GET", f"/v1/jobs/{job_id}")
        if now is None or now.status != 200:
            return
        self.ask("PATCH", f"/v1/jobs/{job_id}", {"priority": "high"}, {"If-Match": now.headers["etag"]})
        self.ask("PATCH", f"/v1/jobs/{job_id}", {"labels": {"a": "b"}})

    def look_at(self, job_id, request):
        now = self.ask("GET", f"/v1/jobs/{job_id}?wait=2")
        self.ask("GET", f"/v1/jobs/{job_id}/artifacts/preview.png")
        if now is None or now.status != 200 or now.json()["state"] != "succeeded":
            return
        for a in now.json()["result"]["artifacts"][:2]:
            self.ask("GET", f"/v1/jobs/{job_id}/artifacts/{a['name']}", headers={"Range": "bytes=0-9"})
        retried = self.ask("POST", f"/v1/jobs/{job_id}:retry")
        again = self.ledger.accept(retried, request)
        if again:
            self.ask("GET", f"/v1/jobs/{again}?wait=1")
            self.ask("DELETE", "/v1/jobs/00000000-0000-4000-8000-000000000000")

    # what came of it

    def broken(self, what):
        self.faults.off()
        alive = self.daemon.process.poll()
        self.fail(f"{what} (round {self.rounds}, JEMD_TORTURE_SEED={SEED}, exit {alive})\nthe call "
                  f"that failed:\n{self.faults.last()}\nthe daemon's log:\n{self.daemon.log()[-3000:]}")

    def artifacts(self, ended):
        """name -> SHA-256, of what can be fetched."""
        out = {}
        for a in ended["result"]["artifacts"]:
            until = time.monotonic() + patience(10)
            while True:  # a store that doubts its file opens it anew
                answer = self.ask("GET", ended["links"]["artifacts"] + a["name"])
                if answer is not None and answer.status == 200:
                    break
                if time.monotonic() > until or answer is None or answer.status != 503:
                    self.broken(f"an artifact is not there: {a['name']} of {ended['id']}: {answer!r}")
            out[a["name"]] = hashlib.sha256(answer.body).hexdigest()
            self.assertEqual(out[a["name"]], a["sha256"])
        return out

    def check_end(self, ended, request):
        state = ended["state"]
        if state == "failed" and not (ended["error"] and len(ended["error"]["detail"]) > 10):
            self.broken(f"a job failed without a reason: {ended}")
        if state == "expired":
            self.broken(f"a job expired: {ended}")
        if state == "canceled" and request.get("seed") == "7" and "scheduled_at" not in request:
            self.broken(f"a job was canceled that nobody canceled: {ended}")
        if state == "succeeded" and request["type"] == "sample":
            got = self.artifacts(ended)
            want = self.expected.setdefault(json.dumps(request), got)
            if got != want:
                self.broken(f"job {ended['id']} has other artifacts than before")
        self.struck[state + (" " + ended["error"]["code"] if ended["error"] else "")] += 1

    def settle(self, streams):
        """Without faults: every accepted job ends, every stream does, nothing stays open."""
        wait_until(lambda: all(c["ok"] for c in self.ask("GET", "/readyz?verbose").json()["checks"]), 30,
                   "the store is well again")
        until = time.monotonic() + patience(30)
        for job_id, request in list(self.ledger.open.items()):
            while True:
                now = self.ask("GET", f"/v1/jobs/{job_id}?wait=1")
                if now is not None and now.status == 200 and now.json()["state"] in ENDED:
                    break
                if now is not None and now.status in (404, 410):
                    self.broken(f"job {job_id} was accepted and is not there")
                if time.monotonic() > until:
                    self.broken(f"job {job_id} does not end: {now!r}")
                if request.get("sampler") == {"steps": 5000} or "scheduled_at" in request:
                    self.ask("POST", f"/v1/jobs/{job_id}:cancel")
            self.check_end(now.json(), request)
            self.ledger.ended[job_id] = now.json()
            del self.ledger.open[job_id]
        for stream in streams:
            stream.join(patience(30))
            if stream.is_alive() or stream.late:
                self.broken(f"the stream {stream.path} does not end")

    def round(self, how, nth=1, calls=CALLS):
        """The number of calls that were counted; how many failed is in self.failed."""
        self.rounds += 1
        self.faults.arm(how, calls, nth)
        streams = self.use_jobs()
        self.failed, counted = self.faults.off(), self.faults.get("counted")
        if self.daemon.process.poll() is not None:
            self.broken("the daemon has ended")
        self.settle(streams)
        if self.rounds % RESTART_EVERY == 0:
            self.restart()
        return counted

    def restart(self):
        """Nothing has leaked, and everything is still there."""
        wait_until(lambda: self.daemon.open_files() <= self.files + 4, 15, "closing of what is open")
        self.end()
        self.daemon.start()
        for job_id, was in self.ledger.ended.items():
            now = self.ask("GET", f"/v1/jobs/{job_id}")
            if now is None or now.status != 200 or now.json() != was:
                self.broken(f"after a restart job {job_id} is {now!r}, was {was}")
        self.ledger.ended.clear()

    def end(self):
        try:
            self.daemon.stop()
        except AssertionError as e:
            self.broken(f"it did not end well: {e}")
        leak = re.search(r"ERROR: (Leak|Address)Sanitizer.*", self.daemon.log(), re.S)
        if leak:
            self.broken(leak.group(0)[:4000])

    # stopping and starting

    def fall(self, size):
        """SIGTERM while jobs run, with a fault on the way; how many calls were counted."""
        self.faults.arm(faults.ONCE if size else faults.COUNT, nth=self.random.randrange(1, size + 2))
        self.daemon.signal(signal.SIGTERM)
        try:
            code = self.daemon.wait_exit(40)
        except subprocess.TimeoutExpired:
            self.broken("it does not end")
        if code < 0:
            self.broken("it crashed while it was stopped")
        self.failed += self.faults.off()
        return self.faults.get("counted")

    def rise(self, size):
        """Starts with a fault on the way: it is ready in the end or says why not."""
        self.faults.arm(faults.ONCE if size else faults.COUNT, nth=self.random.randrange(1, size + 2))
        self.daemon.spawn()
        wait_until(lambda: self.daemon.process.poll() is not None or self.daemon.logged("ready"), 30,
                   "the start")
        code = self.daemon.process.poll()
        self.failed += self.faults.off()
        counted = self.faults.get("counted")
        if code is not None and (code < 0 or not self.daemon.log().strip()):
            self.broken("it crashed while it started")
        self.daemon.kill()
        self.daemon.start()
        return counted

    # the tests

    def test_a_call_of_a_training_fails(self):
        self.files, failed, size = self.daemon.open_files(), 0, 0
        until = time.monotonic() + SECONDS / 2
        while time.monotonic() < until or failed == 0:
            self.rounds += 1
            document = {"type": "train", "recipe": recipe(f"t{self.rounds}", steps=3),
                        "data": {"path": "stripes"}}
            self.faults.arm(faults.ONCE if size else faults.COUNT,
                            nth=self.random.randrange(1, size + 2))
            made = self.ledger.accept(self.ask("POST", "/v1/jobs", document), document)
            streams = [Stream(self.daemon, f"/v1/jobs/{made}/events")] if made else []
            while made and (now := self.ask("GET", f"/v1/jobs/{made}?wait=5")) is not None and (
                    now.status != 200 or now.json()["state"] not in ENDED):
                pass
            failed += self.faults.off()
            size = max(size, self.faults.get("counted"))
            if self.daemon.process.poll() is not None:
                self.broken("the daemon has ended")
            self.settle(streams)
        self.restart()
        self.end()
        print(f"torture: seed {SEED}, {self.rounds} trainings, {failed} calls failed of some {size} each, "
              f"{dict(self.struck)}", file=sys.stderr)

    def test_a_stop_or_a_start_in_which_a_call_fails_loses_no_job(self):
        self.files, self.failed = self.daemon.open_files(), 0
        stopping = starting = 0
        until = time.monotonic() + SECONDS / 2
        while time.monotonic() < until or self.failed == 0:
            self.rounds += 1
            for document in (job(500, seed="9"), job(), job(500, seed="10")):
                if not self.ledger.accept(self.ask("POST", "/v1/jobs", document), document):
                    self.broken("a job was not accepted")
            time.sleep(self.random.random() * 0.3)
            stopping = max(stopping, self.fall(stopping))
            starting = max(starting, self.rise(starting))
            self.settle([])
        self.restart()
        self.end()
        print(f"torture: seed {SEED}, {self.rounds} stops and starts, {self.failed} calls failed of some "
              f"{stopping} and {starting}, {dict(self.struck)}", file=sys.stderr)

    def test_each_call_fails_once(self):
        self.files = self.daemon.open_files()
        size = max(self.round(faults.COUNT) for _ in range(3))
        self.assertGreater(size, 1000)
        until, failed = time.monotonic() + SECONDS, 0
        while time.monotonic() < until:
            if STACKS:
                self.round(faults.NEW)
                if not self.failed:
                    break
            else:
                self.round(faults.ONCE, self.random.randrange(1, size))
            failed += self.failed
        self.restart()
        self.end()
        print(f"torture: seed {SEED}, {self.rounds} rounds, {failed} calls failed of some {size} a "
              f"round, {self.faults.stacks()} places, {dict(self.struck)}", file=sys.stderr)
        self.assertGreater(failed, 0)


if __name__ == "__main__":
    unittest.main()
