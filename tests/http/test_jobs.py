# SPDX-License-Identifier: Apache-2.0
"""Sampling jobs: accepted, followed, canceled, listed, and what they leave behind."""
import hashlib
import http.client
import io
import json
import struct
import threading
import time
import unittest
import uuid

import numpy as np
from PIL import Image

import jemd_test
from jemd_test import (ENDED, SLOW, b64, patience, run_job, sample, save, submit, wait_ended,
                       wait_until)

LONG_STEPS = 5000


def job(count=2, steps=6, seed="7", **more):
    return {"type": "sample", "conditions": [{"count": count, "attributes": {"sex": "male"}}],
            "sampler": {"steps": steps}, "seed": seed, **more}


def long_job(**more):
    return job(64, LONG_STEPS, **more)


def drawn(daemon, document):
    """name -> bytes of what a job leaves."""
    done = run_job(daemon, document)
    return {a["name"]: daemon.get(done["links"]["artifacts"] + a["name"]).body
            for a in done["result"]["artifacts"]}


def tensors(data):
    """(arrays, metadata) of a safetensors file, which must have no holes."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    metadata, arrays, ends = header.pop("__metadata__"), {}, [0]
    for name, e in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = e["data_offsets"]
        assert first == ends[-1], name
        ends.append(end)
        kind = {"F32": "<f4", "I32": "<i4", "U8": "u1"}[e["dtype"]]
        arrays[name] = np.frombuffer(data[8 + length + first:8 + length + end], kind).reshape(e["shape"])
    assert 8 + length + ends[-1] == len(data)
    return arrays, metadata


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
        accepted = submit(self.daemon, job(16, 400))
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


class Queued(jemd_test.Case):
    """64 jobs run at once; the 65th waits."""
    FLAGS = ("--jobs.max_queued_per_client=100",)

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
        accepted = submit(self.daemon, job(16, 500))
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


class Artifacts(jemd_test.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.document = job(5, 40, outputs=["grid", "images", "tensor", "trace"])
        cls.done = run_job(cls.daemon, cls.document)
        cls.base = cls.done["links"]["artifacts"]
        cls.files = {a["name"]: cls.daemon.get(cls.base + a["name"]) for a in cls.done["result"]["artifacts"]}

    def test_they_are_what_was_asked_for(self):
        self.assertEqual(sorted(self.files), sorted(
            ["grid.png", "samples.safetensors", "trace.json", "provenance.json"] + [f"samples/00{i}.png" for i in range(5)]))
        self.assertEqual(sorted(drawn(self.daemon, job(outputs=[]))), ["provenance.json"])
        self.assertEqual(sorted(drawn(self.daemon, job(1))), ["grid.png", "provenance.json", "samples/000.png"])

    def test_sizes_types_and_digests_are_true(self):
        for a in self.done["result"]["artifacts"]:
            answer = self.files[a["name"]]
            self.assertEqual((len(answer.body), answer.headers["content-type"]), (a["size_bytes"], a["content_type"]))
            self.assertEqual(hashlib.sha256(answer.body).hexdigest(), a["sha256"])
            self.assertEqual(answer.headers["etag"], f'"{a["sha256"]}"')

    def test_ranges_are_parts_of_the_whole(self):
        whole = self.files["samples.safetensors"]
        n = len(whole.body)
        for text, first, end in (("0-0", 0, 1), ("5-99", 5, 100), (f"{n - 3}-", n - 3, n), ("-7", n - 7, n),
                                 (f"10-{n * 2}", 10, n), (f"-{n * 2}", 0, n), (f"0-{n - 1}", 0, n)):
            answer = self.get(self.base + "samples.safetensors", {"Range": "bytes=" + text})
            self.assertEqual((answer.status, answer.body), (206, whole.body[first:end]), text)
            self.assertEqual(answer.headers["content-range"], f"bytes {first}-{end - 1}/{n}")
            self.assertEqual(answer.headers["etag"], whole.headers["etag"])

    def test_if_range_gives_the_whole_of_another_version(self):
        path, etag = self.base + "grid.png", self.files["grid.png"].headers["etag"]
        self.assertEqual(self.get(path, {"Range": "bytes=0-3", "If-Range": etag}).status, 206)
        self.assertEqual(self.get(path, {"Range": "bytes=0-3", "If-Range": '"x"'}).status, 200)
        self.assertEqual(self.get(path, {"Range": "bytes=0-3", "If-None-Match": etag}).status, 304)

    def test_the_grid_shows_every_sample(self):
        grid = np.array(Image.open(io.BytesIO(self.files["grid.png"].body)))
        self.assertEqual(grid.shape[2], 3)
        scale = 3
        self.assertEqual(grid.shape[:2], (4 + 2 * (32 * scale + 4), 4 + 3 * (32 * scale + 4)))
        for i in range(5):
            tile = np.array(Image.open(io.BytesIO(self.files[f"samples/00{i}.png"].body)))
            y, x = 4 + i // 3 * (32 * scale + 4), 4 + i % 3 * (32 * scale + 4)
            np.testing.assert_array_equal(grid[y:y + 32 * scale:scale, x:x + 32 * scale:scale], tile)

    def test_the_tensors_agree_with_samples_and_images(self):
        arrays, metadata = tensors(self.files["samples.safetensors"].body)
        samples = self.done["result"]["samples"]
        self.assertEqual({k: (v.shape, str(v.dtype)) for k, v in arrays.items()}, {
            "x": ((5, 3, 32, 32), "float32"), "logits": ((5, 25), "float32"), "energy": ((5,), "float32"),
            "score": ((5,), "float32"), "y": ((5, 7), "int32"), "condition": ((5,), "int32"), "diverged": ((5,), "uint8")})
        np.testing.assert_allclose(arrays["energy"], [s["energy"] for s in samples], rtol=1e-6)
        np.testing.assert_allclose(arrays["score"], [s["score"] for s in samples], rtol=1e-6)
        self.assertEqual(json.loads(metadata["provenance"]), self.files["provenance.json"].json())
        for i in range(5):
            image = np.array(Image.open(io.BytesIO(self.files[f"samples/00{i}.png"].body))).transpose(2, 0, 1)
            np.testing.assert_allclose(image, (arrays["x"][i] + 1) * 127.5, atol=0.51)
        blocks = np.split(arrays["logits"], np.cumsum([2, 4, 5, 6, 2, 3])[:6], axis=1)
        log_px = sum(np.log(np.exp(b - b.max(1, keepdims=True)).sum(1)) + b.max(1) for b in blocks)
        np.testing.assert_allclose(-log_px, arrays["energy"], atol=1e-4)

    def test_predicting_the_tensor_gives_the_samples_numbers(self):
        arrays, _ = tensors(self.files["samples.safetensors"].body)
        raw = arrays["x"].transpose(0, 2, 3, 1).astype("<f4").tobytes()
        results = self.predicted(raw, "application/octet-stream", headers={"X-Image-Shape": "5,32,32,3", "X-Image-Type": "float32"})
        for result, s in zip(results, self.done["result"]["samples"]):
            self.assertAlmostEqual(result["energy"], s["energy"], delta=1e-3)
            self.assertEqual({a["name"]: a["value"] for a in result["attributes"]}, s["attributes"])
            self.assertEqual(s["condition_satisfied"], s["attributes"]["sex"] == "male")
            self.assertEqual(list(s["probabilities"]), ["sex"])

    def test_the_trace_climbs(self):
        trace = self.files["trace.json"].json()
        self.assertEqual([c["chain"] for c in trace["chains"]], list(range(5)))
        for chain, s in zip(trace["chains"], self.done["result"]["samples"]):
            self.assertEqual(len(chain["score"]), len(chain["mean_abs_gradient"]))
            self.assertGreater(len(chain["score"]), 5)
            self.assertGreater(s["score"], chain["score"][0])

    def test_the_provenance_says_how(self):
        said = self.files["provenance.json"].json()
        self.assertEqual((said["seed"], said["sampler"]["steps"], said["sampler"]["kind"]), ("7", 40, "sgld"))
        self.assertEqual(said["request"]["conditions"], self.document["conditions"])
        self.assertEqual(said["model"]["digest"], self.done["model"]["digest"])


class Seeds(jemd_test.Case):
    OUTPUTS = ["grid", "images", "tensor", "trace"]

    def test_the_same_seed_gives_the_same_bytes(self):
        document = job(7, 30, outputs=self.OUTPUTS)
        self.assertEqual(drawn(self.daemon, document), drawn(self.daemon, document))

    def test_whoever_else_is_sampling(self):
        document = job(7, 60, outputs=self.OUTPUTS)
        alone = drawn(self.daemon, document)
        others = [submit(self.daemon, job(11, 2000, seed=str(i))) for i in range(3)]
        self.assertEqual(drawn(self.daemon, document), alone)
        for other in others:
            self.post(f"/v1/jobs/{other['id']}:cancel")

    def test_on_another_number_of_workers_and_slots(self):
        document = job(7, 30, outputs=self.OUTPUTS)
        other = self.own_daemon("--sampler.workers=1", "--sampler.slots=3", "--sampler.quantum_steps=4")
        self.assertEqual(drawn(other, document), drawn(self.daemon, document))
        other.stop()

    def test_another_seed_gives_others(self):
        a, b = drawn(self.daemon, job(3, 20)), drawn(self.daemon, job(3, 20, seed="8"))
        for name in ("samples/000.png", "samples/001.png", "samples/002.png"):
            self.assertNotEqual(a[name], b[name])
        self.assertEqual(len({a[f"samples/00{i}.png"] for i in range(3)}), 3)

    def test_seeds_may_be_digits_or_numbers(self):
        a = drawn(self.daemon, job(1, 5, seed=7))
        self.assertEqual(a["grid.png"], drawn(self.daemon, job(1, 5, seed="7"))["grid.png"])
        run_job(self.daemon, job(1, 5, seed="18446744073709551615"))


class Conditions(jemd_test.Case):
    STEPS = 100

    def draw(self, *conditions, **sampler):
        document = {"type": "sample", "conditions": list(conditions), "seed": "3", "outputs": [],
                    "sampler": {"steps": self.STEPS, **sampler}}
        return run_job(self.daemon, document, 120)["result"]

    def share(self, result, test):
        return sum(test(s["attributes"]) for s in result["samples"]) / len(result["samples"])

    def test_a_single_value_of_every_kind(self):
        for spec in ("male", True):
            result = self.draw({"count": 8, "attributes": {"sex": spec}})
            self.assertGreaterEqual(self.share(result, lambda a: a["sex"] == "male"), 0.75, spec)
            self.assertGreaterEqual(result["diagnostics"]["conditions_satisfied"], 6)
        result = self.draw({"count": 8, "attributes": {"beard": False, "shirt": "teal"}})
        self.assertGreaterEqual(self.share(result, lambda a: a["shirt"] == "teal" and a["beard"] == "no"), 0.6)

    def test_a_set_of_values(self):
        result = self.draw({"count": 10, "attributes": {"hair_colour": ["blue", "white"]}})
        self.assertGreaterEqual(self.share(result, lambda a: a["hair_colour"] in ("blue", "white")), 0.6)
        self.assertEqual(list(result["samples"][0]["probabilities"]), ["hair_colour"])

    def test_all_but_some_values(self):
        result = self.draw({"count": 10, "attributes": {"facing": {"not": "left"}, "shirt": {"not": ["maroon", "white"]}}})
        self.assertGreaterEqual(self.share(result, lambda a: a["facing"] != "left" and a["shirt"] == "teal"), 0.6)

    def test_alternatives(self):
        result = self.draw({"count": 12, "attributes": {"shirt": "white"},
                            "any_of": [{"attributes": {"facing": "left"}}, {"attributes": {"facing": "right"}}]})
        self.assertGreaterEqual(self.share(result, lambda a: a["facing"] in ("left", "right")), 0.6)
        self.assertEqual(result["warnings"], [])

    def test_alternatives_that_overlap_are_warned_of(self):
        result = self.draw({"any_of": [{"attributes": {"facing": "left"}}, {"attributes": {"sex": "male"}}]}, steps=2)
        self.assertIn("overlap", result["warnings"][0])

    def test_no_condition_at_all(self):
        result = self.draw({"count": 3}, steps=5)
        self.assertEqual(result["diagnostics"]["conditions_satisfied"], 3)
        self.assertEqual([s["probabilities"] for s in result["samples"]], [{}] * 3)

    def test_weights(self):
        weak = self.draw({"count": 6, "attributes": {"skin": "orc"}, "weights": {"skin": 0}}, steps=30)
        strong = self.draw({"count": 6, "attributes": {"skin": "orc"}, "weights": {"skin": 20}}, steps=30)

        def orc(result):
            return np.mean([s["probabilities"]["skin"]["orc"] for s in result["samples"]])

        self.assertGreater(orc(strong), orc(weak) + 0.2)

    def test_several_conditions_in_one_job(self):
        result = self.draw({"count": 2, "attributes": {"sex": "male"}}, {"attributes": {"sex": "female"}}, {"count": 3}, steps=3)
        self.assertEqual([s["condition"] for s in result["samples"]], [0, 0, 1, 2, 2, 2])


class Samplers(jemd_test.Case):
    def provenance(self, sampler, **more):
        files = drawn(self.daemon, job(2, **{"sampler": sampler, **more}))
        return json.loads(files["provenance.json"])["sampler"]

    def test_the_defaults_are_the_models(self):
        said = self.provenance({})
        default = self.get("/v1/models/sprites").json()["sampler"]
        for name in ("kind", "steps", "step_rule", "cool_last", "langevin_steps", "clamp"):
            self.assertEqual(said[name], default[name])
        self.assertEqual(said["start"]["kind"], "noise")

    def test_every_kind_and_rule(self):
        for kind in ("sgld", "ula", "gibbs"):
            for rule in ("fixed", "normalised"):
                said = self.provenance({"kind": kind, "step_rule": rule, "steps": 6, "step_size": 0.001})
                self.assertEqual((said["kind"], said["step_rule"]), (kind, rule))

    def test_kinds_differ(self):
        grids = {drawn(self.daemon, job(2, sampler={"kind": k, "steps": 20, "step_size": 0.01, "step_rule": "fixed"}))["grid.png"]
                 for k in ("sgld", "ula", "gibbs")}
        self.assertEqual(len(grids), 3)

    def test_every_setting_arrives(self):
        sampler = {"kind": "gibbs", "steps": 9, "step_rule": "fixed", "step_size": 0.5, "step_norm": 0.25, "noise": 0.125,
                   "temperature": 2.0, "cool_last": 3, "langevin_steps": 2, "pixel_clamp": 0.5, "clamp": [-0.5, 0.75],
                   "start": {"kind": "noise", "grid": 4, "noise": 0.25}}
        self.assertEqual(self.provenance(sampler), sampler)

    def test_null_switches_the_clamp_off(self):
        self.assertIsNone(self.provenance({"steps": 2, "clamp": None})["clamp"])

    def test_a_clamp_holds(self):
        files = drawn(self.daemon, job(2, sampler={"steps": 20, "clamp": [-0.25, 0.5]}, outputs=["tensor"]))
        x = tensors(files["samples.safetensors"])[0]["x"]
        self.assertGreaterEqual(x.min(), -0.25)
        self.assertLessEqual(x.max(), 0.5)

    def test_starting_from_the_buffer(self):
        said = run_job(self.daemon, job(4, sampler={"start": "buffer"}))
        self.assertEqual(said["progress"]["chain_steps_total"],
                         4 * self.get("/v1/models/sprites").json()["sampler"]["steps_buffer"])
        provenance = self.get(said["links"]["artifacts"] + "provenance.json").json()
        self.assertEqual(len(provenance["buffer_attributes_broken"]), 1)
        none = run_job(self.daemon, job(3, sampler={"start": "buffer", "steps": 0}))
        self.assertTrue(all(s["condition_satisfied"] for s in none["result"]["samples"]))

    def test_starting_from_an_image(self):
        image = {"b64": b64(sample())}
        files = drawn(self.daemon, job(2, sampler={"start": "image", "steps": 0}, image=image))
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(files["samples/001.png"]))),
                                      np.array(Image.open(io.BytesIO(sample())).convert("RGB")))
        big = save(Image.open(io.BytesIO(sample())).convert("RGB").resize((128, 128), Image.Resampling.NEAREST), "JPEG", quality=95)
        moved = run_job(self.daemon, job(2, sampler={"start": {"kind": "image"}, "steps": 20}, image={"b64": b64(big)}))
        self.assertEqual(len(moved["result"]["samples"]), 2)

    def test_chains_that_fly_away_are_said_to_have_diverged(self):
        done = run_job(self.daemon, job(3, sampler={"steps": 30, "step_rule": "fixed", "step_size": 1e6, "noise": 1000, "clamp": None,
                                                    "temperature": 1e-6}))
        result = done["result"]
        self.assertEqual(result["diagnostics"]["diverged_chains"], sum(s["diverged"] for s in result["samples"]))
        for s in result["samples"]:
            self.assertTrue(s["diverged"] or s["energy"] is not None)


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
