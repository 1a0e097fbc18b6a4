# SPDX-License-Identifier: Apache-2.0
"""Starts, masks, MALA and HMC, diagnostics and divergence, job by job, on a model whose law is a
Gaussian for each of its two values."""
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import unittest

import numpy as np
from PIL import Image

import jemd_test
from jemd_test import b64, run_job, save
from jobs_help import drawn, tensors

sys.path.insert(0, os.path.join(jemd_test.SOURCE, "clients", "python"))
from jemd_import.writer import write_model  # noqa: E402

SIDE, CENTRES = 4, (-.5, .5)
KINDS = {"sgld": {"step_size": .05, "noise": .3}, "ula": {"step_size": .05}, "gibbs": {"step_size": .05, "noise": .3},
         "mala": {"step_size": .02}, "hmc": {"step_size": .1, "leapfrog_steps": 4}}


def write_bowl(folder, range_=(-6, 6)):
    n = SIDE * SIDE
    x = np.arange(3 * n, dtype=np.uint8).reshape(3, 1, SIDE, SIDE) * 5
    weights = {
        "square.weight": np.full((2, n), -.5, np.float32), "square.bias": np.zeros(2, np.float32),
        "linear.weight": np.float32(np.outer(CENTRES, np.ones(n))),
        "linear.bias": np.float32([-.5 * n * c * c for c in CENTRES]),
        "b.x": x, "b.y": np.uint8([[0], [1], [255]]),
        "g.mean": np.float32(np.multiply.outer(CENTRES, np.ones((1, SIDE, SIDE)))),
        "g.spread": np.full((2, 1, SIDE, SIDE), .01, np.float32), "g.factor": np.zeros((2, 1, 1), np.float32)}
    layers = [{"kind": "square"}, {"kind": "flatten"}, {"kind": "linear", "weights": "square", "in": n, "out": 2, "id": "q"},
              {"kind": "flatten", "from": "input"}, {"kind": "linear", "weights": "linear", "in": n, "out": 2},
              {"kind": "add", "with": "q"}]
    write_model(os.path.join(folder, "bowl.safetensors"), {
        "format": 1, "name": "bowl", "version": "1", "layers": layers,
        "input": {"channels": 1, "height": SIDE, "width": SIDE, "range": list(range_)},
        "attributes": [{"name": "y", "values": ["low", "high"]}],
        "replay_buffer": {"x": "b.x", "y": "b.y", "scale": .01, "offset": -1},
        "gaussians": {"attribute": "y", "mean": "g.mean", "spread": "g.spread", "factor": "g.factor"},
        "sampler": {"kind": "sgld", "step_rule": "normalised", "steps": 40, "cool_last": 10, "step_size": 1, "step_norm": .05,
                    "noise": .1, "clamp": [-3, 3], "start": {"kind": "noise", "noise": .1}}}, weights)


def grey(rows, size=SIDE, kind="PNG"):
    array = np.zeros((size, size), np.uint8) if rows is None else np.uint8(rows)
    return {"b64": b64(save(Image.fromarray(array), kind, **({"quality": 95} if kind == "JPEG" else {})))}


def ask(count=4, value="low", **more):
    sampler = {"kind": "mala", "steps": 40, **more.pop("sampler", {})}
    return {"type": "sample", "conditions": [{"count": count, "attributes": {"y": value}}], "sampler": sampler,
            "seed": "11", "outputs": ["tensor", "trace"], **more}


class Bowl(jemd_test.Case):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="jemd-bowl-")
        cls.addClassCleanup(folder.cleanup)
        write_bowl(folder.name)
        cls.FLAGS = ("--models.directory=" + folder.name, "--sampler.workers=1", "--sampler.nice=0")
        super().setUpClass()

    def result(self, document):
        return run_job(self.daemon, document)["result"]

    def x(self, document):
        return tensors(drawn(self.daemon, document)["samples.safetensors"])[0]["x"]

    def refused(self, document, pointer, code=None):
        for path in ("/v1/jobs", "/v1/jobs:validate"):
            answer = self.post(path, document)
            self.assertIn(answer.status, (400, 422), answer)
            problem = answer.json()
            self.assertEqual(problem["errors"][0]["pointer"], pointer, problem)
            self.assertEqual(problem["errors"][0]["code"], code or problem["errors"][0]["code"])
        return problem["errors"][0]["detail"]


