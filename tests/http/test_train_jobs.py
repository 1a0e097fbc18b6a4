# SPDX-License-Identifier: Apache-2.0
"""Training jobs, from the request to the model that serves: refused where they must be, watched,
canceled and gone on with to the same bits, staged, promoted while others predict, still there after a
restart."""
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import jemd_test
from jemd_test import BIN, SOURCE, patience, submit, wait_ended, wait_until
from jobs_help import tensors
from train_help import Clients, Events, by_command, make_impossible, picture, recipe, stripes, write_idx

LONG = {"steps": 1000000, "checkpoint_every": 1000}
# A step of some milliseconds: there is time to cancel it also where it is fast.
MIDDLE = {"steps": 500, "checkpoint_every": 50, "chains": {"count": 8, "buffer": 32, "steps": 30}}


def job(document=None, **more):
    return {"type": "train", "recipe": document or recipe(), "data": {"path": "stripes"}, **more}


class TrainCase(jemd_test.Case):
    """Tests with a daemon that trains, and folders of their own."""
    MORE = ()

    @classmethod
    def setUpClass(cls):
        cls.root = cls.enterClassContext(tempfile.TemporaryDirectory(prefix="jemd-train-"))
        cls.data = os.path.join(cls.root, "data")
        for split, rows in (("train", 64), ("calib", 40), ("test", 48)):
            stripes(os.path.join(cls.data, "stripes"), split, rows)
        stripes(os.path.join(cls.data, "bare"), "train", 64)
        cls.models = os.path.join(cls.root, "models")
        os.mkdir(cls.models)
        cls.FLAGS = ("--train.enabled=yes", "--train.data_root=" + cls.data, "--train.threads=2",
                     "--train.nice=0", "--sampler.nice=0",
                     "--train.directory=" + os.path.join(cls.root, "runs"),
                     "--models.directory=" + cls.models, *cls.MORE)
        super().setUpClass()

    def run_path(self, run, name):
        return os.path.join(self.root, "runs", run, name)

    def staged(self, version, model="stripes"):
        with open(os.path.join(self.models, model, version + ".safetensors"), "rb") as stream:
            return stream.read()

    def same_weights(self, one, two):
        a, b = tensors(one)[0], tensors(two)[0]
        a.pop("calibration.energies", None)
        b.pop("calibration.energies", None)
        self.assertEqual(set(a), set(b))
        for name in a:
            self.assertEqual(a[name].tobytes(), b[name].tobytes(), name)

    def cancel(self, job_id):
        self.good(self.post(f"/v1/jobs/{job_id}:cancel"), 202)
        done = wait_ended(self.daemon, job_id)
        self.assertEqual(done["state"], "canceled")
        return done

    def succeeded(self, job_id, seconds=180):
        done = wait_ended(self.daemon, job_id, seconds)
        self.assertEqual(done["state"], "succeeded", done["error"])
        self.assertEqual(self.get("/v1/jobs/" + job_id).json()["id"], job_id)
        return done

    def states(self, model="stripes"):
        listed = self.good(self.get(f"/v1/models/{model}/versions"))["versions"]
        return {v["version"]: v["state"] for v in listed}


class Off(jemd_test.Case):
    def test_training_is_off_until_it_is_switched_on(self):
        for path in ("/v1/jobs", "/v1/jobs:validate"):
            found = self.problem(self.post(path, job()), 403, "forbidden")
            self.assertIn("train.enabled", found["detail"])
        self.assertEqual(self.get("/v1/capabilities").json()["job_types"], ["sample", "predict"])

    def test_it_cannot_be_switched_on_without_data(self):
        daemon = self.own_daemon("--train.enabled=yes", start=False).spawn()
        self.assertEqual(daemon.wait_exit(20), 2)
        self.assertIn("train.data_root", daemon.log())


