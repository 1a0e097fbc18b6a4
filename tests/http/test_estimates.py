# SPDX-License-Identifier: Apache-2.0
"""What is said of time: a job's place and end, and when to come again after a refusal."""
import http.client
import json
import unittest
from datetime import datetime, timedelta, timezone

import jemd_test
from jemd_test import run_job, submit, wait_ended, wait_until
from jobs_help import LONG_STEPS, job, long_job


class Case(jemd_test.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        run_job(cls.daemon, job(16, 5))  # the speed is known from here

    def setUp(self):
        self.addCleanup(self.empty)

    def empty(self):
        canceled = self.good(self.post("/v1/jobs:cancel", {"all": True}))["canceled"]
        for found in canceled:
            wait_ended(self.daemon, found["id"])

    def queue(self, job_id):
        return self.good(self.get("/v1/jobs/" + job_id))["queue"]

    def end(self, job_id):
        return self.queue(job_id)["estimated_end_seconds"]

    def position(self, job_id):
        return self.queue(job_id)["position"]

    def retry_after(self, answer, status, code):
        self.problem(answer, status, code)
        return int(answer.headers["retry-after"])

    def about(self, found, expected, factor=3):
        """Both move, as the speed is measured while it is asked."""
        self.assertGreater(found, expected / factor - 1)
        self.assertLess(found, expected * factor + 2)


class Ends(Case):
    FLAGS = ("--jobs.max_running_per_client=2",)

    def test_the_place_and_the_end_of_those_that_wait(self):
        running = [submit(self.daemon, long_job())["id"] for _ in range(2)]
        wait_until(lambda: self.position(running[1]) is None, 10)
        first, second = (submit(self.daemon, long_job())["id"] for _ in range(2))
        self.assertEqual((self.position(first), self.position(second)), (1, 2))
        high = submit(self.daemon, job(32, LONG_STEPS, priority="high"))["id"]
        self.assertEqual([self.position(j) for j in (high, first, second)], [1, 2, 3])
        self.assertLess(self.end(running[0]), self.end(second))
        self.about(self.end(first), 1.8 * self.end(running[0]), 2)
        self.post("/v1/jobs:cancel", {"ids": running})
        wait_until(lambda: self.position(high) is None, 10)

    def test_what_is_scheduled_begins_with_its_time(self):
        at = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
        scheduled = submit(self.daemon, job(scheduled_at=at))["id"]
        self.assertIsNone(self.position(scheduled))
        self.assertAlmostEqual(self.end(scheduled), 3600, delta=60)

    def test_nobody_knows_the_end_of_a_pause(self):
        running = submit(self.daemon, long_job())["id"]
        wait_until(lambda: self.position(running) is None, 10)
        self.addCleanup(self.post, "/v1/queue:resume")
        self.good(self.post("/v1/queue:pause"))
        waiting = submit(self.daemon, job())["id"]
        self.assertEqual(self.queue(waiting), {"position": 1, "estimated_end_seconds": None})
        self.assertGreater(self.end(running), 0)
        self.good(self.post("/v1/queue:resume"))
        wait_ended(self.daemon, waiting)

    def test_events_say_the_same(self):
        ids = [submit(self.daemon, long_job())["id"] for _ in range(2)]
        connection = self.daemon.connection(30)
        self.addCleanup(connection.close)
        connection.request("GET", f"/v1/jobs/{ids[0]}/events")
        lines, found = connection.getresponse(), []
        while len(found) < 2:
            name, _, value = lines.readline().decode().partition(": ")
            if name == "data" and "eta_seconds" in value:
                found.append(json.loads(value)["eta_seconds"])
        self.about(found[-1], self.end(ids[0]))

    def test_an_estimate_is_compared_with_what_came_true(self):
        name = "jemd_job_estimate_error_ratio_count"
        count = lambda: sum(float(line.split()[-1]) for line in self.get("/metrics").body.decode().splitlines()
                            if line.startswith(name))
        before = count()
        run_job(self.daemon, job(4, 5))
        wait_until(lambda: count() == before + 1, 10)  # just after the end can be seen
        self.good(self.post("/v1/queue:pause"))
        waiting = submit(self.daemon, job(4, 5))["id"]
        self.good(self.post("/v1/queue:resume"))
        wait_ended(self.daemon, waiting)
        wait_until(lambda: count() == before + 2, 10)  # from the end of the pause


class Refused(Case):
    """One more client than 127.0.0.1, who may have three jobs, of four in all."""
    FLAGS = ("--jobs.max_queued=4", "--jobs.max_queued_per_client=3", "--jobs.max_store_bytes=1M")

    def of_another(self, document):
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=jemd_test.patience(60),
                                                source_address=("127.0.0.2", 0))
        try:
            connection.request("POST", "/v1/jobs", json.dumps(document), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return jemd_test.Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def test_what_to_wait_for_depends_on_who_refuses(self):
        ids = [submit(self.daemon, job(64, steps))["id"] for steps in (LONG_STEPS, LONG_STEPS // 5, LONG_STEPS)]
        wait_until(lambda: self.position(ids[2]) is None, 10)
        ends = [self.end(j) for j in ids]
        found = self.retry_after(self.post("/v1/jobs", job()), 429, "quota")
        self.assertEqual(min(ends), ends[1])
        self.assertGreater(found, 1)
        self.about(found, min(ends[1], 3600))  # the caller's next job to end
        self.assertEqual(self.of_another(long_job()).status, 202)
        found = self.retry_after(self.of_another(job()), 503, "overloaded")
        self.assertGreater(found, 1)
        self.about(found, min(self.good(self.get("/v1/queue"))["backlog_seconds"] / 2, 3600))

    def test_a_full_store_empties_with_the_next_that_is_forgotten(self):
        answer = self.post("/v1/jobs", bytes(400 * 32 * 32 * 3), "application/octet-stream",
                           {"X-Image-Shape": "400,32,32,3", "X-Image-Type": "uint8"})
        self.assertEqual(self.retry_after(answer, 507, "store_full"), 3600)  # a day, and no more is ever said


if __name__ == "__main__":
    unittest.main()