class Kinds(Bowl):
    def provenance(self, **sampler):
        return json.loads(drawn(self.daemon, ask(2, sampler=sampler))["provenance.json"])["sampler"]

    def test_mala_and_hmc_say_what_they_used(self):
        said = self.provenance(kind="mala", steps=5)
        self.assertEqual((said["kind"], said["step_rule"], said["cool_last"], said["clamp"], said["noise"], said["range"]),
                         ("mala", "fixed", 0, None, 0, [-6, 6]))
        self.assertAlmostEqual(said["step_size"], .1 ** 2 / 2, delta=1e-8)
        self.assertNotIn("leapfrog_steps", said)
        said = self.provenance(kind="hmc", steps=5, step_size=.25, leapfrog_steps=3, range=[-2, 2.5], temperature=2)
        self.assertEqual((said["step_size"], said["leapfrog_steps"], said["range"], said["temperature"]), (.25, 3, [-2, 2.5], 2))
        said = self.provenance(kind="hmc", steps=5, range=None)
        self.assertEqual((said["leapfrog_steps"], said["range"]), (10, None))

    def test_what_was_said_can_be_asked_again(self):
        for kind, sampler in KINDS.items():
            if kind == "ula":
                continue  # which refuses any "noise"
            document = ask(2, sampler={"kind": kind, "steps": 20, **sampler})
            first = drawn(self.daemon, document)
            again = drawn(self.daemon, {**document, "sampler": json.loads(first["provenance.json"])["sampler"]})
            for name, array in tensors(first["samples.safetensors"])[0].items():
                np.testing.assert_array_equal(array, tensors(again["samples.safetensors"])[0][name], kind)
            self.assertEqual(first["trace.json"], again["trace.json"], kind)

    def test_they_stay_in_range_and_accept_some(self):
        for kind in ("mala", "hmc"):
            document = ask(8, sampler={"kind": kind, "steps": 60, "range": [-.75, 1], **KINDS[kind]})
            x = self.x(document)
            self.assertTrue(x.min() >= -.75 and x.max() <= 1)
            rate = self.result(document)["diagnostics"]["conditions"][0]["acceptance_rate"]
            self.assertTrue(0 < rate < 1, rate)

    def test_a_smaller_step_is_accepted_more(self):
        rates = [self.result(ask(8, sampler={"kind": "mala", "steps": 60, "range": None, "step_size": a}))
                 ["diagnostics"]["conditions"][0]["acceptance_rate"] for a in (.01, .3, 1.)]
        self.assertGreater(rates[0], .95)
        self.assertGreater(rates[0], rates[1])
        self.assertGreater(rates[1], rates[2])

    def test_nothing_accepted_is_said(self):
        result = self.result(ask(2, sampler={"kind": "hmc", "steps": 20, "step_size": 100}))
        self.assertEqual(result["diagnostics"]["conditions"][0]["acceptance_rate"], 0)
        self.assertIn("no proposal was accepted", result["warnings"][0])
        self.assertIsNone(self.result(ask(2, sampler={"kind": "sgld"}))["diagnostics"]["conditions"][0]["acceptance_rate"])

    def test_what_they_cannot_have_is_refused(self):
        for kind in ("mala", "hmc"):
            for name, value in (("clamp", [-1, 1]), ("cool_last", 3), ("step_rule", "normalised"), ("noise", .1),
                                ("pixel_clamp", 1), ("langevin_steps", 2), ("step_norm", .1)):
                detail = self.refused(ask(sampler={"kind": kind, name: value}), "/sampler/" + name, "unsupported")
                self.assertIn(kind, detail)
        self.refused(ask(sampler={"kind": "mala", "leapfrog_steps": 2}), "/sampler/leapfrog_steps", "unsupported")
        self.refused(ask(sampler={"kind": "sgld", "range": [0, 1]}), "/sampler/range", "unsupported")
        self.refused(ask(sampler={"kind": "hmc", "step_size": 0}), "/sampler/step_size")

    def test_a_models_own_sampler_cannot_be_one(self):
        with tempfile.TemporaryDirectory() as folder:
            write_bowl(folder)
            path = os.path.join(folder, "bowl.safetensors")
            with open(path, "rb") as f:
                data = f.read()
            with open(path, "wb") as f:
                f.write(data.replace(b'\\"kind\\":\\"sgld\\"', b'\\"kind\\":\\"mala\\"').replace(
                    b'\\"kind\\": \\"sgld\\"', b'\\"kind\\": \\"mala\\"'))
            answer = subprocess.run([jemd_test.BIN, "info", path], capture_output=True, text=True, check=False)
            self.assertNotEqual(answer.returncode, 0)
            self.assertIn("mala and hmc are for jobs", answer.stderr)


