# SPDX-License-Identifier: Apache-2.0
"""Sampling jobs: accepted, followed, canceled, listed."""
import hashlib
import http.client
import io
import json
import threading
import time
import unittest
import uuid

from PIL import Image

import jemd_test
from jemd_test import ENDED, SLOW, patience, run_job, submit, wait_ended, wait_until
from jobs_help import LONG_STEPS, drawn, job, long_job


class Events:
    """A stream of server-sent events, read in a thread."""

    def __init__(self, daemon, path, last_id=None):
        self.connection = daemon.connection(30)
        self.connection.request("GET", path + "/events", headers={"Last-Event-ID": str(last_id)} if last_id else {})
        self.response = self.connection.getresponse()
        assert self.response.status == 200, self.response.status
        assert self.response.headers["content-type"] == "text/event-stream"
        self.all, self.ended = [], False
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        event = {}
        try:
            for line in self.response:
                line = line.decode().rstrip("\n")
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                elif event:
                    self.all.append((event["event"], int(event["id"]), json.loads(event["data"]), time.monotonic()))
                    event = {}
            self.ended = True
        except (OSError, ValueError, http.client.HTTPException):
            pass

    def kinds(self):
        return [e[0] for e in self.all]

    def of(self, kind):
        return [e[2] for e in self.all if e[0] == kind]

    def wait(self, seconds=60):
        self.thread.join(patience(seconds))
        assert not self.thread.is_alive(), "the stream does not end"
        self.connection.close()
        return self


