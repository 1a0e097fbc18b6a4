# SPDX-License-Identifier: Apache-2.0
"""A model of the general family E(x, y) behind the daemon: its numbers against numpy, what is given,
jobs whose chains carry y, and what is refused. Expected numbers are sums over all values, here."""
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import numpy as np

import jemd_test
from jobs_help import tensors

sys.path.insert(0, os.path.join(jemd_test.SOURCE, "clients", "python"))
from jemd_import.writer import safetensors_bytes, write_model  # noqa: E402

VALUES = {"side": ["left", "right"], "row": ["top", "middle", "bottom"], "hat": ["no", "yes"]}
D, HIDDEN = 5, 8


def one_hots(y, sizes):
    return np.concatenate([np.eye(n)[v] for v, n in zip(y, sizes)])


def silu(v):
    return v / (1 + np.exp(-v))


class Model:
    """The model file, and the same in numpy."""

    def __init__(self, name, values, kind):
        rng = np.random.default_rng(3)
        self.sizes = [len(v) for v in values.values()]
        self.values, self.kind, length = values, kind, sum(self.sizes)
        ins = length + (D if kind == "mlp" else 0)
        shapes = {"l": (D, 16), "y0": (HIDDEN, ins), "y1": (D if kind == "dot" else 1, HIDDEN)}
        self.w = {}
        for layer, (o, i) in shapes.items():
            self.w[layer + ".weight"] = np.float32(rng.normal(0, 2 / np.sqrt(i), (o, i)))
            self.w[layer + ".bias"] = np.float32(rng.normal(0, .3, o))
        self.description = {
            "format": 1, "name": name, "version": "1",
            "input": {"channels": 1, "height": 4, "width": 4, "range": [0, 1]},
            "layers": [{"kind": "flatten"}, {"kind": "linear", "weights": "l", "in": 16, "out": D}],
            "energy": {"kind": kind, "layers": [
                {"kind": "linear", "weights": "y0", "in": ins, "out": HIDDEN}, {"kind": "silu"},
                {"kind": "linear", "weights": "y1", "in": HIDDEN, "out": shapes["y1"][0]}]},
            "attributes": [{"name": k, "values": v} for k, v in values.items()],
            "sampler": {"kind": "gibbs", "steps": 20, "step_size": .1, "noise": .02, "clamp": [0, 1]}}

    def write(self, folder):
        write_model(os.path.join(folder, self.description["name"] + ".safetensors"), self.description,
                    self.w)

    def linear(self, layer, v):
        return self.w[layer + ".weight"].astype(float) @ v + self.w[layer + ".bias"]

    def f(self, x, y):
        phi, labels = self.linear("l", x), one_hots(y, self.sizes)
        if self.kind == "dot":
            return phi @ self.linear("y1", silu(self.linear("y0", labels)))
        return self.linear("y1", silu(self.linear("y0", np.concatenate([phi, labels]))))[0]

    def table(self, x):
        return {y: self.f(x, y) for y in itertools.product(*map(range, self.sizes))}


def log_sum(v):
    v = np.array(list(v))
    return v.max() + np.log(np.exp(v - v.max()).sum())


FOLDER = tempfile.mkdtemp(prefix="jemd-general-")
PAIRS, MIXED = Model("pairs", VALUES, "dot"), Model("mixed", VALUES, "mlp")
MANY = Model("many", {f"a{i}": ["no", "yes"] for i in range(14)}, "mlp")
PIXELS = np.random.default_rng(1).integers(0, 256, (4, 4)).astype(np.uint8)
X = PIXELS.reshape(-1) / 255.0


def setUpModule():
    for model in (PAIRS, MIXED, MANY):
        model.write(FOLDER)


def tearDownModule():
    shutil.rmtree(FOLDER)