class Starts(Bowl):
    def start(self, kind, value="high", **more):
        return self.x(ask(3, value, sampler={"kind": "sgld", "steps": 0, "start": kind}, **more))

    def test_noise(self):
        x = self.start({"kind": "noise", "grid": 0, "noise": 0})
        self.assertGreater(x.std(), 1)
        self.assertTrue(abs(x).max() <= 3)  # the sampler's clamp

    def test_buffer(self):
        x = self.start("buffer")
        wanted = np.arange(3 * SIDE * SIDE).reshape(3, 1, SIDE, SIDE) * .05 - 1
        for one in x:
            self.assertTrue(np.allclose(one, wanted[1], atol=1e-6) or np.allclose(one, wanted[2], atol=1e-6))

    def test_gaussian(self):
        for value, centre in zip(("low", "high"), CENTRES):
            x = self.start("gaussian", value)
            self.assertTrue(0 < abs(x - centre).max() < .06)

    def test_image(self):
        rows = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 8 + 64
        for x in self.start("image", image=grey(rows)):
            self.assertTrue(np.allclose(x[0], rows * 12 / 255 - 6, atol=1e-5))

    def test_every_start_serves_every_kind(self):
        image = grey(np.full((SIDE, SIDE), 128))
        for kind, sampler in KINDS.items():
            for start in ("noise", "buffer", "gaussian", "image"):
                result = self.result(ask(2, sampler={"kind": kind, "steps": 12, "start": start, **sampler},
                                         **({"image": image} if start == "image" else {})))
                self.assertFalse(any(s["diverged"] for s in result["samples"]), (kind, start))

    def test_what_lacks_its_picture_is_refused(self):
        self.refused(ask(sampler={"start": "image"}), "/image", "missing_field")
        self.refused(ask(image=grey(None)), "/image", "unsupported")