class Life(jemd_test.Case):
    def test_a_job_from_submission_to_deletion(self):
        answer = self.post("/v1/jobs", job(labels={"who": "me"}))
        accepted = self.good(answer, 202)
        path = answer.headers["location"]
        self.assertEqual(uuid.UUID(accepted["id"]).version, 4)
        self.assertEqual(answer.headers["etag"], f'"{accepted["revision"]}"')
        self.assertEqual(accepted["request"], {**job(labels={"who": "me"}), "model": "sprites"})
        done = wait_ended(self.daemon, accepted["id"])
        self.assertEqual((done["state"], done["error"], done["attempts"]), ("succeeded", None, 1))
        self.assertEqual(done["progress"], {"chain_steps_done": 12, "chain_steps_total": 12, "fraction": 1.0})
        self.assertGreater(done["revision"], accepted["revision"])
        times = [done[k] for k in ("created_at", "started_at", "ended_at", "expires_at")]
        self.assertEqual(times, sorted(times))
        self.assertEqual(self.daemon.request("DELETE", path).status, 204)
        self.problem(self.get(path), 404, "not_found")

    def test_an_etag_spares_the_answer(self):
        done = run_job(self.daemon, job())
        path = "/v1/jobs/" + done["id"]
        etag = self.get(path).headers["etag"]
        same = self.get(path, {"If-None-Match": etag})
        self.assertEqual((same.status, same.headers["etag"]), (304, etag))
        self.assertEqual(self.get(path, {"If-None-Match": '"0"'}).status, 200)

    def test_a_long_poll_ends_with_a_change(self):
        accepted = submit(self.daemon, job(16, 40 if SLOW else 400))
        begin, states = time.monotonic(), ["queued"]
        while states[-1] not in ENDED and time.monotonic() < begin + patience(30):
            states.append(self.get(f"/v1/jobs/{accepted['id']}?wait=30").json()["state"])
        self.assertEqual(states[-1], "succeeded")
        self.assertLessEqual(len(states), 4)

    def test_a_long_poll_ends_with_its_time(self):
        accepted = submit(self.daemon, long_job())
        path = "/v1/jobs/" + accepted["id"]
        wait_until(lambda: self.get(path).json()["state"] == "running", 5)
        begin = time.monotonic()
        self.assertEqual(self.get(path + "?wait=0.5").json()["state"], "running")
        took = time.monotonic() - begin
        self.assertGreater(took, 0.45)
        self.assertLess(took, patience(1.5))
        self.post(path + ":cancel")
        wait_ended(self.daemon, accepted["id"])

    def test_a_long_poll_of_what_has_ended_does_not_wait(self):
        done = run_job(self.daemon, job())
        begin = time.monotonic()
        self.good(self.get(f"/v1/jobs/{done['id']}?wait=30"))
        self.assertLess(time.monotonic() - begin, patience(1))

    def test_a_long_poll_with_an_old_etag_does_not_wait(self):
        """What has changed since the caller looked is news, even if nothing changes any more soon."""
        accepted = submit(self.daemon, long_job())
        path = "/v1/jobs/" + accepted["id"]
        wait_until(lambda: self.get(path).json()["state"] == "running", 5)
        begin = time.monotonic()
        answer = self.get(path + "?wait=4", {"If-None-Match": f'"{accepted["revision"]}"'})
        took = time.monotonic() - begin
        self.post(path + ":cancel")
        wait_ended(self.daemon, accepted["id"])
        self.assertEqual(answer.json()["state"], "running")
        self.assertLess(took, 2 if not SLOW else 3.9)

    def test_a_job_without_steps_ends_at_its_start(self):
        done = run_job(self.daemon, job(steps=0, outputs=["tensor", "trace"]))
        self.assertEqual(done["progress"]["chain_steps_total"], 0)
        self.assertEqual([s["steps"] for s in done["result"]["samples"]], [0, 0])

    def test_a_running_job_cannot_be_deleted(self):
        accepted = submit(self.daemon, long_job())
        path = "/v1/jobs/" + accepted["id"]
        self.problem(self.daemon.request("DELETE", path), 409, "conflict")
        self.good(self.post(path + ":cancel"), 202)
        wait_ended(self.daemon, accepted["id"])
        self.assertEqual(self.daemon.request("DELETE", path).status, 204)

    def test_a_seed_is_drawn_and_told(self):
        document = job()
        del document["seed"]
        first, second = submit(self.daemon, document), submit(self.daemon, document)
        self.assertNotEqual(first["request"]["seed"], second["request"]["seed"])
        self.assertEqual(drawn(self.daemon, {**document, "seed": first["request"]["seed"]})["grid.png"],
                         self.get(f"/v1/jobs/{wait_ended(self.daemon, first['id'])['id']}/artifacts/grid.png").body)

    def test_a_deadline_with_an_offset(self):
        accepted = submit(self.daemon, job(deadline="2099-06-01T12:00:00.250+02:00"))
        self.assertEqual(accepted["deadline"], "2099-06-01T10:00:00.250Z")
        self.assertEqual(wait_ended(self.daemon, accepted["id"])["state"], "succeeded")

    def test_validate_estimates_and_makes_nothing(self):
        run_job(self.daemon, job())
        before = self.get("/v1/jobs?limit=1").json()
        estimate = self.good(self.post("/v1/jobs:validate", job(10, 100)))
        self.assertEqual((estimate["chains"], estimate["chain_steps"]), (10, 1000))
        self.assertGreater(estimate["memory_bytes"], 10 * 3 * 32 * 32 * 4)
        self.assertGreater(estimate["estimated_run_seconds"], 0)
        self.assertEqual(self.get("/v1/jobs?limit=1").json(), before)

    def test_the_queue_counts(self):
        accepted = submit(self.daemon, long_job(priority="high"))
        path = "/v1/jobs/" + accepted["id"]
        wait_until(lambda: self.get("/v1/queue").json()["jobs"]["running"] == 1, 5)
        queue = wait_until(lambda: (lambda q: q["engine"]["slots_busy"] and q)(self.get("/v1/queue").json()), 5)
        self.assertGreater(queue["backlog_seconds"], 0)
        self.assertGreater(queue["engine"]["chain_steps_per_second"], 0)
        self.post(path + ":cancel")
        wait_ended(self.daemon, accepted["id"])
        wait_until(lambda: self.get("/v1/queue").json()["engine"]["slots_busy"] == 0, 5)
        self.assertEqual(self.get("/v1/queue").json()["backlog_seconds"], 0)


