# SPDX-License-Identifier: Apache-2.0
"""Predictions of many images as jobs: what they answer, what they take, and that their lines are the
same bytes however they were interrupted."""
import hashlib
import json
import signal
import time
import unittest
from datetime import datetime, timedelta, timezone

import numpy as np
from PIL import Image

import jemd_test
from jemd_test import b64, form, run_job, sample, sample_list, save, submit, wait_ended, wait_until

NAMES = [s["file"] for s in sample_list()]
LINES = "predictions.jsonl"


def images(*data):
    return {"type": "predict", "images": [{"b64": b64(d)} for d in data]}


def noise(n, seed=1, side=32):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def tensor(array, **more):
    """A job of a tensor, pixels or float32."""
    kind = "float32" if array.dtype == np.float32 else "uint8"
    return {"type": "predict", "tensor": {"b64": b64(array.tobytes()), "shape": list(array.shape), "type": kind}, **more}


def bytes_of(daemon, done):
    return daemon.get(done["links"]["artifacts"] + LINES).body


def lines_of(daemon, done):
    data = bytes_of(daemon, done)
    assert data.endswith(b"\n")
    found = [json.loads(line) for line in data.splitlines()]
    for line in found:
        daemon.contract.match_name(line, "PredictJobLine")
    assert [line["index"] for line in found] == list(range(len(found)))
    return found


def predicted(daemon, document):
    return lines_of(daemon, run_job(daemon, document))


def without(line, *names):
    return {k: v for k, v in line.items() if k not in names}


class Case(jemd_test.Case):
    def send(self, path, body, content_type, **headers):
        return self.post(path, body, content_type, headers)

    def raw(self, array, query="", path="/v1/jobs"):
        shape = ",".join(map(str, array.shape))
        kind = "float32" if array.dtype == np.float32 else "uint8"
        return self.send(path + query, array.tobytes(), "application/octet-stream",
                         **{"X-Image-Shape": shape, "X-Image-Type": kind})

    def accepted(self, answer):
        return lines_of(self.daemon, wait_ended(self.daemon, self.good(answer, 202)["id"]))


