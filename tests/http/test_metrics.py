# SPDX-License-Identifier: Apache-2.0
"""/metrics: the text format, the names, and that the numbers follow what happens."""
import math
import re
import time
import unittest

import jemd_test
from jemd_test import run_job, sample, submit, wait_ended, wait_until

NAMES = {
    "jemd_http_requests_total": ("counter", "route method code"),
    "jemd_http_request_duration_seconds": ("histogram", "route"),
    "jemd_http_rejected_total": ("counter", "reason"),
    "jemd_predict_queue_seconds": ("histogram", ""),
    "jemd_predict_compute_seconds": ("histogram", ""),
    "jemd_predict_batch_size": ("histogram", ""),
    "jemd_image_decode_seconds": ("histogram", "format"),
    "jemd_input_energy": ("histogram", "model"),
    "jemd_ood_flagged_total": ("counter", "model"),
    "jemd_attribute_positive_total": ("counter", "model attribute value"),
    "jemd_jobs": ("gauge", "state type"),
    "jemd_job_queue_wait_seconds": ("histogram", ""),
    "jemd_job_run_seconds": ("histogram", ""),
    "jemd_job_estimate_error_ratio": ("histogram", ""),
    "jemd_job_queue_oldest_age_seconds": ("gauge", ""),
    "jemd_job_backlog_work_seconds": ("gauge", ""),
    "jemd_job_cancel_latency_seconds": ("histogram", ""),
    "jemd_job_resumes_total": ("counter", ""),
    "jemd_job_crashes_total": ("counter", ""),
    "jemd_chain_steps_total": ("counter", ""),
    "jemd_chain_slots": ("gauge", "state"),
    "jemd_chain_slot_seconds_total": ("counter", "state"),
    "jemd_chain_step_seconds": ("histogram", ""),
    "jemd_mcmc_divergences_total": ("counter", ""),
    "jemd_model_info": ("gauge", "model version digest"),
    "jemd_model_mapped_bytes": ("gauge", ""),
    "jemd_store_op_seconds": ("histogram", "op"),
    "jemd_build_info": ("gauge", "version isa fingerprint"),
    "process_cpu_seconds_total": ("counter", ""),
    "process_start_time_seconds": ("gauge", ""),
    "process_resident_memory_bytes": ("gauge", ""),
    "process_virtual_memory_bytes": ("gauge", ""),
    "process_open_fds": ("gauge", ""),
    "process_max_fds": ("gauge", ""),
}
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
SERIES = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
JOB = {"type": "sample", "conditions": [{"count": 3, "attributes": {"sex": "male"}}], "sampler": {"steps": 10}, "seed": "7"}


def labels_of(text):
    found, at = [], 0
    while at < len(text):
        match = LABEL.match(text, at)
        assert match, text
        found.append((match.group(1), match.group(2)))
        at = match.end()
    return tuple(found)


class Page:
    """families: name -> (type, {(suffix, labels): value})."""

    def __init__(self, text):
        assert text.endswith("\n")
        self.families, family, helped = {}, None, set()
        for line in text[:-1].split("\n"):
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                assert name not in helped, name
                helped.add(name)
            elif line.startswith("# TYPE "):
                _, _, family, kind = line.split(" ")
                assert family in helped and family not in self.families, family
                self.families[family] = (kind, {})
            else:
                name, labels, value = SERIES.match(line).groups()
                assert name.startswith(family), (name, family)
                key = name[len(family):], labels_of(labels or "")
                assert key not in self.families[family][1], line
                self.families[family][1][key] = float(value)

    def value(self, name, suffix="", **labels):
        """The sum of the series of a family that have these labels."""
        return sum(v for (s, have), v in self.families[name][1].items()
                   if s == suffix and set(labels.items()) <= set(have))