class Cancel(jemd_test.Case):
    def canceled(self, accepted, within=None):
        path = "/v1/jobs/" + accepted["id"]
        begin = time.monotonic()
        answer = self.good(self.post(path + ":cancel"), 202)
        self.assertIn(answer["state"], ("canceling", "canceled"))
        while self.get(path, check=False).json()["state"] == "canceling" and time.monotonic() < begin + patience(10):
            time.sleep(0.005)
        took = time.monotonic() - begin
        now = self.get(path).json()
        self.assertEqual((now["state"], now["result"] is None or now["result"]), ("canceled", True))
        if within and not SLOW:
            self.assertLess(took, within)
        return now

    def test_a_running_job_stops_within_a_step(self):
        accepted = submit(self.daemon, long_job())
        path = "/v1/jobs/" + accepted["id"]
        wait_until(lambda: self.get(path).json()["progress"]["chain_steps_done"] > 0, 10)
        now = self.canceled(accepted, within=0.25)
        self.assertLess(now["progress"]["chain_steps_done"], 64 * LONG_STEPS)
        self.assertIsNotNone(now["started_at"])
        wait_until(lambda: self.get("/v1/queue").json()["engine"]["slots_busy"] == 0, 2)

    def test_canceling_twice_changes_nothing(self):
        accepted = submit(self.daemon, long_job())
        first = self.canceled(accepted)
        self.assertEqual(self.good(self.post(f"/v1/jobs/{accepted['id']}:cancel"), 202), first)

    def test_canceling_what_has_succeeded_changes_nothing(self):
        done = run_job(self.daemon, job())
        self.assertEqual(self.good(self.post(f"/v1/jobs/{done['id']}:cancel"), 202), done)

    def test_many_cancels_at_once(self):
        accepted = [submit(self.daemon, long_job()) for _ in range(4)]
        threads = [threading.Thread(target=self.post, args=(f"/v1/jobs/{a['id']}:cancel",)) for a in accepted * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for a in accepted:
            self.assertEqual(wait_ended(self.daemon, a["id"], 10)["state"], "canceled")


class Limits(jemd_test.Case):
    FLAGS = ("--memory.budget_bytes=64M", "--jobs.max_queued_per_client=12")

    def test_a_job_beyond_the_memory_is_refused(self):
        found = self.problem(self.post("/v1/jobs:validate", job(1024, 100000, outputs=["trace"])), 422, "out_of_range")
        self.assertIn("MB", found["detail"])

    def test_a_clients_quota(self):
        ids = [submit(self.daemon, long_job())["id"] for _ in range(12)]
        answer = self.post("/v1/jobs", job())
        found = self.problem(answer, 429, "quota")
        self.assertEqual(found["errors"][0]["limit"], 12)
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        for job_id in ids:
            self.post(f"/v1/jobs/{job_id}:cancel")
        for job_id in ids:
            wait_ended(self.daemon, job_id)
        run_job(self.daemon, job())


class Full(jemd_test.Case):
    FLAGS = ("--jobs.max_queued=3",)

    def test_the_queue_as_a_whole_has_a_limit(self):
        self.good(self.post("/v1/queue:pause"))
        ids = [submit(self.daemon, job())["id"] for _ in range(3)]
        answer = self.post("/v1/jobs", job())
        found = self.problem(answer, 503, "overloaded")
        self.assertEqual(found["errors"][0]["limit"], 3)
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        self.good(self.post(f"/v1/jobs/{ids[0]}:cancel"), 202)
        ids[0] = submit(self.daemon, job())["id"]
        self.problem(self.post("/v1/jobs", job()), 503, "overloaded")
        self.good(self.post("/v1/queue:resume"))
        for job_id in ids:
            self.assertEqual(wait_ended(self.daemon, job_id)["state"], "succeeded")
        run_job(self.daemon, job())


class Queued(jemd_test.Case):
    """64 jobs run at once; the 65th waits."""
    FLAGS = ("--jobs.max_queued_per_client=100", "--jobs.max_running_per_client=0")

    def setUp(self):
        self.ids = [submit(self.daemon, job(1, LONG_STEPS * 10))["id"] for _ in range(64)]
        wait_until(lambda: self.get("/v1/queue").json()["jobs"]["running"] == 64, 10)
        self.addCleanup(self.empty)

    def empty(self):
        for job_id in self.ids:
            self.daemon.post(f"/v1/jobs/{job_id}:cancel", check=False)
        for job_id in self.ids:
            wait_ended(self.daemon, job_id)

    def wait(self, **more):
        accepted = submit(self.daemon, job(**more))
        self.ids.append(accepted["id"])
        return accepted["id"]

    def state(self, job_id):
        return self.get("/v1/jobs/" + job_id).json()["state"]

    def test_a_waiting_job_is_canceled_at_once(self):
        waiting = self.wait()
        events = Events(self.daemon, "/v1/jobs/" + waiting)
        time.sleep(0.3)
        self.assertEqual(self.state(waiting), "queued")
        now = self.good(self.post(f"/v1/jobs/{waiting}:cancel"), 202)
        self.assertEqual((now["state"], now["started_at"], now["attempts"]), ("canceled", None, 0))
        self.assertEqual(events.wait(5).kinds(), ["snapshot", "state", "end"])

    def test_priority_comes_before_age(self):
        low, normal, high = (self.wait(steps=LONG_STEPS * 10, priority=p) for p in ("low", "normal", "high"))
        queue = self.get("/v1/queue").json()
        self.assertEqual(queue["queued_by_priority"], {"low": 1, "normal": 1, "high": 1})
        self.assertGreater(queue["oldest_queued_age_seconds"], 0)
        for expected in (high, normal, low):
            self.post(f"/v1/jobs/{self.ids.pop(0)}:cancel")
            wait_until(lambda: self.state(expected) == "running", 10, "the next in line")
            states = [self.state(j) for j in (low, normal, high)]
            self.assertEqual(states.count("running"), 1 + (high, normal, low).index(expected), states)


class Idempotency(jemd_test.Case):
    def test_the_same_key_and_document_make_one_job(self):
        key = {"Idempotency-Key": "key-1"}
        first = submit(self.daemon, job(), key)
        second = submit(self.daemon, job(), key)
        self.assertEqual(first["id"], second["id"])
        wait_ended(self.daemon, first["id"])
        answer = self.post("/v1/jobs", json.dumps(job(), indent=3), headers=key)
        self.assertEqual(self.good(answer, 202)["id"], first["id"])
        self.assertEqual(answer.headers["location"], "/v1/jobs/" + first["id"])
        self.assertEqual(answer.json()["state"], "succeeded")

    def test_a_seed_drawn_by_the_daemon_is_no_other_document(self):
        document = job()
        del document["seed"]
        key = {"Idempotency-Key": "key-2"}
        first, second = submit(self.daemon, document, key), submit(self.daemon, document, key)
        self.assertEqual((first["id"], first["request"]), (second["id"], second["request"]))

    def test_the_same_key_with_another_document_is_refused(self):
        key = {"Idempotency-Key": "key-3"}
        first = submit(self.daemon, job(), key)
        found = self.problem(self.post("/v1/jobs", job(seed="8"), headers=key), 422, "idempotency_mismatch")
        self.assertIn(first["id"], found["detail"])

    def test_a_deleted_jobs_key_is_free_again(self):
        key = {"Idempotency-Key": "key-4"}
        first = submit(self.daemon, job(), key)
        wait_ended(self.daemon, first["id"])
        self.daemon.request("DELETE", "/v1/jobs/" + first["id"])
        self.assertNotEqual(submit(self.daemon, job(), key)["id"], first["id"])

    def test_many_at_once_make_one_job(self):
        ids, key = [], {"Idempotency-Key": "key-5"}
        threads = [threading.Thread(target=lambda: ids.append(submit(self.daemon, job(), key)["id"])) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((len(ids), len(set(ids))), (12, 1))


class Lists(jemd_test.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.ids = [submit(cls.daemon, job(1, 1, labels={"n": str(i), "even" if i % 2 == 0 else "odd": "yes"}))["id"]
                   for i in range(9)]
        for job_id in cls.ids:
            wait_ended(cls.daemon, job_id)

    def listed(self, query=""):
        return [j["id"] for j in self.get("/v1/jobs" + query).json()["jobs"]]

    def test_newest_first(self):
        self.assertEqual(self.listed(), self.ids[::-1])

    def test_labels(self):
        self.assertEqual(self.listed("?label=even"), self.ids[::2][::-1])
        self.assertEqual(self.listed("?label=n:3"), [self.ids[3]])
        self.assertEqual(self.listed("?label=n%3D3"), [self.ids[3]])
        self.assertEqual(self.listed("?label=n:10"), [])
        self.assertEqual(self.listed("?label=none"), [])

    def test_states_and_types(self):
        self.assertEqual(len(self.listed("?state=succeeded&type=sample")), 9)
        self.assertEqual(self.listed("?state=queued"), [])

    def test_pages(self):
        seen, query = [], "?limit=2"
        for _ in range(20):
            page = self.get("/v1/jobs" + query).json()
            seen += [j["id"] for j in page["jobs"]]
            if not page["next_cursor"]:
                break
            query = "?limit=2&cursor=" + page["next_cursor"]
        self.assertEqual(seen, self.ids[::-1])

    def test_pages_of_a_filter_while_jobs_come_and_go(self):
        page = self.get("/v1/jobs?limit=2&label=even").json()
        new = run_job(self.daemon, job(1, 1, labels={"even": "yes"}))["id"]
        rest = self.get("/v1/jobs?limit=50&label=even&cursor=" + page["next_cursor"]).json()
        self.assertEqual([j["id"] for j in page["jobs"] + rest["jobs"]], self.ids[::2][::-1])
        self.daemon.request("DELETE", "/v1/jobs/" + new)


class Following(jemd_test.Case):
    def test_events_of_a_jobs_life(self):
        accepted = submit(self.daemon, job(16, 300 if jemd_test.SLOW else 1200))
        events = Events(self.daemon, "/v1/jobs/" + accepted["id"]).wait()
        self.assertTrue(events.ended)
        kinds = events.kinds()
        self.assertEqual((kinds[0], kinds[-1]), ("snapshot", "end"))
        self.assertEqual((kinds.count("snapshot"), kinds.count("end")), (1, 1))
        self.assertEqual([e["state"] for e in events.of("state")][-1], "succeeded")
        ids = [e[1] for e in events.all]
        self.assertEqual(ids, sorted(ids))
        for kind, name in (("snapshot", "JobSummary"), ("state", "JobSummary"), ("end", "JobSummary"), ("progress", "JobProgress")):
            for data in events.of(kind):
                self.daemon.contract.match_name(data, name)
        done = [p["chain_steps_done"] for p in events.of("progress")]
        self.assertGreater(len(done), 1)
        self.assertEqual(done, sorted(done))
        self.assertEqual(events.of("end")[0]["progress"]["fraction"], 1.0)

    def test_states_come_in_their_order(self):
        order = {"queued": 0, "running": 1, "canceling": 2, "succeeded": 3, "canceled": 3}
        for i in range(20):
            accepted = submit(self.daemon, job(1, 3))
            events = Events(self.daemon, "/v1/jobs/" + accepted["id"]).wait(10)
            states = [order[d["state"]] for k, _, d, _ in events.all if k in ("snapshot", "state", "end")]
            self.assertEqual(states, sorted(states), events.all)

    def test_progress_comes_at_most_twice_a_second(self):
        accepted = submit(self.daemon, long_job())
        events = Events(self.daemon, "/v1/jobs/" + accepted["id"])
        wait_until(lambda: len(events.of("progress")) >= 6, 20)
        self.post(f"/v1/jobs/{accepted['id']}:cancel")
        events.wait()
        times = [e[3] for e in events.all if e[0] == "progress"]
        gaps = [b - a for a, b in zip(times, times[1:])]
        self.assertGreater(sum(gaps) / len(gaps), 0.42)

    def test_events_go_on_after_the_last_id(self):
        accepted = submit(self.daemon, long_job())
        path = "/v1/jobs/" + accepted["id"]
        first = Events(self.daemon, path)
        wait_until(lambda: len(first.of("progress")) >= 2, 10)
        self.post(path + ":cancel")
        first.wait(10)
        at = next(e[1] for e in first.all if e[0] == "progress")
        again = Events(self.daemon, path, at).wait(10)
        self.assertEqual([e[:3] for e in again.all], [e[:3] for e in first.all if e[1] > at])
        self.assertNotIn("snapshot", again.kinds())

    def test_events_of_what_has_ended(self):
        done = run_job(self.daemon, job())
        events = Events(self.daemon, "/v1/jobs/" + done["id"]).wait(5)
        self.assertEqual(events.kinds(), ["snapshot", "end"])
        late = Events(self.daemon, "/v1/jobs/" + done["id"], 999999).wait(5)
        self.assertEqual(late.kinds(), ["snapshot", "end"])

    def test_many_followers_see_the_same(self):
        accepted = submit(self.daemon, job(16, 200))
        crowd = [Events(self.daemon, "/v1/jobs/" + accepted["id"]) for _ in range(12)]
        for events in crowd:
            self.assertEqual(events.wait().kinds()[-1], "end")
            self.assertEqual(events.of("end"), crowd[0].of("end"))

    def test_previews(self):
        accepted = submit(self.daemon, job(4, 1000, preview_every_steps=50))
        path = "/v1/jobs/" + accepted["id"]
        events = Events(self.daemon, path)
        link = wait_until(lambda: events.of("preview"), 10)[0]
        self.daemon.contract.match_name(link, "JobPreview")
        answer = self.get(link["url"])
        if answer.status == 200:  # it may be over already
            self.assertEqual(answer.headers["etag"].strip('"'), hashlib.sha256(answer.body).hexdigest())
            self.assertEqual(Image.open(io.BytesIO(answer.body)).mode, "RGB")
        events.wait()
        self.assertLess(len(events.of("preview")), 21)
        wait_until(lambda: self.get(path + "/artifacts/preview.png").status == 404, 2, "the end of the preview")


class Fairness(jemd_test.Case):
    @unittest.skipIf(SLOW, "a matter of time")
    def test_a_short_job_does_not_wait_for_a_long_one(self):
        ratios = []
        for _ in range(3):
            alone = self.median_seconds()
            accepted = submit(self.daemon, long_job())
            wait_until(lambda: self.get("/v1/queue").json()["engine"]["slots_busy"] > 0, 5)
            ratios.append(self.median_seconds() / alone)
            self.assertEqual(self.get("/v1/jobs/" + accepted["id"]).json()["state"], "running")
            self.post(f"/v1/jobs/{accepted['id']}:cancel")
            wait_ended(self.daemon, accepted["id"])
            if ratios[-1] < 2.5:
                return
        self.fail(f"a 16 x 100 job takes {ratios} times as long beside a 64 x {LONG_STEPS} one")

    def median_seconds(self):
        times = []
        for i in range(3):
            begin = time.monotonic()
            accepted = submit(self.daemon, job(16, 100, outputs=[]))
            events = Events(self.daemon, "/v1/jobs/" + accepted["id"]).wait()
            self.assertEqual(events.of("end")[0]["state"], "succeeded")
            times.append(time.monotonic() - begin)
        return sorted(times)[1]


if __name__ == "__main__":
    unittest.main()