class Answers(Case):
    def test_a_line_is_what_the_endpoint_answers(self):
        parts = [("file", name, "image/png", sample(name)) for name in NAMES]
        body, kind = form(parts)
        for query, options in (("", {}),
                               ("?include=probabilities,logits,approximate_mass&given=sex=male&alpha=0.2",
                                {"include": ["probabilities", "logits", "approximate_mass"], "given": {"sex": "male"},
                                 "alpha": 0.2}),
                               ("?attributes=beard,hair&resize=center_crop",
                                {"attributes": ["beard", "hair"], "resize": "center_crop"})):
            single = self.predicted(body, kind, query)
            document = {**images(*(sample(name) for name in NAMES)), **options}
            for image, name in zip(document["images"], NAMES):
                image["id"] = name
            lines = predicted(self.daemon, document)
            self.assertEqual([without(line, "index") for line in lines], single)

    def test_score_only_is_what_score_answers(self):
        body, kind = form([("file", name, "image/png", sample(name)) for name in NAMES])
        single = self.good(self.post("/v1/score", body, kind))["results"]
        lines = predicted(self.daemon, {**images(*(sample(n) for n in NAMES)), "score_only": True})
        self.assertEqual([without(line, "index") for line in lines], [without(r, "id") for r in single])

    def test_forms_json_and_raw_bytes_say_the_same(self):
        array = noise(5)
        files = [save(Image.fromarray(a), "PNG") for a in array]
        options = json.dumps({"type": "predict", "include": ["logits"], "labels": {"a": "1"}}).encode()
        body, kind = form([("job", None, "application/json", options)] +
                          [("f", f"{i}.png", "image/png", f) for i, f in enumerate(files)])
        ways = [predicted(self.daemon, {**images(*files), "include": ["logits"]}),
                self.accepted(self.send("/v1/jobs", body, kind)),
                predicted(self.daemon, tensor(array, include=["logits"])),
                self.accepted(self.raw(array, "?include=logits&labels=a=1,b=2&priority=high")),
                self.accepted(self.raw((array / 255).astype(np.float32) * 2 - 1, "?type=predict&model=sprites&include=logits"))
                ]
        self.assertEqual([line["id"] for line in ways[1]], [f"{i}.png" for i in range(5)])
        numbers = [[without(line, "id", "input") for line in way] for way in ways]
        for way in numbers[1:4]:
            self.assertEqual(way, numbers[0])
        for a, b in zip(numbers[4], numbers[0]):
            self.assertAlmostEqual(a["energy"], b["energy"], delta=1e-3 * abs(b["energy"]))

    def test_one_image_gets_what_it_gets_among_others(self):
        array = noise(7)
        together = predicted(self.daemon, tensor(array))
        for i in (0, 6):
            (alone,) = predicted(self.daemon, tensor(array[i:i + 1]))
            self.assertEqual(without(alone, "index"), without(together[i], "index"))

    def test_what_cannot_be_read_has_a_line_and_harms_nobody(self):
        good = sample()
        done = run_job(self.daemon, images(good, b"no image", b"", good[:200], good))
        self.assertEqual((done["result"]["images"], done["result"]["failed"]), (5, 3))
        lines = lines_of(self.daemon, done)
        self.assertEqual(without(lines[0], "index"), without(lines[4], "index"))
        for line in lines[1:4]:
            self.assertEqual((line["error"]["code"], set(line)), ("bad_image", {"index", "error"}))
        array = noise(3).astype(np.float32) / 255
        array[1, 0, 0, 0] = np.nan
        lines = predicted(self.daemon, tensor(array))
        self.assertEqual(["error" in line for line in lines], [False, True, False])
        small = save(Image.fromarray(noise(1, side=8)[0]), "PNG")
        (line,) = predicted(self.daemon, {**images(small), "resize": "reject"})
        self.assertEqual(line["error"]["code"], "image_size_mismatch")

    def test_the_artifact_has_ranges_and_an_etag_and_the_job_does_not_show_images(self):
        done = run_job(self.daemon, images(*(sample(n) for n in NAMES)))
        path = done["links"]["artifacts"] + LINES
        whole = self.get(path)
        (listed,) = done["result"]["artifacts"]
        self.assertEqual(listed, {"name": LINES, "content_type": "application/x-ndjson", "size_bytes": len(whole.body),
                                  "sha256": hashlib.sha256(whole.body).hexdigest()})
        self.assertEqual(whole.headers["content-type"], "application/x-ndjson")
        part = self.get(path, {"Range": "bytes=10-19"})
        self.assertEqual((part.status, part.body), (206, whole.body[10:20]))
        self.assertEqual(self.get(path, {"If-None-Match": whole.headers["etag"]}).status, 304)
        self.assertEqual(without(done["request"]["input"], "sha256"),
                         {"images": len(NAMES), "bytes": sum(len(sample(n)) for n in NAMES), "kind": "files"})
        self.assertNotIn("images", done["request"])
        self.assertLess(len(self.get("/v1/jobs/" + done["id"]).body), 4000)