class General(jemd_test.Case):
    FLAGS = ("--models.directory=" + FOLDER,)

    def ask(self, model, query="", verb="predict"):
        return self.post(f"/v1/models/{model.description['name']}:{verb}{query}", PIXELS.tobytes(),
                         "application/octet-stream", headers={"X-Image-Shape": "1,4,4,1"})

    def test_predictions_are_sums_over_all_values(self):
        for model in (PAIRS, MIXED):
            result = self.good(self.ask(model, "?include=probabilities,logits,approximate_mass"))["results"][0]
            table = model.table(X)
            everything = log_sum(table.values())
            self.assertAlmostEqual(result["energy"], -everything, places=4)
            scores = result["ood"]["scores"]
            self.assertAlmostEqual(scores["max_logit"], max(table.values()), places=4)
            self.assertAlmostEqual(scores["max_prob"], np.exp(max(table.values()) - everything), places=4)
            h = 1e-5
            slope = [(log_sum(model.table(X + h * d).values()) - log_sum(model.table(X - h * d).values())) / (2 * h)
                     for d in np.eye(16)]
            self.assertAlmostEqual(scores["approximate_mass"], -np.linalg.norm(slope), places=3)
            for k, attribute in enumerate(result["attributes"]):
                for v, name in enumerate(model.values[attribute["name"]]):
                    some = log_sum(f for y, f in table.items() if y[k] == v)
                    self.assertAlmostEqual(attribute["probabilities"][name], np.exp(some - everything), places=5)
                    self.assertAlmostEqual(attribute["logits"][name], some, places=4)

    def test_what_is_given_moves_the_others(self):
        for model in (PAIRS, MIXED):
            plain = self.good(self.ask(model))["results"][0]
            result = self.good(self.ask(model, "?given=row=bottom,hat=no"))["results"][0]
            self.assertEqual(result["energy"], plain["energy"])
            self.assertFalse([w for w in result["warnings"] if "given" in w])
            table = {y: f for y, f in model.table(X).items() if y[1] == 2 and y[2] == 0}
            self.assertAlmostEqual(result["log_px_given"], log_sum(table.values()), places=4)
            sides = result["attributes"][0]["probabilities"]
            wanted = np.exp(log_sum([table[1, 2, 0]]) - log_sum(table.values()))
            self.assertAlmostEqual(sides["right"], wanted, places=5)
            self.assertNotAlmostEqual(sides["right"], plain["attributes"][0]["probabilities"]["right"], places=3)
            self.assertEqual(result["attributes"][1]["value"], "bottom")
            self.assertGreater(result["attributes"][1]["probability"], 0.999999)

    def test_scores_are_those_of_predictions(self):
        score = self.good(self.ask(MIXED, verb="score"))["results"][0]
        self.assertEqual(score["energy"], self.good(self.ask(MIXED))["results"][0]["energy"])

    def job(self, model, attributes, **sampler):
        return {"type": "sample", "model": model.description["name"], "seed": "3",
                "conditions": [{"count": 6, "attributes": attributes}], "sampler": sampler,
                "outputs": ["tensor"]}

    def test_samples_keep_to_their_condition(self):
        for model, kind in itertools.product((PAIRS, MIXED), ("gibbs", "sgld")):
            done = jemd_test.run_job(self.daemon, self.job(
                model, {"side": "right", "row": ["top", "bottom"]}, kind=kind))
            arrays, _ = tensors(self.daemon.get(done["links"]["artifacts"] + "samples.safetensors").body)
            self.assertEqual(arrays["features"].shape, (6, D))
            for i, sample in enumerate(done["result"]["samples"]):
                table = model.table(arrays["x"][i].reshape(-1).astype(float))
                self.assertAlmostEqual(sample["energy"], -log_sum(table.values()), places=3)
                y = tuple(arrays["y"][i])
                self.assertEqual(y[0], 1)
                self.assertIn(y[1], (0, 2))
                allowed = [f for z, f in table.items() if z[0] == 1 and z[1] != 1]
                self.assertAlmostEqual(sample["score"], table[y] if kind == "gibbs" else log_sum(allowed), places=3)

    def test_what_has_no_meaning_is_refused(self):
        document = self.job(PAIRS, {"side": "right"})
        document["conditions"][0]["weights"] = {"side": 2}
        refused = self.problem(self.post("/v1/jobs", document), 422, "unsupported")
        self.assertEqual(refused["errors"][0]["pointer"], "/conditions/0")
        document = self.job(PAIRS, {})
        document["conditions"][0]["any_of"] = [{"attributes": {"side": "left"}}, {"attributes": {"hat": True}}]
        self.problem(self.post("/v1/jobs", document), 422, "unsupported")
        document["sampler"]["kind"] = "sgld"
        jemd_test.run_job(self.daemon, document)

    def test_too_many_values_are_sampled_but_not_asked(self):
        detail = self.problem(self.ask(MANY), 422, "unsupported")["detail"]
        self.assertIn("4096", detail)
        self.problem(self.ask(MANY, verb="score"), 422, "unsupported")
        self.problem(self.post("/v1/jobs", self.job(MANY, {}, kind="sgld")), 422, "unsupported")
        done = jemd_test.run_job(self.daemon, self.job(MANY, {"a3": True}))
        self.assertIn("combinations", done["result"]["warnings"][0])
        for sample in done["result"]["samples"]:
            self.assertIsNone(sample["energy"])
            self.assertEqual(sample["attributes"]["a3"], "yes")
            self.assertIsNotNone(sample["score"])


class Commands(unittest.TestCase):
    def run_jemd(self, *arguments):
        return subprocess.run([jemd_test.BIN, *arguments], capture_output=True, text=True, check=False)

    def test_info_shows_the_energy(self):
        told = self.run_jemd("info", os.path.join(FOLDER, "pairs.safetensors")).stdout
        self.assertIn("dot of 5 features", told)
        self.assertIn("12 combinations", told)
        self.assertIn("y1", told)
        self.assertIn("too many combinations", self.run_jemd("info", os.path.join(FOLDER, "many.safetensors")).stdout)

    def test_predict_refuses_what_cannot_be_summed(self):
        path = os.path.join(FOLDER, "x")
        with open(path, "wb") as f:
            f.writelines(safetensors_bytes({"in.x": np.float32(X).reshape(1, 1, 4, 4)}, {}))
        out = os.path.join(FOLDER, "out")
        done = self.run_jemd("predict", "--tensors", path, "--out", out, os.path.join(FOLDER, "many.safetensors"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("more than 4096", done.stderr)
        done = self.run_jemd("predict", "--tensors", path, "--out", out, os.path.join(FOLDER, "mixed.safetensors"))
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(out, "rb") as f:
            arrays, _ = tensors(f.read())
        self.assertAlmostEqual(float(arrays["out.logp_x"][0]), log_sum(MIXED.table(X).values()), places=4)
        self.assertEqual(arrays["out.logits"].shape, (1, 7 + 3))


if __name__ == "__main__":
    unittest.main()
