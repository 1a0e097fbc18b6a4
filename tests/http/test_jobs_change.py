# SPDX-License-Identifier: Apache-2.0
"""Jobs under names of the caller's choice, changed, tried again, canceled together; the queue's gate."""
import json
import time
import unittest
import uuid
from datetime import datetime, timedelta, timezone

import jemd_test
from jemd_test import patience, run_job, submit, wait_ended, wait_until
from jobs_help import drawn, job, long_job


def in_seconds(seconds):
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()


def seconds_of(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Case(jemd_test.Case):
    def put(self, job_id, body):
        return self.daemon.request("PUT", f"/v1/jobs/{job_id}", json.dumps(body).encode(),
                                   {"Content-Type": "application/json"})

    def patch(self, job_id, body, **headers):
        return self.daemon.request("PATCH", f"/v1/jobs/{job_id}", json.dumps(body).encode(),
                                   {"Content-Type": "application/json", **headers})

    def state(self, job_id):
        return self.get(f"/v1/jobs/{job_id}").json()["state"]

    def gate(self, verb):
        return self.good(self.post("/v1/queue:" + verb))["gate"]

    def pause(self):
        self.addCleanup(self.gate, "resume")
        self.assertEqual(self.gate("pause"), "paused")

    def running(self):
        accepted = submit(self.daemon, long_job())
        self.addCleanup(self.post, f"/v1/jobs/{accepted['id']}:cancel")
        wait_until(lambda: self.state(accepted["id"]) == "running", 10)
        return accepted["id"]


class Put(Case):
    def test_the_same_again_is_the_same_job(self):
        mine = str(uuid.uuid4())
        first = self.put(mine, job())
        self.assertEqual(self.good(first, 202)["id"], mine)
        self.assertEqual(first.headers["location"], "/v1/jobs/" + mine)
        self.assertEqual(wait_ended(self.daemon, mine)["state"], "succeeded")
        again = self.good(self.put(mine, job()), 202)
        self.assertEqual((again["id"], again["state"], again["attempts"]), (mine, "succeeded", 1))
        self.problem(self.put(mine, job(seed="8")), 422, "idempotency_mismatch")

    def test_what_is_drawn_does_not_depend_on_the_id(self):
        mine = str(uuid.uuid4())
        self.good(self.put(mine, job()), 202)
        done = wait_ended(self.daemon, mine)
        own = {a["name"]: a["sha256"] for a in done["result"]["artifacts"] if a["name"] == "grid.png"}
        other = {a["name"]: a["sha256"] for a in run_job(self.daemon, job())["result"]["artifacts"]}
        self.assertEqual(own["grid.png"], other["grid.png"])

    def test_an_id_that_is_taken_stays_so(self):
        taken = submit(self.daemon, job())["id"]
        self.problem(self.put(taken, job()), 409, "conflict")
        wait_ended(self.daemon, taken)

    def test_an_id_is_a_uuid_in_lower_case(self):
        for bad in ("x", "123e4567-e89b-42d3-a456-42661417400", "123E4567-E89B-42D3-A456-426614174000",
                    "123e4567-e89b-42d3-a456-4266141740000", "123e4567ae89b-42d3-a456-426614174000"):
            self.problem(self.put(bad, job()), 400, "bad_request")


class Patch(Case):
    def test_a_waiting_job_takes_another_priority_deadline_and_labels(self):
        self.pause()
        accepted = submit(self.daemon, job(labels={"a": "1"}))
        later = in_seconds(3600)
        answer = self.patch(accepted["id"], {"priority": "high", "deadline": later, "labels": {"b": "2"}})
        changed = self.good(answer)
        self.assertEqual((changed["priority"], changed["labels"]), ("high", {"b": "2"}))
        self.assertAlmostEqual(seconds_of(changed["deadline"]), datetime.fromisoformat(later).timestamp(), delta=0.002)
        self.assertEqual(answer.headers["etag"], f'"{changed["revision"]}"')
        self.assertGreater(changed["revision"], accepted["revision"])
        self.assertEqual(self.good(self.get("/v1/queue"))["queued_by_priority"]["high"], 1)
        ids = [j["id"] for j in self.good(self.get("/v1/jobs?label=b:2"))["jobs"]]
        self.assertEqual(ids, [accepted["id"]])
        self.assertNotIn(accepted["id"], [j["id"] for j in self.good(self.get("/v1/jobs?label=a"))["jobs"]])
        gone = self.good(self.patch(accepted["id"], {"deadline": None, "labels": None}))
        self.assertEqual((gone["deadline"], gone["labels"], gone["priority"]), (None, {}, "high"))
        self.gate("resume")
        wait_ended(self.daemon, accepted["id"])

    def test_a_deadline_reaches_a_job_that_runs(self):
        running = self.running()
        self.good(self.patch(running, {"deadline": in_seconds(0.2)}))
        done = wait_ended(self.daemon, running, 10)
        self.assertEqual((done["state"], done["error"]["code"]), ("expired", "deadline"))

    def test_an_old_revision_is_not_changed(self):
        self.pause()
        accepted = submit(self.daemon, job())
        etag = f'"{accepted["revision"]}"'
        self.good(self.patch(accepted["id"], {"priority": "low"}, **{"If-Match": f'"77", {etag}'}))
        self.problem(self.patch(accepted["id"], {"priority": "high"}, **{"If-Match": etag}), 412,
                     "precondition_failed")
        self.assertEqual(self.get("/v1/jobs/" + accepted["id"]).json()["priority"], "low")
        self.good(self.patch(accepted["id"], {"priority": "high"}, **{"If-Match": "*"}))
        self.good(self.post(f"/v1/jobs/{accepted['id']}:cancel"), 202)

    def test_what_has_ended_stays_as_it_is(self):
        done = run_job(self.daemon, job())
        self.problem(self.patch(done["id"], {"labels": {}}), 409, "conflict")
        self.problem(self.patch(str(uuid.uuid4()), {}), 404, "not_found")

    def test_only_these_can_change(self):
        self.pause()
        accepted = submit(self.daemon, job())["id"]
        self.assertEqual(self.problem(self.patch(accepted, {"priorty": "low"}), 400, "unknown_field")["errors"][0]
                         ["did_you_mean"], "priority")
        for body, code, status in (({"seed": "8"}, "unknown_field", 400), ({"priority": "top"}, "out_of_range", 422),
                                   ({"deadline": "soon"}, "out_of_range", 422), ([], "wrong_type", 400),
                                   ({"labels": {"a": 1}}, "out_of_range", 422)):
            self.problem(self.patch(accepted, body), status, code)
        self.good(self.post(f"/v1/jobs/{accepted}:cancel"), 202)


class Retry(Case):
    def test_it_draws_the_same_again(self):
        first = drawn(self.daemon, job())
        done = next(j for j in self.get("/v1/jobs").json()["jobs"] if j["state"] == "succeeded")
        again = self.good(self.post(f"/v1/jobs/{done['id']}:retry"), 202)
        self.assertNotEqual(again["id"], done["id"])
        ended = wait_ended(self.daemon, again["id"])
        grid = self.get(ended["links"]["artifacts"] + "grid.png").body
        self.assertEqual(grid, first["grid.png"])

    def test_a_deadline_that_has_passed_does_not_come_along(self):
        self.pause()
        late = submit(self.daemon, job(deadline=in_seconds(0.3)))["id"]
        self.assertEqual(wait_ended(self.daemon, late, 10)["state"], "expired")
        self.gate("resume")
        again = self.good(self.post(f"/v1/jobs/{late}:retry"), 202)
        self.assertEqual(again["deadline"], None)
        self.assertEqual(wait_ended(self.daemon, again["id"])["state"], "succeeded")

    def test_what_was_changed_stays_so(self):
        self.pause()
        first = submit(self.daemon, job(priority="low", labels={"a": "1"}))
        plain = submit(self.daemon, job())["id"]
        self.good(self.patch(first["id"], {"priority": "high", "labels": {"b": "2"}, "deadline": in_seconds(3600)}))
        self.good(self.patch(plain, {"labels": {"c": "3"}}))
        for job_id in (first["id"], plain):
            self.good(self.post(f"/v1/jobs/{job_id}:cancel"), 202)
        again = [self.good(self.post(f"/v1/jobs/{job_id}:retry"), 202) for job_id in (first["id"], plain)]
        self.assertEqual([(j["priority"], j["labels"], j["deadline"]) for j in again],
                         [("high", {"b": "2"}, None), ("normal", {"c": "3"}, None)])
        self.good(self.patch(again[1]["id"], {"labels": None}))
        for accepted in again:
            self.good(self.post(f"/v1/jobs/{accepted['id']}:cancel"), 202)
        last = self.good(self.post(f"/v1/jobs/{again[1]['id']}:retry"), 202)
        self.assertEqual(last["labels"], {})
        self.good(self.post(f"/v1/jobs/{last['id']}:cancel"), 202)

    def test_a_key_makes_one_of_two(self):
        done = run_job(self.daemon, job())["id"]
        ids = {self.good(self.post(f"/v1/jobs/{done}:retry", headers={"Idempotency-Key": "once"}), 202)["id"]
               for _ in range(2)}
        self.assertEqual(len(ids), 1)
        wait_ended(self.daemon, ids.pop())

    def test_what_goes_on_is_not_tried_again(self):
        self.problem(self.post(f"/v1/jobs/{self.running()}:retry"), 409, "conflict")
        self.problem(self.post(f"/v1/jobs/{uuid.uuid4()}:retry"), 404, "not_found")


class Cancel(Case):
    def test_many_by_label_state_and_id(self):
        running = self.running()
        self.pause()
        red = [submit(self.daemon, job(labels={"c": "red"}))["id"] for _ in range(3)]
        blue = [submit(self.daemon, job(labels={"c": "blue"}))["id"] for _ in range(2)]
        cancel = lambda **what: {j["id"]: j["state"] for j in self.good(self.post("/v1/jobs:cancel", what))["canceled"]}
        self.assertEqual(cancel(label="c:red", state="running"), {})
        self.assertEqual(cancel(label="c:red"), dict.fromkeys(red, "canceled"))
        self.assertEqual(cancel(label="c:red"), {})
        self.assertEqual(cancel(ids=[blue[0], red[0], str(uuid.uuid4())]), {blue[0]: "canceled"})
        self.assertEqual(set(cancel(state="queued", type="sample")), {blue[1]})
        self.assertEqual(cancel(all=True), {running: "canceling"})
        self.assertEqual(wait_ended(self.daemon, running, 10)["state"], "canceled")

    def test_which_ones_must_be_said(self):
        for body, status, code in (({}, 400, "bad_request"), ({"all": False}, 400, "bad_request"),
                                   ({"ids": [], "state": "queued"}, 400, "bad_request"),
                                   ({"state": "quued"}, 422, "out_of_range"), ({"lable": "a"}, 400, "unknown_field"),
                                   ({"ids": "x"}, 400, "wrong_type")):
            self.problem(self.post("/v1/jobs:cancel", body), status, code)


class Gate(Case):
    def test_a_pause_keeps_jobs_waiting(self):
        self.pause()
        waiting = submit(self.daemon, job())["id"]
        time.sleep(0.5)
        self.assertEqual(self.state(waiting), "queued")
        self.assertEqual(self.gate("resume"), "open")
        self.assertEqual(wait_ended(self.daemon, waiting, 20)["state"], "succeeded")

    def test_a_drain_takes_nothing_and_ends_what_there_is(self):
        mine = str(uuid.uuid4())
        running = submit(self.daemon, job(8, 200), {"Idempotency-Key": mine})["id"]
        self.good(self.put(mine, job(1)), 202)
        self.addCleanup(self.gate, "resume")
        self.assertEqual(self.gate("drain"), "draining")
        self.assertEqual(submit(self.daemon, job(8, 200), {"Idempotency-Key": mine})["id"], running)
        self.assertEqual(self.good(self.put(mine, job(1)), 202)["id"], mine)
        self.problem(self.put(mine, job(2)), 422, "idempotency_mismatch")
        self.problem(self.put(str(uuid.uuid4()), job(1)), 503, "overloaded")
        self.assertTrue(self.good(self.post("/v1/jobs:validate", job(1)))["valid"])
        answer = self.post("/v1/jobs", job())
        self.problem(answer, 503, "overloaded")
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        self.assertEqual(wait_ended(self.daemon, running)["state"], "succeeded")
        self.assertEqual(self.gate("resume"), "open")
        run_job(self.daemon, job())

    def test_a_scheduled_job_waits_for_its_time(self):
        accepted = submit(self.daemon, job(scheduled_at=in_seconds(1)))
        self.assertEqual(accepted["state"], "scheduled")
        done = wait_ended(self.daemon, accepted["id"], 20)
        self.assertEqual(done["state"], "succeeded")
        self.assertGreaterEqual(done["started_at"], done["scheduled_at"])
        self.assertLess(seconds_of(done["started_at"]) - seconds_of(done["scheduled_at"]), patience(1))
        self.problem(self.post("/v1/jobs", job(scheduled_at=in_seconds(9), deadline=in_seconds(8))), 422,
                     "out_of_range")


if __name__ == "__main__":
    unittest.main()