class Life(Case):
    FLAGS = ("--sampler.checkpoint_ms=100", "--predict.threads=1", "--sampler.nice=0")

    def long(self, query=""):
        """One that takes some seconds."""
        accepted = self.good(self.raw(noise(4000, 2), "?include=approximate_mass" + query), 202)
        self.addCleanup(self.post, f"/v1/jobs/{accepted['id']}:cancel")
        return accepted["id"]

    def running(self, job_id):
        def look():
            job = self.get("/v1/jobs/" + job_id).json()
            return job if job["progress"]["images_done"] > 0 else None
        return wait_until(look, 20, "progress")

    def test_progress_then_cancel(self):
        job_id = self.long()
        job = self.running(job_id)
        self.assertEqual(job["progress"]["images_total"], 4000)
        self.assertEqual([j["id"] for j in self.get("/v1/jobs?type=predict&state=running").json()["jobs"]], [job_id])
        begin = time.monotonic()
        self.good(self.post(f"/v1/jobs/{job_id}:cancel"), 202)
        done = wait_ended(self.daemon, job_id, 10)
        self.assertEqual(done["state"], "canceled")
        self.assertLess(time.monotonic() - begin, jemd_test.patience(2))
        self.problem(self.get(done["links"]["artifacts"] + LINES), 404, "not_found")
        self.assertIn('jemd_jobs{state="canceled",type="predict"}', self.get("/metrics").body.decode())

    def test_events_tell_how_far_it_is(self):
        connection = self.daemon.connection(60)
        job_id = submit(self.daemon, tensor(noise(4000, 3), include=["approximate_mass"]))["id"]
        connection.request("GET", f"/v1/jobs/{job_id}/events")
        text = connection.getresponse().read().decode()
        connection.close()
        events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if ": " in block]
        told = [json.loads(e["data"]) for e in events if e.get("event") == "progress"]
        self.assertTrue(told)
        for data in told:
            self.daemon.contract.match_name(data, "PredictJobProgress")
        self.assertEqual(events[-1]["event"], "end")
        self.assertEqual(json.loads(events[-1]["data"])["progress"], {"images_done": 4000, "images_total": 4000, "fraction": 1.0})

    def test_a_deadline_ends_it(self):
        soon = (datetime.now(timezone.utc) + timedelta(seconds=0.7)).isoformat().replace("+00:00", "Z")
        done = wait_ended(self.daemon, self.long("&deadline=" + soon), 20)
        self.assertEqual((done["state"], done["error"]["code"]), ("expired", "deadline"))

    def test_a_small_job_does_not_wait_for_a_large_one(self):
        large = self.long()
        self.running(large)
        begin = time.monotonic()
        run_job(self.daemon, tensor(noise(4)))
        self.assertLess(time.monotonic() - begin, jemd_test.patience(3))
        self.assertEqual(self.get("/v1/jobs/" + large).json()["state"], "running")

    def test_retry_predicts_the_same_again(self):
        first = run_job(self.daemon, images(sample(), b"none"))
        again = wait_ended(self.daemon, self.good(self.post(f"/v1/jobs/{first['id']}:retry"), 202)["id"])
        self.assertNotEqual(again["id"], first["id"])
        self.assertEqual(bytes_of(self.daemon, again), bytes_of(self.daemon, first))

    def test_a_key_means_the_images_too(self):
        key = {"Idempotency-Key": "images"}
        first = submit(self.daemon, images(sample()), key)
        self.assertEqual(submit(self.daemon, images(sample()), key)["id"], first["id"])
        self.problem(self.post("/v1/jobs", images(sample(NAMES[1])), headers=key), 422, "idempotency_mismatch")

    def test_validate_says_what_it_would_cost_and_makes_nothing(self):
        before = self.get("/v1/jobs?type=predict").json()["jobs"]
        estimate = self.good(self.post("/v1/jobs:validate", images(sample(), sample())))
        self.assertEqual((estimate["valid"], estimate["images"]), (True, 2))
        self.good(self.raw(noise(2), path="/v1/jobs:validate"))
        self.problem(self.post("/v1/jobs:validate", {**images(sample()), "alpha": 2}), 422, "out_of_range")
        self.assertEqual(self.get("/v1/jobs?type=predict").json()["jobs"], before)

    def test_an_estimate_is_made_once_the_speed_is_known(self):
        run_job(self.daemon, tensor(noise(64)))
        queue = self.get("/v1/jobs/" + self.long()).json()["queue"]
        self.assertGreater(queue["estimated_end_seconds"], 0)
        self.assertGreater(self.get("/v1/queue").json()["backlog_seconds"], 0)