class Refused(TrainCase):
    def setUp(self):
        outside = os.path.join(self.root, "outside")
        stripes(outside, "train", 8)
        with open(os.path.join(outside, "0.png"), "wb") as stream:
            stream.write(picture())
        self.links = {"link": outside, "mixed/train-images.idx3-ubyte.gz":
                      os.path.join(outside, "train-images.idx3-ubyte.gz"),
                      "table/images/0.png": os.path.join(outside, "0.png")}
        for name, target in self.links.items():
            path = os.path.join(self.data, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if not os.path.islink(path):
                os.symlink(target, path)

        with open(os.path.join(self.data, "table", "train.csv"), "w", encoding="utf-8") as stream:
            stream.write("file,way,tone\n0.png,across,dark\n")

    def refused(self, document, status, code, pointer=None):
        for path in ("/v1/jobs:validate", "/v1/jobs"):
            found = self.problem(self.post(path, document), status, code)
            if pointer is not None:
                self.assertEqual(found["errors"][0]["pointer"], pointer, found)
        return found

    def test_data_are_below_the_root_and_nowhere_else(self):
        for path in ("../outside", "stripes/../../outside", "/etc", "..", ".", "", "stripes/", "a//b",
                     os.path.join(self.root, "outside"), "./stripes"):
            self.refused(job(data={"path": path}), 422, "out_of_range", "/data/path")
        for path in ("link", "mixed", "table"):
            self.refused(job(data={"path": path}), 403, "forbidden", "/data/path")
        self.refused(job(data={"path": "nothing"}), 404, "not_found", "/data/path")
        for data in ({"split_calib": 1}, {"split_calib": 0.1, "split": "calib"}):
            self.refused(job(data={"path": "stripes", **data}), 422, "out_of_range", "/data/split_calib")
        for split in ("../train", ".hidden", "a/b", ""):
            self.refused(job(data={"path": "stripes", "split": split}), 422, "out_of_range", "/data/split")
        self.refused(job(data={"path": "stripes", "split": "nope"}), 404, "not_found", "/data")

    def test_a_recipe_is_judged_with_pointers(self):
        def changed(path, value):
            document = recipe()
            at = document
            for name in path[:-1]:
                at = at[name]
            at[path[-1]] = value
            return job(document)
        self.refused(changed(["training", "steps"], 0), 422, "out_of_range", "/recipe/training/steps")
        self.refused(changed(["training", "stepz"], 5), 400, "unknown_field", "/recipe/training/stepz")
        self.refused(changed(["training", "chains", "count"], "x"), 400, "wrong_type",
                     "/recipe/training/chains/count")
        self.refused(changed(["model", "layers"], []), 422, "bad_recipe")
        found = self.refused(changed(["model", "layers", 0, "out"], 9), 422, "bad_recipe")
        self.assertTrue(found["errors"][0]["pointer"].startswith("/recipe"), found)
        self.refused(changed(["model", "layers", 3, "in"], -1), 422, "bad_recipe")
        self.refused(changed(["model", "attributes", 1, "values"], ["dark"]), 422, "bad_recipe")
        self.refused(changed(["model", "input", "height"], 9), 422, "bad_recipe")
        self.refused(changed(["model", "version"], ".."), 422, "bad_recipe", "/recipe/model/version")
        self.refused(changed(["training", "batch"], 4096), 422, "out_of_range")
        self.refused({k: v for k, v in job().items() if k != "recipe"}, 400, "missing_field", "/recipe")
        self.refused({k: v for k, v in job().items() if k != "data"}, 400, "missing_field", "/data")
        self.refused(job({"training": {}}), 400, "missing_field")

    def test_the_rest_of_a_request_is_judged_too(self):
        for name, value, status, code in (
                ("run", "../x", 422, "out_of_range"), ("run", ".x", 422, "out_of_range"),
                ("seed", -1, 422, "out_of_range"), ("seed", "x", 422, "out_of_range"),
                ("seed", str(2 ** 63), 422, "out_of_range"), ("version", 5, 400, "wrong_type"),
                ("preview_every_steps", -1, 422, "out_of_range"), ("priority", "x", 422, "out_of_range"),
                ("labels", [], 400, "wrong_type"), ("conditions", [], 400, "unknown_field"),
                ("resume_from", "nothing", 404, "not_found")):
            self.refused(job(**{name: value}), status, code, "/" + name)
        self.refused({"type": "train", "run": "nothing"}, 404, "not_found", "/run")
        self.refused({"type": "train", "run": "../.."}, 400, "missing_field", "/recipe")
        self.refused({"type": "train", "version": "3"}, 400, "missing_field", "/version")

    def test_limits_are_those_of_the_settings(self):
        daemon = self.own_daemon(*self.FLAGS, "--train.max_steps=100", "--train.max_recipe_bytes=2k")
        limits = daemon.get("/v1/capabilities").json()["limits"]
        self.assertEqual((limits["train_steps"], limits["train_recipe_bytes"]), (100, 2048))
        found = self.problem(daemon.post("/v1/jobs", job()), 422, "out_of_range")
        self.assertEqual(found["errors"][0]["limit"], 100)
        long = recipe(steps=50)
        long["model"]["provenance"] = {"text": "x" * 2000}
        found = self.problem(daemon.post("/v1/jobs", job(long)), 422, "out_of_range")
        self.assertEqual(found["errors"][0]["limit"], 2048)
        daemon.stop()
        daemon = self.own_daemon(*self.FLAGS, "--train.max_parameters=1000")
        found = self.problem(daemon.post("/v1/jobs", job()), 422, "out_of_range")
        self.assertEqual(found["errors"][0]["limit"], 1000)
        daemon.stop()
        daemon = self.own_daemon(*self.FLAGS, "--train.max_memory_bytes=1M")
        big = recipe()
        big["training"]["chains"]["buffer"] = 100000
        self.problem(daemon.post("/v1/jobs", job(big)), 422, "out_of_range")
        daemon.stop()

    def test_a_good_one_is_estimated(self):
        good = self.good(self.post("/v1/jobs:validate", job()))
        self.assertEqual((good["steps"], good["images"], good["parameters"]), (200, 64, 80 + 2052))
        self.assertEqual(good["warnings"], [])
        self.assertFalse(os.path.exists(os.path.join(self.root, "runs")) and
                         os.listdir(os.path.join(self.root, "runs")))

    def test_whatever_takes_memory_is_in_the_estimate(self):
        """The sums themselves are compared with what is allocated in unit.core_trainer_memory."""
        def bytes_of(path="stripes", split_calib=0, **training):
            document = job(recipe(**training), data={"path": path, "split_calib": split_calib})
            return self.good(self.post("/v1/jobs:validate", document))["memory_bytes"]
        image = 8 * 8 * 4
        chains = recipe()["training"]["chains"]
        plain = bytes_of()
        for more, least in (({"data": {"labelled_batch": 1000}}, 1000 * 8 * image),
                            ({"chains": chains | {"buffer": 5000}}, 5000 * image),
                            ({"health": {"fresh": {"every": 9, "count": 4000}}}, 4000 * image),
                            ({"loss": {"kl": {"neighbour": 0.1, "neighbours": 4000}}}, 4000 * image),
                            ({"chains": chains | {"births": {"every": 5, "count": 4000}}}, 4000 * image)):
            self.assertGreater(bytes_of(**more), plain + least, more)
        many = {"chains": chains | {"buffer": 5000}, "path": "bare"}
        self.assertGreater(bytes_of(**many, export_buffer=5000), bytes_of(**many, export_buffer=0))
        self.assertGreater(plain, bytes_of("bare"))  # which has nothing to be measured on
        # Unpacked as a whole, for the training and for its end, whatever is kept or resized.
        large = os.path.join(self.data, "large", "train-")
        os.makedirs(os.path.dirname(large), exist_ok=True)
        write_idx(large + "images.idx3-ubyte.gz", (1000, 32, 32), bytes(1000 * 1024))
        write_idx(large + "attr-cat.idx2-ubyte.gz", (1000, 2), bytes(2000))
        self.assertGreater(bytes_of("large"), bytes_of("bare") + 900 * 1024)
        self.assertGreater(bytes_of("large", 0.1), bytes_of("bare", 0.1) + 2 * 1000 * 1024)


    def test_the_judging_of_requests_ends_with_the_daemon(self):
        """One that would take half a minute is being judged, the other waits for its turn."""
        folder = os.path.join(self.data, "long")
        os.makedirs(os.path.join(folder, "images"), exist_ok=True)
        with open(os.path.join(folder, "images", "0.png"), "wb") as stream:
            stream.write(picture())
        with open(os.path.join(folder, "train.csv"), "w", encoding="ascii") as stream:
            stream.write("file,way,tone\n" + "0.png,0,1\n" * 1000000)
        daemon = self.own_daemon(*self.FLAGS)
        with ThreadPoolExecutor(2) as threads:
            asked = [threads.submit(daemon.request, "POST", "/v1/jobs:validate",
                                    json.dumps(job(data={"path": "long"})),
                                    {"Content-Type": "application/json"}, check=False) for _ in range(2)]
            time.sleep(1.5)
            self.assertFalse([a for a in asked if a.done()])
            begin = time.monotonic()
            daemon.stop()
            self.assertLess(time.monotonic() - begin, patience(3))
            for answer in asked:
                self.assertEqual((answer.result().status, answer.result().json()["code"]),
                                 (503, "shutting_down"))


class Life(TrainCase):
    def test_from_the_request_to_the_model_that_serves(self):
        """Watched, canceled, gone on with, staged, promoted under load, rolled back, restarted."""
        whole = by_command(self.root, os.path.join(self.data, "stripes"), recipe("2", **MIDDLE))
        first = self.first_version()
        accepted = submit(self.daemon, job(recipe(**MIDDLE), version="2", labels={"a": "b"}))
        events = Events(self.daemon, accepted["id"])
        events.wait_for_step(1)
        canceled = self.cancel(accepted["id"])
        step = canceled["progress"]["steps_done"]
        self.assertTrue(0 < step < MIDDLE["steps"], canceled)
        self.assertTrue(os.path.exists(self.run_path(accepted["id"], f"checkpoint-{step}.safetensors")))
        self.assertEqual(self.states(), {"1": "serving"})
        resumed = submit(self.daemon, {"type": "train", "resume_from": accepted["id"]})
        self.assertEqual(resumed["request"]["run"], accepted["id"])
        self.follow(resumed["id"], step)
        done = self.succeeded(resumed["id"])
        self.assertEqual(done["resumed_from_step"], step)
        self.same_weights(self.staged("2"), whole)
        self.assertEqual(self.states(), {"1": "serving", "2": "staged"})
        self.look_at_result(done)
        self.promote_under_load(first, done["result"]["model"]["digest"])
        self.survives_a_restart(done["result"]["model"]["digest"])

    def first_version(self):
        """Made by a job of its own, served at once since nothing else does. Its digest."""
        done = self.succeeded(submit(self.daemon, job(recipe(steps=60), seed="8"))["id"])
        self.problem(self.get("/v1/models/stripes"), 404, "not_found")
        self.assertEqual(self.states(), {"1": "staged"})
        made = self.good(self.post("/v1/models/stripes/versions/1:promote"))
        self.assertEqual(made["before"], {"version": None, "digest": None})
        self.assertEqual(made["digest"], done["result"]["model"]["digest"])
        self.assertEqual(self.get("/v1/models/stripes").json()["versions"][0]["state"], "serving")
        return made["digest"]

    def follow(self, job_id, first):
        events = Events(self.daemon, job_id)
        events.wait_for(lambda seen: any(k == "end" for k, _ in seen), 240, "the end")
        steps = [d["step"] for d in events.of("progress")]
        self.assertEqual(steps, sorted(steps))
        self.assertGreaterEqual(steps[0], first)
        self.assertLessEqual(steps[-1], MIDDLE["steps"])  # the last but half a second, if the end comes first
        for data in events.of("progress"):
            self.daemon.contract.match_name(data, "TrainProgress")
        for data in events.of("preview"):
            self.daemon.contract.match_name(data, "JobPreview")
        for data in events.of("state") + events.of("end"):
            self.daemon.contract.match_name(data, "JobSummary")
        self.assertEqual(events.of("end")[0]["state"], "succeeded")
        self.assertEqual(events.of("end")[0]["progress"]["steps_done"], MIDDLE["steps"])

    def look_at_result(self, done):
        result = done["result"]
        self.assertEqual(result["warnings"], [])
        self.assertTrue(result["calibrated"])
        kinds = {a["name"]: a["content_type"] for a in result["artifacts"]}
        self.assertEqual(kinds, {"report.json": "application/json", "grid.png": "image/png",
                                 "report.html": "text/html; charset=utf-8",
                                 "metrics.csv": "text/csv"})
        path = f"/v1/jobs/{done['id']}/artifacts/"
        report = self.good(self.get(path + "report.json"))
        self.assertEqual((report["split"], report["reports"][0]["split"]), ("calib", "test"))
        page = self.get(path + "report.html")
        self.assertIn(b"<title>Evaluation of stripes", page.body)
        self.assertIn(b"src=\"data:image/png;base64,", page.body)
        policy = page.headers["content-security-policy"]
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("script-src", policy)
        self.assertEqual(self.get(path + "grid.png").body[:8], jemd_test.SIGNATURE)
        rows = self.get(path + "metrics.csv").body.decode().splitlines()
        self.assertEqual([int(r.split(",")[0]) for r in rows[1:]],
                         list(range(50, MIDDLE["steps"] + 1, 50)))
        self.assertIn(b"jemd_train_steps_total", self.get("/metrics").body)

    def wrk(self):
        """wrk with the same requests, if it is installed."""
        program = shutil.which("wrk")
        if not program:
            return None
        path = os.path.join(self.root, "picture.png")
        with open(path, "wb") as stream:
            stream.write(picture())
        return subprocess.Popen(
            [program, "-t1", "-c4", "-d6s", "-s", os.path.join(SOURCE, "tests/bench/post.lua"),
             f"http://127.0.0.1:{self.daemon.port}/v1/models/stripes:predict", "--", path,
             "Content-Type=image/png"], stdout=subprocess.PIPE, text=True)

    def promote_under_load(self, old, new):
        wrk, clients = self.wrk(), Clients(self.daemon)
        queued = submit(self.daemon, {"type": "sample", "model": "stripes", "conditions": [{"count": 4}],
                                      "sampler": {"steps": 400}, "seed": "1"})
        wait_until(lambda: all(len(a) > 20 for a in clients.answers), 60, "predictions")
        made = self.good(self.post("/v1/models/stripes/versions/2:promote"))
        self.assertEqual((made["digest"], made["before"]["digest"], made["changed"]), (new, old, True))
        counts = [len(a) for a in clients.answers]
        wait_until(lambda: all(len(a) > n + 20 for a, n in zip(clients.answers, counts)), 60, "predictions")
        for answers in clients.stop():
            self.assertEqual({a[0] for a in answers}, {200}, [a for a in answers if a[0] != 200][:3])
            digests = [a[1] for a in answers]
            self.assertEqual(digests, sorted(digests, key=[old, new].index))
            self.assertEqual(set(digests), {old, new})
        self.assertEqual(clients.errors, [])
        pairs = {a[1:] for answers in clients.answers for a in answers}
        for digest in (old, new):  # of an image alone the last digits may differ
            energies = [e for d, e in pairs if d == digest]
            self.assertLess(max(energies) - min(energies), 1e-3)
        if wrk:
            said = wrk.communicate(timeout=patience(60))[0]
            self.assertNotIn("status", said)
            self.assertNotIn("Non-2xx", said)
            self.assertNotIn("Socket errors", said)
            self.assertRegex(said, r"[1-9][0-9]* requests in ")
        pinned = self.good(self.get("/v1/jobs/" + queued["id"]))
        self.assertEqual(pinned["model"]["digest"], old)
        self.assertEqual(wait_ended(self.daemon, queued["id"])["state"], "succeeded")
        self.assertEqual(self.states(), {"1": "previous", "2": "serving"})
        self.assertFalse(self.good(self.post("/v1/models/stripes/versions/2:promote"))["changed"])
        self.problem(self.post("/v1/models/stripes/versions/9:promote"), 404, "not_found")
        self.assertTrue(self.daemon.logged("model_promoted"))

    def survives_a_restart(self, digest):
        self.daemon.stop()
        self.daemon.start()
        self.assertEqual(self.get("/v1/models/stripes").json()["digest"], digest)
        back = self.good(self.post("/v1/models/stripes/versions/1:promote"))
        self.assertEqual(back["before"]["digest"], digest)
        self.assertEqual(self.states(), {"1": "serving", "2": "previous"})

    def test_what_a_job_has_booked_is_still_booked_after_a_crash(self):
        self.assertEqual(self.post("/v1/queue:pause").status, 200)
        first = submit(self.daemon, job(recipe("7", **LONG), run="seven"), {"Idempotency-Key": "seven"})
        self.daemon.kill()
        self.daemon.start()
        self.assertEqual(self.post("/v1/queue:pause").status, 200)
        found = self.problem(self.post("/v1/jobs", job(recipe("8", **LONG), run="seven")), 409, "conflict")
        self.assertEqual(found["errors"][0]["pointer"], "/run")
        # The second where it had begun before the queue was paused.
        self.assertRegex(found["detail"], first["id"] + "|was begun with another recipe")
        found = self.problem(self.post("/v1/jobs", job(recipe("7", **LONG), run="other")), 409, "conflict")
        self.assertEqual(found["errors"][0]["pointer"], "/version")
        again = submit(self.daemon, job(recipe("7", **LONG), run="seven"), {"Idempotency-Key": "seven"})
        self.assertEqual(again["id"], first["id"])
        self.assertEqual(self.post("/v1/queue:resume").status, 200)
        self.cancel(first["id"])
        self.cancel(submit(self.daemon, job(recipe("7", **LONG), run="other"))["id"])

    def test_a_stopped_daemon_leaves_a_run_that_goes_on_to_the_same_bits(self):
        document = recipe("5", **MIDDLE)
        document["model"]["name"] = "bare"
        whole = by_command(self.root, os.path.join(self.data, "bare"), document)
        shutil.rmtree(os.path.join(self.root, "by-command"))
        first = submit(self.daemon, job(recipe("5", **MIDDLE), name="bare", data={"path": "bare"}, run="five"))
        Events(self.daemon, first["id"]).wait_for_step(1)
        self.daemon.stop()
        self.assertTrue(self.daemon.logged("job_released"))
        # As if the daemon had died after it named the version, before it said so.
        os.makedirs(os.path.join(self.models, "bare"), exist_ok=True)
        with open(os.path.join(self.models, "bare", "5.safetensors"), "wb") as stream:
            stream.write(whole)
        self.daemon.start()
        other = job(recipe("5", **MIDDLE), name="bare", seed="4", data={"path": "bare"}, run="five")
        self.problem(self.post("/v1/jobs", other), 409, "conflict")
        done = self.succeeded(first["id"])  # which the store has kept
        self.assertEqual((done["attempts"], done["result"]["exact"]), (2, True))
        self.assertGreater(done["resumed_from_step"], 0)
        self.assertEqual(self.staged("5", "bare"), whole)  # without calibration it is the same file, or a conflict
        self.assertEqual(len(done["result"]["warnings"]), 2)
        self.problem(self.post("/v1/jobs", {"type": "train", "run": "five"}), 409, "conflict")

    def test_data_without_a_calib_split_end_calibrated_on_rows_kept_out_of_train(self):
        """Those that `jemd train --split-calib` keeps out, and the others are trained on."""
        document, share = recipe("1", steps=30), 0.25
        document["model"]["name"] = "kept"
        asked = job(document, data={"path": "bare", "split_calib": share}, run="kept")
        trained = self.good(self.post("/v1/jobs:validate", asked))["images"]
        self.assertTrue(0 < trained < 64, trained)
        folder = os.path.join(self.root, "kept-by-command")
        os.mkdir(folder)
        whole = by_command(folder, os.path.join(self.data, "bare"), document, "--split-calib", str(share))
        done = self.succeeded(submit(self.daemon, asked)["id"])
        self.assertTrue(done["result"]["calibrated"])
        self.same_weights(self.staged("1", "kept"), whole)
        report = self.good(self.get(f"/v1/jobs/{done['id']}/artifacts/report.json"))
        self.assertEqual((report["split"], report["split_calib"], report["n"]), ("calib", share, 64 - trained))
        self.assertEqual(len(tensors(self.staged("1", "kept"))[0]["calibration.energies"]), 64 - trained)

    def test_a_broken_image_fails_a_job_before_it_has_a_checkpoint(self):
        path = os.path.join(self.data, "table-of-files")
        os.makedirs(os.path.join(path, "images"))
        for i in range(8):
            with open(os.path.join(path, "images", f"{i}.png"), "wb") as stream:
                stream.write(picture()[:-20 if i == 5 else None])
        with open(os.path.join(path, "train.csv"), "w", encoding="utf-8") as stream:
            stream.write("file,way,tone\n" + "".join(f"{i}.png,{i % 2},{i // 2 % 2}\n" for i in range(8)))
        asked = job(recipe("1", steps=10), name="mended", data={"path": "table-of-files"}, run="mended")
        done = wait_ended(self.daemon, submit(self.daemon, asked)["id"])
        self.assertEqual((done["state"], done["error"]["code"]), ("failed", "bad_image"))
        self.assertIn("table-of-files/train.csv:7: images/5.png: ", done["error"]["detail"])
        with open(os.path.join(path, "images", "5.png"), "wb") as stream:
            stream.write(picture())
        # One that the model would be measured on, no later.
        with open(os.path.join(path, "images", "8.png"), "wb") as stream:
            stream.write(picture()[:-20])
        with open(os.path.join(path, "test.csv"), "w", encoding="utf-8") as stream:
            stream.write("file,way,tone\n0.png,0,0\n8.png,0,0\n")
        done = wait_ended(self.daemon, submit(self.daemon, asked)["id"])
        self.assertEqual((done["state"], done["error"]["code"]), ("failed", "bad_image"))
        self.assertIn("table-of-files/test.csv:3: images/8.png: ", done["error"]["detail"])
        self.assertFalse([n for n in os.listdir(self.run_path("mended", "")) if n.startswith("checkpoint")])
        with open(os.path.join(path, "images", "8.png"), "wb") as stream:
            stream.write(picture())
        self.succeeded(submit(self.daemon, asked)["id"])

    def test_what_the_disk_refuses_is_tried_three_times(self):
        self.assertEqual(self.post("/v1/queue:pause").status, 200)
        blocked = submit(self.daemon, job(recipe("9", **MIDDLE), run="blocked"))
        with open(os.path.join(self.root, "runs", "blocked"), "wb"):
            pass  # where the run's directory is to be
        self.assertEqual(self.post("/v1/queue:resume").status, 200)
        done = wait_ended(self.daemon, blocked["id"])
        self.assertEqual((done["state"], done["attempts"], done["error"]["code"]), ("failed", 3, "crash_loop"))
        self.assertIn("runs/blocked", done["error"]["detail"])
        self.assertEqual(len(self.daemon.logged("job_excused")), 3)


class Queue(TrainCase):
    def test_one_trains_and_the_others_wait_but_sampling_does_not(self):
        canceled = self.counted("jemd_job_cancel_latency_seconds_count")
        first = submit(self.daemon, job(recipe("10", **LONG)), headers={"Idempotency-Key": "first"})
        events = Events(self.daemon, first["id"])
        events.wait_for_step(1)
        second = submit(self.daemon, job(recipe("11", **LONG)))
        again = submit(self.daemon, job(recipe("10", **LONG)), headers={"Idempotency-Key": "first"})
        self.assertEqual(again["id"], first["id"])
        found = self.problem(self.post("/v1/jobs", job(recipe("10", **LONG))), 409, "conflict")
        self.assertIn(first["id"], found["detail"])
        self.problem(self.post("/v1/jobs", job(recipe("12", **LONG), run=first["id"])), 409, "conflict")
        self.problem(self.post("/v1/jobs", {"type": "train", "resume_from": first["id"]}), 409, "conflict")
        self.preview(first["id"], events)
        listed = self.get("/v1/jobs?type=train").json()["jobs"]
        self.assertEqual({j["id"]: j["state"] for j in listed if j["state"] in ("queued", "running")},
                         {first["id"]: "running", second["id"]: "queued"})
        self.cancel(first["id"])
        self.assertIn("canceled", [d["state"] for d in events.of("end")] or ["canceled"])
        Events(self.daemon, second["id"]).wait_for_step(1)
        self.cancel(second["id"])
        self.assertEqual(self.counted("jemd_job_cancel_latency_seconds_count"), canceled + 2)
        # What was canceled may be begun anew elsewhere, and its version is free again.
        third = submit(self.daemon, job(recipe("10", **LONG), run="elsewhere"))
        self.cancel(third["id"])

    def preview(self, job_id, events):
        events.wait_for(lambda seen: any(k == "preview" for k, _ in seen), 60, "a preview")
        picture_of = self.get(events.of("preview")[0]["url"])
        self.assertEqual((picture_of.status, picture_of.body[:8]), (200, jemd_test.SIGNATURE))
        self.assertIn(job_id, events.of("preview")[0]["url"])

    def test_what_takes_too_long_expires_with_a_checkpoint(self):
        daemon = self.own_daemon(*self.FLAGS, "--train.max_seconds=2")
        first = submit(daemon, job(recipe("20", **LONG), run="slow"))
        done = wait_ended(daemon, first["id"])
        self.assertEqual((done["state"], done["error"]["code"]), ("expired", "deadline"))
        self.assertGreater(done["progress"]["steps_done"], 0)
        again = submit(daemon, {"type": "train", "resume_from": first["id"]})
        Events(daemon, again["id"]).wait_for(lambda seen: any(k == "end" for k, _ in seen), 60, "the end")
        done = daemon.get("/v1/jobs/" + again["id"]).json()
        self.assertGreater(done["resumed_from_step"], 0)
        # No checkpoint harms the daemon: one that lies gives way to an older one.
        newest = max(int(n.split("-")[1].split(".")[0]) for n in os.listdir(self.run_path("slow", ""))
                     if n.startswith("checkpoint-"))
        make_impossible(self.run_path("slow", f"checkpoint-{newest}.safetensors"))
        third = submit(daemon, {"type": "train", "resume_from": again["id"]})
        Events(daemon, third["id"]).wait_for_step(1)
        self.assertIn("its count of buffer entries cannot be", daemon.logged("training_checkpoints")[-1])
        self.assertIn("its count of buffer entries cannot be", self.log_of("slow")[-1])
        self.assertIn(f"checkpoint-{newest}.safetensors.damaged", os.listdir(self.run_path("slow", "")))
        daemon.stop()

    def test_a_run_that_is_given_up_says_why(self):
        bad = recipe("30", steps=2000, optimiser={"rate": 10, "warm_up": 0, "clip": 0},
                     health={"retries": 1, "warm_up": 0, "gap": 0.001})
        done = wait_ended(self.daemon, submit(self.daemon, job(bad))["id"], 120)
        self.assertEqual((done["state"], done["error"]["code"]), ("failed", "unsupported"))
        self.assertIn("given up", done["error"]["detail"])
        log = self.log_of(done["id"])
        self.assertIn("stripes: begins from step 0 of 2000", log[0])
        self.assertRegex(log[1], r"^step \d+: .*; rolled back to step 0, slower \(1 of 1\)$")
        self.assertIn("given up", log[-1])
        reason = re.search("step [0-9]+: (.*); rolled back", log[1])[1]
        self.assertIn(f'reason="{reason}"', self.daemon.logged("training_rolled_back")[-1])

    def counted(self, name):
        return int(re.search(f"(?m)^{name} ([0-9]+)$", self.get("/metrics").body.decode())[1])

    def log_of(self, run):
        with open(self.run_path(run, "log.txt"), encoding="utf-8") as stream:
            return stream.read().splitlines()

    def test_a_rollback_is_told_with_its_reason(self):
        bad = recipe("31", steps=1000000, optimiser={"rate": 10, "warm_up": 0, "clip": 0},
                     health={"retries": 1000, "warm_up": 0, "gap": 0.001, "slower": 0.9})
        first = submit(self.daemon, job(bad))
        seen = Events(self.daemon, first["id"]).wait_for(
            lambda seen: next((d for k, d in seen if k == "progress" and d["rollbacks"]), None), 60,
            "a rollback")
        self.daemon.contract.match_name(seen, "TrainProgress")
        self.assertIn(seen["rollback_reason"], self.log_of(first["id"])[1])
        step = self.cancel(first["id"])["progress"]["steps_done"]  # also where that is a checkpoint's
        self.assertTrue(self.log_of(first["id"])[-1].startswith(f"stopped at step {step} of "))

    def test_rows_of_both_streams_are_counted(self):
        for batch, loss in ((0, {"log_px": 0}), (8, {"log_px": 1})):
            before, steps = self.counted("jemd_train_images_total"), 20
            document = recipe(f"32-{batch}", steps=steps, loss=loss, data={"labelled_batch": 5})
            first = submit(self.daemon, job(document, data={"path": "bare"}))
            events = Events(self.daemon, first["id"])
            self.succeeded(first["id"])
            events.wait_for(lambda seen: any(k == "end" for k, _ in seen), 60, "the end")
            self.assertEqual(self.counted("jemd_train_images_total") - before, steps * (batch + 5))
            for line in events.of("progress"):
                self.assertTrue(line["images_per_second"] > 0 or line["step"] == 0, line)

    def test_what_the_data_lack_is_a_warning(self):
        folder = os.path.join(self.data, "lacking", "images")
        os.makedirs(folder)
        for i in range(16):
            with open(os.path.join(folder, f"{i}.png"), "wb") as stream:
                stream.write(picture())
        with open(os.path.join(self.data, "lacking", "train.csv"), "w", encoding="utf-8") as stream:
            stream.write("file,way,tome\n" + "".join(f"{i}.png,across,dark\n" for i in range(16)))
        document = job(recipe("33", steps=5), data={"path": "lacking"}, run="lacking")
        (warning,) = self.good(self.post("/v1/jobs:validate", document))["warnings"]
        self.assertRegex(warning, "tone.*tome")
        done = self.succeeded(submit(self.daemon, document)["id"])
        self.assertEqual(done["result"]["warnings"][0], warning)
        self.assertEqual(self.log_of("lacking")[1], warning)
        self.assertIn("made version 33", self.log_of("lacking")[-1])
        self.assertTrue(self.daemon.logged("training_data_noted"))

    def test_the_making_of_the_model_can_be_stopped(self):
        """Chains that would take minutes: those that are moved for the file, those that are drawn."""
        for name, data, sampler in (("34", "bare", {"steps": 20, "steps_buffer": 1000000}),
                                    ("35", "stripes", {"steps": 1000000, "steps_buffer": 20})):
            document = recipe(name, steps=5)
            document["model"]["sampler"] |= sampler
            first = submit(self.daemon, job(document, data={"path": data}, run=name))
            Events(self.daemon, first["id"]).wait_for(
                lambda seen: any(k == "progress" and d["phase"] == "evaluating" for k, d in seen), 60,
                "the end of the steps")
            begin = time.monotonic()
            done = self.cancel(first["id"])
            self.assertLess(time.monotonic() - begin, patience(2))
            self.assertEqual(done["progress"]["steps_done"], 5)
            self.assertFalse(os.path.exists(os.path.join(self.models, "stripes", name + ".safetensors")))
        daemon = self.own_daemon(*self.FLAGS)
        again = submit(daemon, {"type": "train", "run": "34"})
        Events(daemon, again["id"]).wait_for(
            lambda seen: any(k == "progress" and d["phase"] == "evaluating" for k, d in seen), 60,
            "the end of the steps")
        begin = time.monotonic()
        daemon.stop()
        self.assertLess(time.monotonic() - begin, patience(5))
        self.assertTrue(daemon.logged("job_released"))

    def test_the_command_and_the_daemon_do_not_share_a_run(self):
        first = submit(self.daemon, job(recipe("40", **LONG), run="shared"))
        Events(self.daemon, first["id"]).wait_for_step(1)
        path = os.path.join(self.root, "shared.json")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(recipe("40", **LONG), stream)
        found = subprocess.run([BIN, "train", path, "--data", os.path.join(self.data, "stripes"), "--out",
                                os.path.join(self.root, "runs", "shared")], capture_output=True, text=True,
                               timeout=patience(60), check=False)
        self.assertEqual(found.returncode, 1)
        self.assertIn("another training", found.stderr)
        self.cancel(first["id"])


class Scopes(TrainCase):
    @classmethod
    def setUpClass(cls):
        cls.keys, cls.tokens = cls.enterClassContext(
            tempfile.TemporaryDirectory(prefix="jemd-keys-")) + "/keys", {}
        with open(cls.keys, "w", encoding="ascii") as stream:
            os.fchmod(stream.fileno(), 0o600)
            for name, scopes in (("teacher", "train,read"), ("painter", "sample,read"), ("boss", "admin")):
                said = subprocess.run([BIN, "key", "new", name, "--scopes", scopes], text=True,
                                      capture_output=True, check=True, timeout=60)
                words = (said.stdout + said.stderr).split()
                cls.tokens[name] = next(w for w in words if w.startswith("jemd_"))
                stream.write(next(line for line in (said.stdout + said.stderr).splitlines()
                                  if line.startswith(name + " ")) + "\n")
        cls.MORE = ("--auth.keys=" + cls.keys,)
        super().setUpClass()

    def by(self, name, method, path, body=None):
        headers = {"Content-Type": "application/json"}
        if name:
            headers["Authorization"] = "Bearer " + self.tokens[name]
        return self.daemon.request(method, path, json.dumps(body) if body else None, headers)

    def test_training_and_promoting_need_scopes_of_their_own(self):
        sample = {"type": "sample", "conditions": [{}]}
        self.problem(self.by(None, "POST", "/v1/jobs", job()), 401, "unauthorized")
        self.problem(self.by("boss", "POST", "/v1/jobs", job()), 403, "forbidden")
        self.problem(self.by("painter", "POST", "/v1/jobs", job()), 403, "forbidden")
        self.problem(self.by("teacher", "POST", "/v1/jobs", sample), 403, "forbidden")
        accepted = self.good(self.by("teacher", "POST", "/v1/jobs", job(recipe(steps=60))), 202)
        path = "/v1/jobs/" + accepted["id"]
        self.assertEqual(accepted["client"], "teacher")
        self.problem(self.by("painter", "POST", path + ":cancel"), 403, "forbidden")
        wait_until(lambda: self.by("teacher", "GET", path).json()["state"] == "succeeded", 120, "training")
        promote = "/v1/models/stripes/versions/1:promote"
        for name, status in ((None, 401), ("teacher", 403), ("painter", 403)):
            self.assertEqual(self.by(name, "POST", promote).status, status)
        self.assertEqual(self.by("boss", "POST", promote).status, 200)
        self.assertIn("who=boss", self.daemon.logged("model_promoted")[0])
        self.problem(self.by("painter", "DELETE", path), 403, "forbidden")
        self.assertEqual(self.by("teacher", "DELETE", path).status, 204)


del TrainCase  # has no tests


if __name__ == "__main__":
    unittest.main()