class Inpainting(Bowl):
    ROWS = np.uint8([[120, 130, 140, 127], [0, 255, 128, 100], [110, 90, 128, 128], [128, 131, 129, 128]])
    MASK = np.uint8([[0, 0, 0, 0], [0, 1, 255, 0], [0, 7, 9, 0], [0, 0, 0, 0]])

    def document(self, kind, start="image", **more):
        sampler = {"kind": kind, "steps": 30, "start": start, **KINDS[kind]}
        return ask(3, sampler=sampler, image=grey(self.ROWS), mask=grey(self.MASK), **more)

    def test_masked_pixels_move_and_others_stay_bit_for_bit(self):
        wanted = self.x(ask(1, sampler={"kind": "mala", "steps": 0, "start": "image"}, image=grey(self.ROWS)))[0]
        self.assertGreater(wanted.max(), 5.9)  # far from where the model would have it
        moves = self.MASK != 0
        for kind in KINDS:
            for start in ("image", "noise", "gaussian", "buffer"):
                for x in self.x(self.document(kind, start)):
                    self.assertTrue((x[0][~moves] == wanted[0][~moves]).all(), (kind, start))
                    self.assertFalse((x[0][moves] == wanted[0][moves]).any(), (kind, start))

    def test_what_stays_does_not_count_against_a_proposal(self):
        for kind in ("mala", "hmc"):
            rate = self.result(self.document(kind, "gaussian"))["diagnostics"]["conditions"][0]["acceptance_rate"]
            self.assertGreater(rate, .8, kind)

    def test_the_pictures_are_fitted_together(self):
        big = np.kron(self.ROWS, np.ones((8, 8), np.uint8))
        mask = np.zeros((32, 32), np.uint8)
        mask[8:16, 8:16] = 255
        for kind in ("PNG", "JPEG"):
            document = ask(2, sampler={"kind": "sgld", "steps": 5, "start": "image"}, image=grey(big), mask=grey(mask, kind=kind))
            fitted = self.x({**document, "mask": None, "sampler": {"kind": "sgld", "steps": 0, "start": "image", "clamp": None}})
            x = self.x(document)
            self.assertTrue((x[:, 0, 1, 1] != fitted[:, 0, 1, 1]).all())
            self.assertTrue((x[:, 0, 3] == fitted[:, 0, 3]).all() and (x[:, 0, :, 3] == fitted[:, 0, :, 3]).all())

    def test_what_is_wrong_is_named(self):
        good = self.document("mala")
        self.refused({**good, "image": None}, "/image", "missing_field")
        self.refused({**good, "mask": grey(np.ones((5, 4), np.uint8))}, "/mask/b64", "image_size_mismatch")
        self.refused({**good, "mask": grey(None)}, "/mask", "out_of_range")
        self.refused({**good, "mask": {"b64": b64(b"not an image")}}, "/mask/b64", "bad_image")
        self.refused({**good, "mask": {"b64": "?"}}, "/mask/b64", "bad_base64")
        self.refused({**good, "mask": {}}, "/mask/b64", "missing_field")
        self.refused({**good, "mask": {"b64": b64(b"x"), "id": 1}}, "/mask/id", "unknown_field")


# ---- R-hat and effective sizes, from their definitions ----

def halves(x):
    return x.reshape(2 * len(x), -1)


def z_scale(x):
    order = np.sort(x, axis=None)
    ranks = (np.searchsorted(order, x, "left") + np.searchsorted(order, x, "right") + 1) / 2
    normal = statistics.NormalDist()
    return np.vectorize(lambda r: normal.inv_cdf((r - 3 / 8) / (x.size + 1 / 4)))(ranks)


def split_r_hat(x):
    n = x.shape[1]
    within = x.var(axis=1, ddof=1).mean()
    between = n * x.mean(axis=1).var(ddof=1)
    return np.sqrt(((n - 1) / n * within + between / n) / within)