class Refused(Case):
    FLAGS = ("--predict.job_images=4", "--predict.job_bytes=64k")

    def test_more_than_the_limits_is_too_large(self):
        self.accepted(self.raw(noise(4)))
        for answer in (self.raw(noise(5)), self.post("/v1/jobs", images(*[b"x"] * 5)),
                       self.send("/v1/jobs", *form([("f", "f", "image/png", b"x")] * 5)),
                       self.send("/v1/jobs", *form([("f", "f", "image/png", b"x")] * 9))):
            problem = self.problem(answer, 413, "body_too_large")
            self.assertIn("predict.job_images", problem["detail"])
            self.assertEqual(problem["errors"][0]["limit"], 4)
        large = b"x" * (1 << 16)
        for answer in (self.raw(noise(4, side=100)), self.post("/v1/jobs", images(large, b"x")),
                       self.send("/v1/jobs", *form([("f", "f", "image/png", large)] * 2))):
            problem = self.problem(answer, 413, "body_too_large")
            self.assertIn("predict.job_bytes", problem["detail"])
            self.assertEqual(problem["errors"][0]["limit"], 1 << 16)
        limits = self.get("/v1/capabilities").json()["limits"]
        self.assertEqual((limits["predict_job_images"], limits["predict_job_bytes"]), (4, 1 << 16))

    def test_what_is_no_job_is_refused_with_a_pointer(self):
        one = images(sample())
        array = noise(2)
        float32 = array.astype(np.float32)
        for document, status, code, pointer in (
                ({"type": "predict"}, 400, "missing_field", "/images"),
                ({**one, "images": []}, 400, "missing_field", ""),
                ({**one, "images": [{"id": "a"}]}, 400, "missing_field", "/images/0/b64"),
                ({**one, "images": [{"b64": "*"}]}, 400, "bad_base64", "/images/0/b64"),
                ({**one, "images": [{"b64": "", "name": "a"}]}, 400, "unknown_field", "/images/0/name"),
                ({**one, "input": {}}, 400, "unknown_field", "/input"),
                ({**one, "timeout_ms": 5}, 400, "unknown_field", "/timeout_ms"),
                ({**one, "include": ["logit"]}, 422, "out_of_range", "/include/0"),
                ({**one, "attributes": ["berd"]}, 422, "unknown_attribute", "/attributes/0"),
                ({**one, "given": {"sex": "mle"}}, 422, "unknown_value", "/given/sex"),
                ({**one, "resize": "fil"}, 422, "out_of_range", "/resize"),
                ({**one, "model": "none"}, 404, "not_found", "/model"),
                (tensor(noise(1), images=[]), 400, "bad_request", ""),
                ({"type": "predict", "tensor": {"b64": "", "shape": [1, 2, 3]}}, 422, "out_of_range", "/tensor/shape"),
                ({"type": "predict", "tensor": {"b64": "", "shape": [1, 2, 3, 3]}}, 400, "bad_request", "/tensor"),
                (tensor(array[..., :2].copy()), 422, "image_size_mismatch", ""),
                (tensor(float32[:, :16].copy()), 422, "image_size_mismatch", ""),
                ({"type": "predct"}, 422, "unsupported", "/type")):
            with self.subTest(document=str(document)[:80]):
                problem = self.problem(self.post("/v1/jobs", document), status, code)
                self.assertEqual(problem["errors"][0].get("pointer", "") if problem.get("errors") else "", pointer)
        body, kind = form([("job", None, "application/json", b'{"type": "sample"}'), ("f", "f", "image/png", sample())])
        self.problem(self.send("/v1/jobs", body, kind), 422, "unsupported")
        self.problem(self.raw(array, "?typ=predict"), 400, "unknown_field")
        self.problem(self.raw(array, "?include=logits&include=logits"), 400, "bad_request")
        self.problem(self.send("/v1/jobs", b"abc", "application/octet-stream"), 400, "missing_field")
        self.problem(self.send("/v1/jobs", b"abc", "image/png"), 415, "unsupported_media_type")


class Survival(unittest.TestCase):
    """A job that is interrupted goes on, and comes to the same bytes."""

    def setUp(self):
        self.daemon = jemd_test.Daemon("--sampler.checkpoint_ms=100", "--predict.threads=1", "--sampler.nice=0").start()
        self.addCleanup(self.daemon.discard)

    def test_kill_9_and_sigterm_do_not_change_a_byte(self):
        document, odd = tensor(noise(800, 4), include=["approximate_mass"]), images(sample(), b"none", sample())
        whole = run_job(self.daemon, document)
        self.assertIsNone(whole["resumed_from_step"])
        expected = bytes_of(self.daemon, whole)
        self.assertEqual(expected.count(b"\n"), 800)
        for number in (signal.SIGKILL, signal.SIGTERM):
            path = "/v1/jobs/" + submit(self.daemon, document)["id"]
            other = submit(self.daemon, odd)["id"]  # which ends before, or waits, or runs
            wait_until(lambda p=path: self.daemon.get(p).json()["progress"]["images_done"] > 100, 60, "progress")
            self.daemon.signal(number)
            self.daemon.process.wait()
            self.daemon.start()
            done = wait_ended(self.daemon, path.rpartition("/")[2], 60)
            self.assertEqual((done["state"], done["attempts"]), ("succeeded", 2))
            self.assertGreater(done["resumed_from_step"], 0)
            self.assertEqual(bytes_of(self.daemon, done), expected)
            done = wait_ended(self.daemon, other)
            self.assertEqual((done["state"], done["result"]["failed"]), ("succeeded", 1))

    def test_what_waits_when_it_dies_is_there_with_its_images(self):
        self.daemon.post("/v1/queue:pause")
        waiting = submit(self.daemon, images(sample(), b"none"))["id"]
        self.daemon.kill()
        self.daemon.start()
        lines = lines_of(self.daemon, wait_ended(self.daemon, waiting))
        self.assertEqual(["error" in line for line in lines], [False, True])


if __name__ == "__main__":
    unittest.main()
