#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`jemd train` as its users meet it: a run that is killed again and again comes to the same bytes, an
interrupted one says so, wrong recipes and data are refused with a sentence, and its model is one
that jemd's other commands take."""
import csv
import fcntl
import gzip
import json
import os
import pty
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

JEMD = os.environ["JEMD_BIN"]
STEPS, EVERY = 120, 10


def write_idx(path, shape, values):
    head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(head + bytes(values))


def stripes(folder, rows=64, side=8):
    """Stripes across or down, dark or bright."""
    images, labels = [], []
    for i in range(rows):
        down, bright = i % 2, i // 2 % 2
        for y in range(side):
            for x in range(side):
                at = (x if down else y) + i // 4 % 4
                images.append((170 if at // 2 % 2 else 20) + 50 * bright + (x * 7 + y * 13 + i) % 16)
        labels += [down, bright]
    write_idx(os.path.join(folder, "train-images.idx3-ubyte.gz"), (rows, side, side), images)
    write_idx(os.path.join(folder, "train-attr-cat.idx2-ubyte.gz"), (rows, 2), labels)


def recipe(**training):
    conv = {"kind": "conv", "weights": "a", "in": 1, "out": 8, "kernel": 3, "stride": 1, "pad": 1}
    model = {"format": 1, "name": "stripes", "version": "1", "family": "mixed",
             "input": {"channels": 1, "height": 8, "width": 8, "range": [-1, 1]},
             "layers": [conv, {"kind": "silu"}, {"kind": "flatten"},
                        {"kind": "linear", "weights": "b", "in": 512, "out": 4}],
             "attributes": [{"name": "way", "values": ["across", "down"]},
                            {"name": "tone", "values": ["dark", "bright"]}],
             "sampler": {"kind": "sgld", "steps": 20, "steps_buffer": 10, "step_rule": "normalised",
                         "step_size": 10, "step_norm": 0.02, "noise": 0.01, "clamp": [-1, 1]}}
    chains = {"count": 8, "buffer": 32, "steps": 4,
              "births": {"every": 5, "count": 4, "steps": 8}}
    return {"model": model, "training": {"steps": STEPS, "seed": 3, "batch": 8,
                                         "checkpoint_every": EVERY, "chains": chains} | training}


class Train(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        stripes(self.folder)
        self.recipe = self.write("recipe.json", recipe())

    def write(self, name, value):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(value, stream)
        return path

    def command(self, out, *more, recipe_path=None):
        return [JEMD, "train", recipe_path or self.recipe, "--data", self.folder, "--out",
                os.path.join(self.folder, out), "--log-every", "5", *more]

    def run_train(self, out, *more, **keywords):
        return subprocess.run(self.command(out, *more, **keywords), stderr=subprocess.PIPE,
                              text=True, timeout=300)

    def model(self, out, name="model"):
        with open(os.path.join(self.folder, out, name + ".safetensors"), "rb") as stream:
            return stream.read()

    def rows(self, out):
        with open(os.path.join(self.folder, out, "metrics.csv"), encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def interrupt(self, out, number, seconds, *more, **keywords):
        with subprocess.Popen(self.command(out, *more, **keywords), stderr=subprocess.DEVNULL) as process:
            time.sleep(seconds)
            process.send_signal(number)
            return process.wait(60)

    def test_a_run_that_is_killed_comes_to_the_same_bytes(self):
        done = self.run_train("whole", "--threads", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("model.safetensors", done.stderr)
        ends = []
        for i in range(40):
            number = signal.SIGKILL if i % 3 else signal.SIGTERM
            ends.append(self.interrupt("parts", number, 0.03 + 0.01 * (i % 7), "--threads",
                                       str(1 + i % 2)))
            if ends[-1] == 0:
                break
        self.assertTrue({-signal.SIGKILL, 3} & set(ends), ends)
        if ends[-1] != 0:
            self.assertEqual(self.run_train("parts").returncode, 0)
        self.assertEqual(self.model("parts"), self.model("whole"))
        self.assertEqual(self.rows("parts"), self.rows("whole"))
        self.assertEqual([int(r["step"]) for r in self.rows("whole")], list(range(5, STEPS + 1, 5)))
        left = sorted(n for n in os.listdir(os.path.join(self.folder, "parts")) if "checkpoint" in n)
        self.assertEqual(left, sorted(f"checkpoint-{STEPS - i * EVERY}.safetensors" for i in range(4)))

    def interrupt_the_writing(self, out, path, number, *more):
        """The end code, and the rest of what it said, of a run that is told to stop when it writes the model."""
        with subprocess.Popen(self.command(out, *more, recipe_path=path), text=True,
                              stderr=subprocess.PIPE) as process:
            for line in process.stderr:
                if line == "writing the model\n":
                    break
            begin = time.monotonic()
            process.send_signal(number)
            said = process.stderr.read()
            code = process.wait(60)
        self.assertLess(time.monotonic() - begin, 5)
        return code, said

    def test_the_writing_of_the_model_can_be_interrupted(self):
        document = recipe(steps=6, checkpoint_every=5)
        document["model"]["sampler"]["steps_buffer"] = 1000000  # minutes: no interruption comes too late
        path = self.write("endless.json", document)
        for number, more in ((signal.SIGINT, ()), (signal.SIGTERM, ("--export", "last"))):
            code, said = self.interrupt_the_writing("endless", path, number, *more)
            self.assertEqual(code, 3, said)
            self.assertIn("interrupted at step 6 of 6", said)
            self.assertFalse(os.path.exists(os.path.join(self.folder, "endless", "model.safetensors")))
        document["model"]["sampler"]["steps_buffer"] = 1000
        path = self.write("short.json", document)
        whole = self.run_train("whole", recipe_path=path)
        self.assertEqual(whole.returncode, 0, whole.stderr)
        self.assertIn("writing the model\n", whole.stderr)
        code, said = self.interrupt_the_writing("parts", path, signal.SIGINT)
        self.assertIn(code, (0, 3), said)  # 0: it was done before
        self.assertEqual(self.run_train("parts", recipe_path=path).returncode, 0)
        self.assertEqual(self.model("parts"), self.model("whole"))

    def test_the_live_line_fits_the_terminal(self):
        path = self.write("endless.json", recipe(steps=1000000, checkpoint_every=1000))
        master, slave = pty.openpty()
        def resize(columns):
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        def lines(process, enough):
            """Of the terminal, until as many as there shall be have come."""
            text = b""
            while text.count(b"\r\033[Kstep ") < enough:
                self.assertIsNone(process.poll())
                ready = select.select([master], [], [], 30)[0]  # no end of file: slave stays open here
                self.assertTrue(ready, text)
                text += os.read(master, 4096)
            return [part for part in text.decode().split("\r\033[K") if part.startswith("step ")][:-1]
        resize(72)
        with subprocess.Popen(self.command("live", recipe_path=path), stderr=slave) as process:
            try:
                wide = lines(process, 3)
                resize(30)
                lines(process, 2)  # what was on its way
                narrow = lines(process, 2)
            finally:
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(60), 3)
        os.close(slave)
        os.close(master)
        for line in wide:
            self.assertLess(len(line), 72)
            self.assertRegex(line, r"^step \d+/1000000  \d+:\d\d:\d\d left  loss .* accuracy ")
        for line in narrow:
            self.assertLess(len(line), 30)
            self.assertRegex(line, r"^step \d+/1000000")

    def test_every_part_of_a_run_goes_on_as_it_was(self):
        """Few labels in a stream of their own, Gibbs chains in a reservoir, starts from Gaussians, the KL
        term, looks at fresh chains."""
        chains = {"count": 8, "buffer": 40, "steps": 4, "langevin_steps": 2, "labels": "gibbs",
                  "write": "reservoir", "start": "gaussian", "grid": 4, "reinit": 0.1, "flip": 0.5,
                  "births": {"every": 5, "count": 4, "steps": 8}}
        path = self.write("all.json", recipe(
            chains=chains, data={"labels_per_class": 5, "labelled_batch": 6},
            loss={"log_px": 0.5, "kl": {"marginal": 0.3, "neighbour": 0.3, "neighbours": 8}},
            health={"warm_up": 20, "fresh": {"every": 15, "count": 6, "steps": 5, "right": 0}}))
        done = self.run_train("whole", "--threads", "2", recipe_path=path)
        self.assertEqual(done.returncode, 0, done.stderr)
        for i in range(30):
            end = self.interrupt("parts", signal.SIGKILL, 0.1 + 0.03 * (i % 7), "--threads",
                                 str(1 + i % 2), recipe_path=path)
            if end == 0:
                break
        if end != 0:
            self.assertEqual(self.run_train("parts", recipe_path=path).returncode, 0)
        self.assertEqual(self.model("parts"), self.model("whole"))
        self.assertEqual(self.rows("parts"), self.rows("whole"))
        last = self.rows("whole")[-1]
        self.assertNotEqual(float(last["kl"]), 0)
        best = int(last["best_step"])
        self.assertTrue(best >= 20 and best % 15 == 0, best)
        for out in ("whole", "parts"):
            self.assertEqual(self.run_train(out, "--export", "best", recipe_path=path).returncode, 0)
            self.assertEqual(self.run_train(out, "--export", "last", recipe_path=path).returncode, 0)
        self.assertEqual(self.model("parts"), self.model("whole"))
        self.assertEqual(self.model("parts", "model-best"), self.model("whole", "model-best"))
        done = subprocess.run([JEMD, "info", os.path.join(self.folder, "parts", "model-best.safetensors")],
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("gaussian", done.stdout)

    def test_its_model_is_taken_by_the_other_commands(self):
        self.assertEqual(self.run_train("run").returncode, 0)
        path = os.path.join(self.folder, "run", "model.safetensors")
        for words in (["check", path], ["info", path],
                      ["eval", path, "--data", self.folder, "--split", "train", "--fit",
                       os.path.join(self.folder, "fitted.safetensors")]):
            done = subprocess.run([JEMD, *words], capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, done.stderr)
        out = os.path.join(self.folder, "judged.json")
        done = subprocess.run([JEMD, "judge", path, path, "--data", self.folder, "--split", "train",
                               "--pair", "way=down,tone=dark", "--limit", "20", "--json", out],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(out, encoding="utf-8") as stream:
            (split,) = json.load(stream)
        self.assertEqual([s["start"] for s in split["samples"]], ["noise", "buffer"])
        self.assertEqual(split["real"]["pairs"]["way=down,tone=dark"]["n"], 5)
        measured = os.path.join(self.folder, "measured.json")
        done = subprocess.run([JEMD, "eval", path, "--data", self.folder, "--split", "train", "--limit", "20",
                               "--json", measured], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(measured, encoding="utf-8") as stream:
            for attribute in json.load(stream)["attributes"]:
                self.assertAlmostEqual(split["real"]["attributes"][attribute["name"]]["share"],
                                       attribute["accuracy"])
        for start in split["samples"]:
            self.assertEqual(start["right"]["n"], 20)
            pair = start["pairs"]["way=down,tone=dark"]
            self.assertEqual((pair["n"], pair["all"]["n"]), (5, 5))
            self.assertEqual(pair["share"], pair["all"]["share"])  # they are all the labels there are
            self.assertLessEqual(start["right"]["lo"], start["right"]["share"])
            self.assertLessEqual(start["right"]["share"], start["right"]["hi"])

    def test_what_is_wrong_is_said(self):
        bad = self.write("bad.json", recipe(stepz=1))
        other = self.write("other.json", recipe(seed=4))
        self.assertEqual(self.run_train("run").returncode, 0)
        for words, code, text in [
                ((self.command("x", recipe_path=bad)), 1, "stepz"),
                ((self.command("run", recipe_path=other)), 1, "another recipe"),
                ((self.command("x", "--split", "nope")), 1, "nope"),
                ((self.command("x", "--threads", "0")), 2, "not a number"),
                ((self.command("run", "--export", "bets")), 2, "best or last"),
                ((self.command("run", "--export", "best")), 1, "no best checkpoint"),
                ((self.command("mistyped", "--export", "last")), 1, "there is no checkpoint in"),
                ((self.command("mistyped", "--export", "best")), 1, "there is no checkpoint in"),
                ((self.command("x", recipe_path="/nonexistent.json")), 1, "cannot open"),
                ([JEMD, "train"], 2, "usage"),
                ([JEMD, "judge", "a", "b"], 2, "usage"),
                ([JEMD, "judge", "a", "b", "--data", "d", "--split", "s"], 1, "cannot be opened")]:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, code, (words, done.stderr))
            self.assertIn(text, done.stderr)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "mistyped")))

    def test_a_damaged_checkpoint_gives_way_to_an_older_one(self):
        self.assertEqual(self.run_train("run").returncode, 0)
        whole = self.model("run")
        for step in (STEPS, STEPS - EVERY):
            os.truncate(os.path.join(self.folder, "run", f"checkpoint-{step}.safetensors"), 3000)
        done = self.run_train("run", "--export", "last")  # which leaves all as it is
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("the file has", done.stderr)
        self.assertIn(f"goes on from step {STEPS - 2 * EVERY}", done.stderr)
        self.assertNotEqual(self.model("run"), whole)
        done = self.run_train("run")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"goes on from step {STEPS - 2 * EVERY}", done.stderr)
        self.assertEqual(self.model("run"), whole)


if __name__ == "__main__":
    unittest.main()