class Metrics(jemd_test.Case):
    def page(self):
        answer = self.get("/metrics")
        self.assertEqual(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        return Page(answer.body.decode("utf-8"))

    def moved(self, before, name, suffix="", **labels):
        return self.page().value(name, suffix, **labels) - before.value(name, suffix, **labels)

    def settled(self, before, amount, name, suffix="", **labels):
        """Counts may follow their answer by a moment."""
        wait_until(lambda: self.moved(before, name, suffix, **labels) >= amount, 3, f"{name}{suffix} by {amount}")
        self.assertEqual(self.moved(before, name, suffix, **labels), amount, name)

    def test_names_types_and_labels_are_those_of_the_api(self):
        self.predicted(sample())
        run_job(self.daemon, JOB)
        page = self.page()
        for name, (kind, labels) in NAMES.items():
            self.assertIn(name, page.families)
            self.assertEqual(page.families[name][0], kind, name)
            for (_, have), _ in page.families[name][1].items():
                self.assertEqual([n for n, _ in have if n != "le"], labels.split(), name)

    def test_names_follow_the_conventions(self):
        for name, (kind, _) in self.page().families.items():
            self.assertRegex(name, r"^(jemd|process)_[a-z_]+$")
            self.assertEqual(name.endswith("_total"), kind == "counter", name)

    def test_histograms_add_up(self):
        self.predicted(sample())
        run_job(self.daemon, JOB)
        count = 0
        for name, (kind, series) in self.page().families.items():
            if kind != "histogram":
                continue
            groups = {}
            for (suffix, labels), value in series.items():
                others = tuple(l for l in labels if l[0] != "le")
                groups.setdefault(others, {})[suffix, dict(labels).get("le")] = value
            for others, group in groups.items():
                bounds = [(float(le), v) for (suffix, le), v in group.items() if suffix == "_bucket"]
                self.assertEqual([b for b, _ in bounds], sorted(b for b, _ in bounds), name)
                self.assertEqual([v for _, v in bounds], sorted(v for _, v in bounds), (name, others))
                self.assertEqual(bounds[-1], (math.inf, group["_count", None]), name)
                self.assertIn(("_sum", None), group)
                count += 1
        self.assertGreater(count, 8)

    def test_requests(self):
        before = self.page()
        for _ in range(3):
            self.get("/livez")
        self.get("/nope/at/all")
        self.daemon.request("BREW", "/livez")
        self.daemon.request("HEAD", "/livez")
        self.get("/v1/jobs/00000000-0000-4000-8000-000000000000")
        name = "jemd_http_requests_total"
        self.settled(before, 3, name, route="/livez", method="GET", code="200")
        self.settled(before, 1, name, route="/livez", method="HEAD", code="200")
        self.settled(before, 1, name, route="unmatched", method="GET", code="404")
        self.settled(before, 1, name, route="unmatched", method="other", code="405")
        self.settled(before, 1, name, route="/v1/jobs/{}", method="GET", code="404")
        self.settled(before, 4, "jemd_http_request_duration_seconds", "_count", route="/livez")

    def test_clients_cannot_make_series(self):
        self.daemon.request("A" * 50, "/livez")
        before = self.page()
        for i in range(50):
            self.daemon.request(f"M{i}", f"/{i}")
            self.get(f"/v1/models/{i}")
            self.get(f"/v1/jobs/{i}")
        after = self.page()
        self.assertLessEqual(len(after.families["jemd_http_requests_total"][1]),
                             len(before.families["jemd_http_requests_total"][1]) + 5)  # the last ones before may be counted late

    def test_refused_connections(self):
        for data in (b"GET /livez HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n"):
            before = self.page()
            self.daemon.raw(data, timeout=5)
            self.settled(before, 1, "jemd_http_rejected_total", reason="malformed")

    def test_refused_request_lines(self):
        for data in (b"GET /livez HTTP/3.0\r\nHost: x\r\n\r\n", b"hello\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\r\n\r\n"):
            with self.subTest(data=data):
                before = self.page()
                with self.daemon.socket(5) as s:  # who leaves at once may have been the first to leave
                    s.sendall(data)
                    jemd_test.read_all(s)
                    self.settled(before, 1, "jemd_http_rejected_total", reason="malformed")

    def test_predictions(self):
        before = self.page()
        self.predicted(sample())
        noise = b"\x80\x10\xf0" * 1024 * 5
        self.predicted(noise, "application/octet-stream", headers={"X-Image-Shape": "5,32,32,3"})
        self.settled(before, 6, "jemd_predict_batch_size", "_sum")
        self.settled(before, 2, "jemd_predict_queue_seconds", "_count")
        self.settled(before, 1, "jemd_image_decode_seconds", "_count", format="png")
        self.settled(before, 6, "jemd_input_energy", "_count", model="sprites")
        self.settled(before, 5, "jemd_ood_flagged_total", model="sprites")
        self.assertGreater(self.moved(before, "jemd_predict_compute_seconds", "_sum"), 0)
        for name in ("sex", "hair", "shirt"):
            self.settled(before, 6, "jemd_attribute_positive_total", model="sprites", attribute=name)
        self.assertGreaterEqual(self.moved(before, "jemd_attribute_positive_total", attribute="hair_colour", value="blue"), 1)

    def test_energies_add_up(self):
        before = self.page()
        (result,) = self.predicted(sample())
        self.assertAlmostEqual(self.moved(before, "jemd_input_energy", "_sum"), result["energy"], delta=1e-3)

    def test_jobs(self):
        before = self.page()
        done = run_job(self.daemon, JOB)
        self.settled(before, 1, "jemd_jobs", state="succeeded", type="sample")
        self.settled(before, 1, "jemd_job_run_seconds", "_count")
        self.settled(before, 1, "jemd_job_queue_wait_seconds", "_count")
        self.settled(before, 30, "jemd_chain_steps_total")
        self.settled(before, 1, "jemd_store_op_seconds", "_count", op="insert")
        self.settled(before, 1, "jemd_store_op_seconds", "_count", op="finish")
        self.daemon.request("DELETE", "/v1/jobs/" + done["id"])
        self.settled(before, 0, "jemd_jobs", state="succeeded", type="sample")

    def test_a_job_under_way(self):
        before = self.page()
        slots = before.value("jemd_chain_slots")
        self.assertEqual(before.value("jemd_chain_slots", state="busy"), 0)
        accepted = submit(self.daemon, {**JOB, "conditions": [{"count": 64}], "sampler": {"steps": 5000}})
        self.addCleanup(wait_ended, self.daemon, accepted["id"])
        self.addCleanup(self.post, f"/v1/jobs/{accepted['id']}:cancel")
        page = wait_until(lambda: (lambda p: p.value("jemd_chain_slots", state="busy") > 0 and p)(self.page()), 10)
        self.assertEqual(page.value("jemd_chain_slots"), slots)
        self.assertEqual(page.value("jemd_jobs", state="running"), 1)
        wait_until(lambda: self.page().value("jemd_job_backlog_work_seconds") > 0, 5)
        wait_until(lambda: self.moved(before, "jemd_chain_step_seconds", "_count") > 0, 10)
        self.slot_time(slots)
        self.step_time(slots)
        self.post(f"/v1/jobs/{accepted['id']}:cancel")
        wait_ended(self.daemon, accepted["id"])
        self.settled(before, 1, "jemd_job_cancel_latency_seconds", "_count")
        self.assertLess(self.moved(before, "jemd_job_cancel_latency_seconds", "_sum"), jemd_test.patience(0.25))
        wait_until(lambda: self.page().value("jemd_chain_slots", state="busy") == 0, 5)
        self.assertEqual(self.page().value("jemd_job_backlog_work_seconds"), 0)

    def slot_time(self, slots):
        """With 64 chains for fewer slots all of them are busy, and busy and free together are all there is."""
        name, begin = "jemd_chain_slot_seconds_total", time.monotonic()
        before = self.page()
        read = time.monotonic()
        time.sleep(1)
        again = time.monotonic()
        after = self.page()
        end = time.monotonic()
        busy, free = (after.value(name, state=state) - before.value(name, state=state) for state in ("busy", "free"))
        self.assertGreaterEqual(busy + free, slots * (again - read) * 0.999)
        self.assertLessEqual(busy + free, slots * (end - begin) * 1.001)
        self.assertGreaterEqual(free, 0)
        if not jemd_test.SLOW:
            self.assertGreater(busy / (busy + free), 0.8)

    def step_time(self, slots):
        """A step of all chains of a worker is that of as many chains as it has slots, and takes as long as one of them is busy."""
        each = slots / self.get("/v1/queue").json()["engine"]["workers"]
        before = self.page()
        wait_until(lambda: self.moved(before, "jemd_chain_step_seconds", "_count") >= 20, 20, "20 steps")
        after = self.page()
        (steps, chain_steps, seconds, busy) = (
            after.value(name, suffix, **labels) - before.value(name, suffix, **labels) for name, suffix, labels in (
                ("jemd_chain_step_seconds", "_count", {}), ("jemd_chain_steps_total", "", {}),
                ("jemd_chain_step_seconds", "_sum", {}), ("jemd_chain_slot_seconds_total", "", {"state": "busy"})))
        self.assertAlmostEqual(steps * each / chain_steps, 1, delta=.4)
        self.assertAlmostEqual(seconds * each / busy, 1, delta=.4)

    def test_chains_that_diverge(self):
        before = self.page()
        sampler = {"steps": 30, "step_rule": "fixed", "step_size": 1e6, "noise": 1000, "clamp": None, "temperature": 1e-6}
        done = run_job(self.daemon, {**JOB, "sampler": sampler})
        self.settled(before, done["result"]["diagnostics"]["diverged_chains"], "jemd_mcmc_divergences_total")

    def test_what_runs_here(self):
        page, version = self.page(), self.get("/version").json()
        self.assertEqual(page.value("jemd_build_info", version=version["version"], fingerprint=version["compute"]), 1)
        model = self.get("/v1/models/sprites").json()
        self.assertEqual(page.value("jemd_model_info", model="sprites", version=model["version"], digest=model["digest"]), 1)
        self.assertGreaterEqual(page.value("jemd_model_mapped_bytes"), model["bytes"])

    def test_the_process(self):
        page = self.page()
        self.assertAlmostEqual(page.value("process_resident_memory_bytes") / 1024, self.daemon.rss_kb(), delta=30000)
        self.assertAlmostEqual(page.value("process_open_fds"), self.daemon.open_files(), delta=3)
        self.assertGreater(page.value("process_cpu_seconds_total"), 0)
        self.assertGreater(page.value("process_threads"), 5)
        self.assertGreater(page.value("process_max_fds"), 100)

    def test_counters_never_fall(self):
        pages = []
        for _ in range(5):
            self.predicted(sample())
            pages.append(self.page())
        for before, after in zip(pages, pages[1:]):
            for name, (kind, series) in before.families.items():
                for key, value in series.items():
                    if kind != "gauge" and key[0] != "_sum":
                        self.assertGreaterEqual(after.families[name][1][key], value, (name, key))


if __name__ == "__main__":
    unittest.main()