def size(x):
    """Geyer's sum over pairs of autocorrelations, these by Fourier transforms."""
    m, n = x.shape
    centred = x - x.mean(axis=1, keepdims=True)
    power = abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2
    autocovariance = np.fft.irfft(power, axis=1)[:, :n].mean(axis=0) / n
    within = x.var(axis=1, ddof=1).mean()
    total = (n - 1) / n * within + x.mean(axis=1).var(ddof=1)
    rho = 1 - (within - autocovariance) / total
    rho[0] = 1
    pairs = rho[0:n // 2 * 2:2] + rho[1:n // 2 * 2:2]
    end = next((k for k, p in enumerate(pairs) if p <= 0 or 2 * k >= n - 5), len(pairs))
    tau = -1 + 2 * np.minimum.accumulate(pairs[:end]).sum() + max(rho[2 * end], 0)
    return m * n / max(tau, 1 / np.log10(m * n))


def judged(x):
    """(R-hat, bulk ESS, tail ESS) of x[chains][draws]."""
    cut = halves(x)
    folded = z_scale(halves(abs(x - np.median(x))))
    edges = np.quantile(x, [.05, .95])
    return (max(split_r_hat(z_scale(cut)), split_r_hat(folded)), size(z_scale(cut)), min(size(cut <= e) for e in edges * 1.0))


class Diagnostics(Bowl):
    def check(self, document):
        done = run_job(self.daemon, document)
        trace = self.get(done["links"]["artifacts"] + "trace.json").json()["chains"]
        for said in done["result"]["diagnostics"]["conditions"]:
            scores = np.array([c["score"] for c in trace if c["condition"] == said["condition"]])
            keep = scores.shape[1] // 4 * 2
            wanted = judged(-scores[:, -keep:])
            got = [said[k] for k in ("r_hat", "ess_bulk", "ess_tail")]
            np.testing.assert_allclose(got, wanted, rtol=2e-5)
        return done["result"]["diagnostics"]

    def test_they_are_those_of_the_trace(self):
        for kind, sampler in KINDS.items():
            self.check(ask(6, sampler={"kind": kind, "steps": 400, **sampler}))
        two = ask(5, sampler={"kind": "mala", "steps": 120, "step_size": .05})
        two["conditions"].append({"count": 4})
        said = self.check(two)["conditions"]
        self.assertEqual([(c["condition"], c["chains"]) for c in said], [(0, 5), (1, 4)])

    def test_chains_that_mix_are_near_one(self):
        mixed = self.check(ask(8, sampler={"kind": "hmc", "steps": 2000, "step_size": .3, "leapfrog_steps": 5}))["conditions"][0]
        self.assertLess(mixed["r_hat"], 1.05)
        self.assertGreater(mixed["ess_bulk"], 300)
        slow = self.check(ask(8, sampler={"kind": "mala", "steps": 200, "step_size": 1e-4}))["conditions"][0]
        self.assertGreater(slow["r_hat"], 1.5)
        self.assertLess(slow["ess_bulk"], 30)

    def test_what_says_nothing_is_null(self):
        for document in (ask(3, sampler={"steps": 100}), ask(4, sampler={"steps": 0}),
                         ask(4, sampler={"kind": "hmc", "steps": 100, "step_size": 1000, "start": "image"},
                             image=grey(np.full((SIDE, SIDE), 128)))):
            said = self.result(document)["diagnostics"]["conditions"][0]
            self.assertEqual([said[k] for k in ("r_hat", "ess_bulk", "ess_tail")], [None] * 3, said)
        few = self.result(ask(4, sampler={"steps": 20}))["diagnostics"]["conditions"][0]
        self.assertIsNotNone(few["r_hat"])
        self.assertIsNone(few["ess_bulk"])


class Divergence(Bowl):
    FLYING = {"kind": "sgld", "steps": 200, "step_rule": "fixed", "step_size": 1e6, "clamp": None, "cool_last": 0}

    def test_it_is_said_of_each_chain_and_condition(self):
        document = ask(3, sampler=self.FLYING)
        document["conditions"].append({"count": 2})
        result = self.result(document)
        self.assertTrue(all(s["diverged"] and s["steps"] < 20 for s in result["samples"]))
        self.assertEqual([c["diverged"] for c in result["diagnostics"]["conditions"]], [3, 2])
        self.assertEqual(result["diagnostics"]["diverged_chains"], 5)

    def test_neighbours_are_as_if_it_was_not_there(self):
        """Jobs of one engine at one time, which share its batches."""
        quiet = [ask(4, sampler={"kind": kind, "steps": 400, **sampler}) for kind, sampler in KINDS.items()]
        alone = [drawn(self.daemon, document) for document in quiet]
        flying = [jemd_test.submit(self.daemon, ask(16, sampler=self.FLYING)) for _ in range(8)]
        beside = [jemd_test.submit(self.daemon, document) for document in quiet]
        flying += [jemd_test.submit(self.daemon, ask(16, sampler=self.FLYING)) for _ in range(8)]
        for files, job in zip(alone, beside):
            done = jemd_test.wait_ended(self.daemon, job["id"])
            for name, body in files.items():
                self.assertEqual(self.get(done["links"]["artifacts"] + name).body, body, name)
        for job in flying:
            ended = jemd_test.wait_ended(self.daemon, job["id"])
            self.assertEqual(ended["result"]["diagnostics"]["diverged_chains"], 16)


if __name__ == "__main__":
    unittest.main()
