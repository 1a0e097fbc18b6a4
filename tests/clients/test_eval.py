#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`jemd eval` as its users meet it: its figures against plain formulas over the model's own logits,
its page as a browser would read it, and what it refuses."""
import html.parser
import json
import math
import os
import re
import subprocess
import tempfile
import unittest

JEMD = os.environ["JEMD_BIN"]
SOURCE = os.environ.get("JEMD_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
SHARED = os.environ.get("JEMD_SHARED", "")
BUNDLED = os.path.join(SOURCE, "models", "sprites.safetensors")
SPRITES = os.path.join(SHARED, "data", "lpc_sprites")
EVIL = "<script>alert('x')</script>&\""


def write_idx(path, shape, values):
    head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    with open(path, "wb") as stream:
        stream.write(head + bytes(values))


def write_model(path, attributes, weights):
    """A linear model of grey 2x2 images in [0, 1]: one row of weights a logit, bias last."""
    out = len(weights)
    description = {
        "format": 1, "name": "linear", "version": "1",
        "input": {"channels": 1, "height": 2, "width": 2, "range": [0, 1]},
        "layers": [{"kind": "flatten"}, {"kind": "linear", "weights": "w", "in": 4, "out": out}],
        "attributes": [{"name": n, "values": v, "temperature": t} for n, v, t in attributes]}
    import struct
    rows = b"".join(struct.pack("<4f", *row[:4]) for row in weights)
    bias = b"".join(struct.pack("<f", row[4]) for row in weights)
    head = {"__metadata__": {"format": "jemd", "jemd": json.dumps(description)},
            "w.weight": {"dtype": "F32", "shape": [out, 4], "data_offsets": [0, len(rows)]},
            "w.bias": {"dtype": "F32", "shape": [out],
                       "data_offsets": [len(rows), len(rows) + len(bias)]}}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text + rows + bias)


def softmax(row, temperature):
    top = max(row)
    e = [math.exp((v - top) / temperature) for v in row]
    return [v / sum(e) for v in e]


def auroc(scores, positive):
    high = [s for s, y in zip(scores, positive) if y]
    low = [s for s, y in zip(scores, positive) if not y]
    if not high or not low:
        return None
    return sum((a > b) + (a == b) / 2 for a in high for b in low) / (len(high) * len(low))


def average_precision(scores, positive):
    if not any(positive) or all(positive):
        return None
    precisions = []
    for s, y in zip(scores, positive):
        if y:
            taken = [q for t, q in zip(scores, positive) if t >= s]
            precisions.append(sum(taken) / len(taken))
    return sum(precisions) / len(precisions)


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


def figures(rows, labels, values, temperature):
    """Of one attribute, from logits and labels (None = missing)."""
    kept = [(softmax(r, temperature), r.index(max(r)), y) for r, y in zip(rows, labels)
            if y is not None]
    n = len(kept)
    out = {"accuracy": sum(t == y for _, t, y in kept) / n,
           "nll": -sum(math.log(p[y]) for p, _, y in kept) / n,
           "brier": sum((p[v] - (v == y)) ** 2 for p, _, y in kept for v in range(values)) / n}
    f1, ap, roc = [], [], []
    for v in range(values):
        scores, positive = [p[v] for p, _, _ in kept], [y == v for _, _, y in kept]
        hit = sum(t == v == y for _, t, y in kept)
        both = sum(t == v for _, t, _ in kept) + sum(positive)
        f1.append(2 * hit / both if both else None)
        ap.append(average_precision(scores, positive))
        roc.append(auroc(scores, positive))
    bins = {}
    for p, t, y in kept:
        bins.setdefault(min(int(max(p) * 20), 19), []).append((t == y) - max(p))
    out |= {"f1": mean(f1), "ap": mean(ap), "auroc": mean(roc),
            "ece": sum(abs(sum(b)) for b in bins.values()) / n}
    return out


class Page(html.parser.HTMLParser):
    """Checks that every element is closed in its turn, and gathers what it refers to."""
    VOID = {"meta", "br", "img", "path", "circle", "link"}

    def __init__(self):
        super().__init__()
        self.open, self.references, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "data", "action",
                                                              "srcset", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise AssertionError(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    page = Page()
    page.feed(text)
    page.close()
    return page, text


def run(*words):
    return subprocess.run([JEMD, *words], capture_output=True, text=True, timeout=600)


class Eval(unittest.TestCase):
    VALUES = (2, 3)

    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())

    def path(self, name):
        return os.path.join(self.folder, name)

    def make(self, split, rows=60, shift=0):
        """Pixels on a coarse grid (many equal scores) and labels, some missing."""
        pixels = [(i * (37 + 11 * j) + 29 * j + shift) % 5 * 51 for i in range(rows)
                  for j in range(4)]
        labels = [[255 if i % 11 == 5 else (i * 7 + shift) % 5 % 2,
                   255 if i % 7 == 3 else (i + shift) % 4 % 3] for i in range(rows)]
        write_idx(self.path(f"{split}-images.idx3-ubyte"), (rows, 2, 2), pixels)
        write_idx(self.path(f"{split}-attr-cat.idx2-ubyte"), (rows, 2), sum(labels, []))
        return pixels, labels

    WEIGHTS = [[2, -1, .5, 0, .25], [-1, 2, 0, 1, 0],
               [1, 0, 2, -1, .5], [0, 3, -1, 0, 0], [-2, 1, 1, 1, .125]]

    def model(self, name="linear.safetensors"):
        write_model(self.path(name), [("colour", ["red", "blue"], 1.5),
                                      (EVIL, ["disc", "ring", EVIL], 0.7)], self.WEIGHTS)
        return self.path(name)

    def report(self, *words):
        done = run("eval", self.model(), "--data", self.folder, *words, "--json",
                   self.path("r.json"))
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.path("r.json"), encoding="utf-8") as stream:
            text = stream.read()
        self.assertNotIn("NaN", text)
        return json.loads(text), done.stdout

    def logits(self, pixels, rows):
        x = [[p / 255 for p in pixels[4 * i:4 * i + 4]] for i in range(rows)]
        return [[sum(w * v for w, v in zip(row, image)) + row[4] for row in self.WEIGHTS]
                for image in x]

    def test_figures_agree_with_their_formulas(self):
        pixels, labels = self.make("test")
        logits = self.logits(pixels, 60)
        report, table = self.report("--split", "test", "--resamples", "200")
        first = 0
        for k, (temperature, attribute) in enumerate(zip((1.5, 0.7), report["attributes"])):
            rows = [f[first:first + self.VALUES[k]] for f in logits]
            known = [None if y[k] == 255 else y[k] for y in labels]
            first += self.VALUES[k]
            self.assertEqual(attribute["n"], sum(y is not None for y in known))
            for suffix, t in (("", temperature), ("_before", 1)):
                for name, wanted in figures(rows, known, self.VALUES[k], t).items():
                    if name == "accuracy" and suffix:
                        continue
                    self.assertAlmostEqual(attribute[name + suffix], wanted, places=5, msg=name)
                    lo, hi = attribute["intervals"][name + suffix]
                    self.assertLessEqual(lo, hi)
        for name in ("accuracy", "auroc", "ece_before"):
            self.assertAlmostEqual(report["macro"][name],
                                   mean([a[name] for a in report["attributes"]]), places=7)
        n = [a["n"] for a in report["attributes"]]
        pooled = sum(a["accuracy"] * m for a, m in zip(report["attributes"], n)) / sum(n)
        self.assertAlmostEqual(report["micro"]["accuracy"], pooled, places=7)
        self.assertAlmostEqual(report["micro"]["f1"], pooled, places=7)
        self.assertLessEqual(max(map(len, table.splitlines())), 100)

    def test_scores_tell_foreign_images_apart_as_they_should(self):
        pixels, _ = self.make("test")
        foreign, _ = self.make("other", 40, 3)
        report, _ = self.report("--split", "test", "--ood", f"odd={self.folder}:other",
                                "--transformed", "0", "--resamples", "50")

        def log_px(f):
            return sum(math.log(sum(math.exp(v) for v in part)) for part in (f[:2], f[2:]))

        def max_prob(f):
            return max(softmax(f[:2], 1)) * max(softmax(f[2:], 1))

        sets = self.logits(pixels, 60), self.logits(foreign, 40)
        for name, score in (("log_px", log_px), ("max_prob", max_prob),
                            ("max_logit", lambda f: max(f[:2]) + max(f[2:]))):
            (entry,) = [o for o in report["ood"] if o["score"] == name]
            self.assertEqual((entry["name"], entry["n"], entry["familiar_n"]), ("odd", 40, 60))
            # as float32 has them: equal scores are equal
            scores = [round(score(f), 5) for s in sets for f in s]
            positive = [True] * 60 + [False] * 40
            self.assertAlmostEqual(entry["auroc"], auroc(scores, positive), places=3)
            self.assertAlmostEqual(entry["aupr"], average_precision(scores, positive), places=2)
            self.assertEqual(entry["curve"][0], [0, 0])
            self.assertEqual(entry["curve"][-1], [1, 1])
        histogram = report["ood"][0]["energy_histogram"]
        self.assertEqual(sum(histogram["familiar"]), 60)
        self.assertEqual(sum(histogram["foreign"]), 40)

    def test_one_class_alone_gives_null(self):
        self.make("test", 20)
        write_idx(self.path("test-attr-cat.idx2-ubyte"), (20, 2), [1, 255] * 20)
        report, table = self.report("--split", "test")
        one, none = report["attributes"]
        self.assertIsNone(one["auroc"])
        self.assertIsNone(one["ap"])
        self.assertIsNotNone(one["accuracy"])
        self.assertEqual(none["n"], 0)
        self.assertIsNone(none["accuracy"])
        self.assertEqual(none["intervals"]["nll"], [None, None])
        self.assertEqual(report["macro"]["accuracy"], one["accuracy"])
        self.assertNotIn("nan", table)

    def test_the_score_is_chosen_on_the_calibration_split(self):
        self.make("calib", 50, 1)
        self.make("test")
        report, _ = self.report("--split", "calib", "--report", "test", "--resamples", "20")
        best = report["best_score"]
        self.assertEqual(best["chosen_on"], "calib")
        made = {(o["name"], o["score"]): o for o in report["transformations"]}
        self.assertEqual(len(made), 16)
        for entry in best["by_transformation"]:
            self.assertEqual(entry["auroc"], made[entry["name"], entry["score"]]["auroc"])
        # what would be chosen, by another run's figures on the calibration split itself
        other, _ = self.report("--split", "calib", "--resamples", "0")
        for entry in best["by_transformation"]:
            there = {o["score"]: o["auroc"] for o in other["transformations"]
                     if o["name"] == entry["name"]}
            self.assertAlmostEqual(there[entry["score"]], max(there.values()), places=8)
            self.assertAlmostEqual(entry["auroc_calibration"], max(there.values()), places=8)

    def test_the_page_is_whole_and_alone(self):
        self.make("calib", 50, 1)
        self.make("test")
        done = run("eval", self.model(), "--data", self.folder, "--split", "calib", "--report",
                   "test", "--ood", f"{EVIL.replace('/', '|')}={self.folder}:calib", "--judge",
                   self.model("judge.safetensors"), "--steps", "10", "--pair",
                   f"colour=red,{EVIL}=ring", "--pgd", "linf:8/255,0.1:3", "--pgd", "l2:.5",
                   "--jem-k", "2", "--resamples", "50", "--html", self.path("r.html"))
        self.assertEqual(done.returncode, 0, done.stderr)
        page, text = read_page(self.path("r.html"))
        self.assertEqual(page.open, [])
        self.assertNotIn("script", page.tags)
        self.assertNotIn("link", page.tags)
        self.assertTrue(page.references)
        for reference in page.references:
            self.assertTrue(reference.startswith("data:image/png;base64,"), reference[:80])
        self.assertIsNone(re.search(r"https?:|//[a-z]|@import|url\(|\bon\w+=|nan\b", text, re.I))
        self.assertIn(EVIL, "".join(page.text))
        self.assertEqual(page.tags.count("svg"), 2 + 2 * 5 + 2)
        self.assertIn("prefers-color-scheme:dark", text)

    def test_what_is_wrong_is_said(self):
        self.make("test")
        model = self.model()
        write_model(self.path("other.safetensors"), [("colour", ["red", "blue"], 1)],
                    self.WEIGHTS[:2])
        base = ["eval", model, "--data", self.folder, "--split", "test"]
        for words, code, text in [
                (["--judge", self.path("other.safetensors")], 1, "differ"),
                (["--judge", model, "--novel", "nope"], 1, "nope"),
                (["--ood", self.path("nowhere")], 1, "nowhere"),
                (["--pgd", "linf:8/255:x"], 2, "not a number"),
                (["--resamples", "-1"], 2, "not a number"),
                (["--html", self.path("no/such/place.html")], 1, "cannot be written")]:
            done = run(*base, *words)
            self.assertEqual(done.returncode, code, (words, done.stderr))
            self.assertIn(text, done.stderr)


@unittest.skipUnless(os.path.exists(BUNDLED), "skipped: models/sprites.safetensors is absent")
class Bundled(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())

    def evaluate(self, *words):
        out, page = (os.path.join(self.folder, n) for n in ("r.json", "r.html"))
        done = run("eval", BUNDLED, *words, "--json", out, "--html", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(out, encoding="utf-8") as stream:
            report = json.load(stream)
        parsed, _ = read_page(page)
        self.assertEqual(parsed.open, [])
        return report, parsed

    def test_a_made_set_goes_through_the_bundled_model(self):
        rows = 24
        write_idx(os.path.join(self.folder, "test-images.idx4-ubyte"), (rows, 32, 32, 3),
                  bytes((i * 7 + i // 96 * 31) % 256 for i in range(rows * 32 * 32 * 3)))
        write_idx(os.path.join(self.folder, "test-attr-cat.idx2-ubyte"), (rows, 7),
                  [i % 2 for i in range(rows * 7)])
        write_idx(os.path.join(self.folder, "grey-images.idx3-ubyte"), (9, 28, 20),
                  bytes(i % 251 for i in range(9 * 28 * 20)))
        report, page = self.evaluate(
            "--data", self.folder, "--split", "test", "--ood", f"grey={self.folder}:grey",
            "--resize", "fit", "--resamples", "50", "--pictures", "2", "--steps", "9",
            "--buffer-steps", "3", "--pgd", "linf:4/255:3", "--attacked", "8", "--jem-k", "1")
        self.assertEqual(report["ood"][0]["preprocessing"], "fit")
        kinds = [(p["kind"], p["start"]) for p in report["pictures"]]
        self.assertEqual(kinds, [("samples", "noise")] * 2 + [("steps", "noise")] * 2 +
                         [("samples", "buffer")] * 2)
        self.assertEqual(report["pictures"][2]["steps"][-1], 9)
        self.assertEqual(page.tags.count("img"), 6)
        self.assertEqual(report["robustness"]["n"], 8)

    @unittest.skipUnless(os.path.isdir(SPRITES), f"skipped: there is no {SPRITES}")
    def test_the_bundled_model_keeps_its_figures(self):
        """Those of models/sprites.md; the mixes are told apart by the score chosen on calib."""
        report, _ = self.evaluate("--data", SPRITES, "--split", "calib", "--report", "test",
                                  "--resamples", "100", "--pictures", "1", "--steps", "20")
        test = report["reports"][0]
        self.assertAlmostEqual(test["macro"]["accuracy"], 0.9995, places=3)
        self.assertAlmostEqual(test["macro"]["ece_before"], 0.0178, places=3)
        self.assertAlmostEqual(test["macro"]["ece"], 0.0010, places=3)
        self.assertAlmostEqual(test["exact"], 0.996, places=2)
        chosen = {o["name"]: o for o in report["best_score"]["by_transformation"]}
        for name in ("mix", "vertical_flip", "shuffle", "noise"):
            self.assertGreater(chosen[name]["auroc"], 0.95, name)


if __name__ == "__main__":
    unittest.main()
