# SPDX-License-Identifier: Apache-2.0
"""What sampling jobs leave behind: artifacts, seeds, conditions, samplers."""
import hashlib
import io
import json
import unittest

import numpy as np
from PIL import Image

import jemd_test
from jemd_test import b64, run_job, sample, save, submit
from jobs_help import drawn, job, tensors


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

    def test_a_range_of_head_is_ignored(self):
        answer = self.daemon.request("HEAD", self.base + "grid.png", headers={"Range": "bytes=0-3"})
        self.assertEqual(answer.status, 200)
        self.assertEqual(answer.headers["content-length"], str(len(self.files["grid.png"].body)))
        self.assertNotIn("content-range", answer.headers)

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
        grids = {drawn(self.daemon, job(2, sampler={"kind": k, "steps": 20, "cool_last": 0, "step_size": 0.01, "step_rule": "fixed"}))["grid.png"]
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


if __name__ == "__main__":
    unittest.main()
