#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`jemd train` and `jemd judge` over data of every format, as docs/datasets.md has it: the same images give
the same weights whatever files they come in, a killed run comes to the same bytes, data larger than
memory stay outside, and what is wrong is named."""
import json
import os
import signal
import struct
import subprocess
import time
import unittest
import zlib

import test_train
from test_train import JEMD

ROWS, SIDE = 64, 8
WAYS, TONES = ["across", "down"], ["dark", "bright"]


def png(width, height, pixels, channels=1):
    def chunk(kind, body):
        return (struct.pack(">I", len(body)) + kind + body +
                struct.pack(">I", zlib.crc32(kind + body)))
    line = width * channels
    lines = b"".join(b"\0" + bytes(pixels[y * line:(y + 1) * line]) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 1)) +
            chunk(b"IEND", b""))


def stripes(i, side=SIDE):
    """Image i of test_train.stripes."""
    down, bright = i % 2, i // 2 % 2
    return [(170 if ((x if down else y) + i // 4 % 4) // 2 % 2 else 20) + 50 * bright +
            (x * 7 + y * 13 + i) % 16 for y in range(side) for x in range(side)]


def one_attribute(**training):
    """The recipe of test_train with the attribute `way` alone."""
    made = test_train.recipe(**training)
    made["model"]["attributes"] = made["model"]["attributes"][:1]
    made["model"]["layers"][-1]["out"] = 2
    return made


class Case(unittest.TestCase):
    setUp = test_train.Train.setUp
    write = test_train.Train.write
    model = test_train.Train.model
    rows = test_train.Train.rows

    def put(self, name, body):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(body if isinstance(body, bytes) else body.encode())
        return path

    def command(self, data, out, *more, recipe=None):
        return [JEMD, "train", recipe or self.recipe, "--data", os.path.join(self.folder, data),
                "--out", os.path.join(self.folder, out), "--log-every", "5", *more]

    def run_train(self, data, out, *more, code=0, **keywords):
        done = subprocess.run(self.command(data, out, *more, **keywords), stderr=subprocess.PIPE,
                              text=True, timeout=300)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stderr

    def tensors(self, out):
        """The bytes of a model file's tensors, without the header that says where data are from."""
        body = self.model(out)
        return body[8 + int.from_bytes(body[:8], "little"):]

    def origin(self, out):
        """What a model file says of its making."""
        body = self.model(out)
        header = json.loads(body[8:8 + int.from_bytes(body[:8], "little")])
        return json.loads(header["__metadata__"]["jemd"])["provenance"]

    def put_csv(self, data):
        lines = ["file,tone,way"]
        for i in range(ROWS):
            self.put(f"{data}/images/{i}.png", png(SIDE, SIDE, stripes(i)))
            lines.append(f"{i}.png,{TONES[i // 2 % 2]},{i % 2}")
        self.put(f"{data}/train.csv", "\n".join(lines) + "\n")

    def put_classes(self, data):
        for i in range(ROWS):
            self.put(f"{data}/train/{WAYS[i % 2]}/{i:03}.png", png(SIDE, SIDE, stripes(i)))


class Evaluation(Case):
    def figures(self, data, *more):
        """The report without what says where it comes from."""
        out = os.path.join(self.folder, "report.json")
        subprocess.run([JEMD, "eval", os.path.join(self.folder, "a", "model.safetensors"), "--data",
                        os.path.join(self.folder, data), "--split", "train", "--resamples", "20",
                        "--json", out, *more], check=True, timeout=300,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with open(out, encoding="utf-8") as stream:
            report = json.load(stream)
        origin = [report.pop(name) for name in ("command", "data", "data_sha256")]
        return report, origin

    def test_the_same_images_give_the_same_figures_from_any_file(self):
        self.put_csv("csv")
        self.run_train(".", "a")
        idx, from_idx = self.figures(".")
        csv, from_csv = self.figures("csv")
        self.assertEqual(len(idx["attributes"]), 2)
        self.assertEqual(idx, csv)
        self.assertNotEqual(from_idx[2], from_csv[2])
        self.put("csv/images/0.png", png(SIDE, SIDE, stripes(1)))
        self.assertNotEqual(self.figures("csv")[0], csv)

    def test_images_of_another_size_are_measured_as_the_option_says(self):
        self.run_train(".", "a")
        lines = ["file,way,tone"]
        for i in range(16):
            self.put(f"big/images/{i}.png", png(20, 20, stripes(i, 20)))
            lines.append(f"{i}.png,{i % 2},{i // 2 % 2}")
        self.put("big/train.csv", "\n".join(lines) + "\n")
        with self.assertRaises(subprocess.CalledProcessError):
            self.figures("big")
        self.assertEqual(self.figures("big", "--resize", "fit")[0]["preprocessing"], "fit")


class Formats(Case):
    def test_the_same_images_give_the_same_weights_from_any_file(self):
        self.put_csv("csv")
        self.run_train(".", "a")
        self.run_train("csv", "b")
        self.assertEqual(self.tensors("a"), self.tensors("b"))
        self.assertNotEqual(self.model("a"), self.model("b"))  # but for what they are from
        images = b"".join(bytes(stripes(i)) for i in range(ROWS))
        labels = b"".join(bytes([i % 2, i // 2 % 2]) for i in range(ROWS))
        self.put("plain/train-images.idx3-ubyte", b"\0\0\x08\3" + struct.pack(">3I", ROWS, 8, 8) + images)
        self.put("plain/train-attr-cat.idx2-ubyte", b"\0\0\x08\2" + struct.pack(">2I", ROWS, 2) + labels)
        self.run_train("plain", "c")
        self.assertEqual(self.tensors("a"), self.tensors("c"))

    def test_cifar_files_train_a_model_of_their_size(self):
        made = one_attribute(steps=3, batch=2)
        made["model"]["input"] |= {"channels": 3, "height": 32, "width": 32}
        made["model"]["layers"] = [{"kind": "flatten"},
                                   {"kind": "linear", "weights": "a", "in": 3072, "out": 10}]
        made["model"]["attributes"][0]["values"] = [f"v{i}" for i in range(10)]
        recipe = self.write("cifar.json", made)
        row = bytes(range(256)) * 12
        self.put("cifar/data_batch_1.bin", b"".join(bytes([i % 10]) + row for i in range(20)))
        self.run_train("cifar", "run", "--split-calib", "0.5", recipe=recipe)
        fitted = os.path.join(self.folder, "fitted.safetensors")
        said = subprocess.run([JEMD, "eval", os.path.join(self.folder, "run", "model.safetensors"), "--data",
                               os.path.join(self.folder, "cifar"), "--split", "calib", "--split-calib", "0.5",
                               "--fit", fitted, "--transformed", "0", "--resamples", "0"], text=True,
                              capture_output=True, check=True, timeout=120).stdout
        self.assertIn("cifar, split calib, ", said)
        self.assertTrue(os.path.exists(fitted))
        self.put("cifar/data_batch_1.bin", b"\0" + row + b"\0" + row[:-1])
        self.assertIn("data_batch_1.bin: is cut off in row 1",
                      self.run_train("cifar", "other", recipe=recipe, code=1))

    def test_images_of_another_size_are_resized_unless_that_is_ruled_out(self):
        recipe = self.write("one.json", one_attribute(steps=2, batch=2))
        for i in range(8):
            pixels = [v for v in stripes(i, 20) for _ in range(3)]
            self.put(f"big/train/{WAYS[i % 2]}/{i}.png", png(20, 20, pixels, 3))
        self.run_train("big", "run", recipe=recipe)
        error = self.run_train("big", "other", "--resize", "reject", recipe=recipe, code=1)
        self.assertIn("20x20", error)
        self.assertRegex(error, r"big/train/\w+/\d.png: ")
        made = test_train.recipe(steps=2)
        made["model"]["input"] |= {"height": 10, "width": 10}
        made["model"]["layers"][-1]["in"] = 800
        recipe = self.write("ten.json", made)
        self.assertIn("of 8 x 8 pixels are resized to 10 x 10 (center_crop)",
                      self.run_train(".", "ten", "--resize", "center_crop", recipe=recipe))
        self.assertIn("ruled out", self.run_train(".", "not", "--resize", "reject", recipe=recipe, code=1))
        self.assertIn("--resize", self.run_train(".", "not", "--resize", "zoom", code=2))

    def test_a_part_of_train_is_calib_where_that_is_asked_for(self):
        recipe = self.write("one.json", one_attribute(steps=2))
        self.put_classes("classes")
        counts = []
        for split in ("train", "calib"):
            text = self.run_train("classes", split, "--split", split, "--split-calib", "0.25", recipe=recipe)
            counts.append(int(text.split(" images")[0].split()[-1]))
        self.assertEqual(sum(counts), ROWS)
        self.assertTrue(8 <= counts[1] <= 26, counts)
        out = os.path.join(self.folder, "report.json")
        subprocess.run([JEMD, "eval", os.path.join(self.folder, "train", "model.safetensors"), "--data",
                        os.path.join(self.folder, "classes"), "--split", "calib", "--split-calib", "0.25",
                        "--report", "train", "--resize", "fit", "--resamples", "0", "--json", out,
                        "--transformed", "0"], check=True, timeout=120, stderr=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)
        with open(out, encoding="utf-8") as stream:
            report = json.load(stream)
        self.assertEqual([report["reports"][0]["n"], report["n"]], counts)
        for split, measured in (("train", report["reports"][0]), ("calib", report)):
            self.assertEqual(self.origin(split)["data_sha256"], measured["data_sha256"])
            self.assertEqual((self.origin(split)["split_calib"], measured["split_calib"]), (0.25, 0.25))
        self.run_train("classes", "cut", "--split-calib", "0.25", "--resize", "center_crop", recipe=recipe)
        for run, share, said in (("train", "0.25", ""), ("train", "0.2", ""),
                                 ("train", "0.3", "its training kept out 0.25"),
                                 ("cut", "0.3", "its training kept out 0.25")):
            found = subprocess.run([JEMD, "eval", os.path.join(self.folder, run, "model.safetensors"),
                                    "--data", os.path.join(self.folder, "classes"), "--split", "calib",
                                    "--split-calib", share, "--fit", os.path.join(self.folder, "fitted"),
                                    "--transformed", "0", "--resamples", "0"], capture_output=True,
                                   text=True, timeout=120, check=False)
            self.assertEqual(found.returncode, 1 if said else 0, found.stderr)
            self.assertIn(said, found.stderr)
        self.assertIn("calib", self.run_train("classes", "no", "--split", "calib", recipe=recipe, code=1))
        self.assertIn("share", self.run_train("classes", "no", "--split-calib", "1", recipe=recipe, code=2))

    def test_what_is_wrong_is_named(self):
        recipe = self.write("one.json", one_attribute(steps=2))
        self.put_classes("classes")
        self.assertIn("neither IDX files", self.run_train("classes", "x", "--split", "nope",
                                                          recipe=recipe, code=1))
        self.put("classes/train/dwon/1.png", b"")
        self.assertIn('the nearest is "down"', self.run_train("classes", "x", recipe=recipe, code=1))
        self.put_csv("csv")
        self.put("csv/train.csv", "file,way,tone\n1.png,down,dark\n2.png,upp,dark\n")
        self.assertIn("train.csv:3: ", self.run_train("csv", "x", code=1))
        self.put("csv/train.csv", "file,way\n" + "".join(f"{i}.png,down\n" for i in range(ROWS)))
        self.assertIn("tone", self.run_train("csv", "noted", "--split", "train"))
        with open(os.path.join(self.folder, "noted", "log.txt"), encoding="utf-8") as log:
            self.assertIn("1 of 2 attributes have no column", log.read())

    def test_a_broken_image_stops_a_run_before_it_begins(self):
        recipe = self.write("one.json", one_attribute(steps=2))
        self.put_classes("classes")
        self.put_csv("csv")
        for data, name, said in (("classes", "train/down/007.png", "classes/train/down/007.png: "),
                                 ("csv", "images/40.png", "csv/train.csv:42: images/40.png: ")):
            good = png(SIDE, SIDE, stripes(3))
            self.put(f"{data}/{name}", good[:-20])
            out = os.path.join(self.folder, "run-" + data)
            self.assertIn(said, self.run_train(data, out, recipe=recipe, code=1))
            self.assertFalse(os.path.exists(out))
            self.put(f"{data}/{name}", good)
            self.run_train(data, out, recipe=recipe)

    def test_a_model_is_judged_on_images_by_class(self):
        recipe = self.write("one.json", one_attribute(steps=20))
        self.put_classes("classes")
        self.run_train("classes", "run", recipe=recipe)
        path = os.path.join(self.folder, "run", "model.safetensors")
        done = subprocess.run([JEMD, "judge", path, path, "--data", os.path.join(self.folder, "classes"),
                               "--split", "train", "--limit", "8", "--steps", "2"],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("labels right", done.stdout)


class Resume(Case):
    def test_a_killed_run_over_image_files_comes_to_the_same_bytes(self):
        self.put_csv("csv")
        self.run_train("csv", "whole", "--threads", "2")
        ends = []
        for i in range(60):
            with subprocess.Popen(self.command("csv", "parts", "--threads", str(1 + i % 2)),
                                  stderr=subprocess.DEVNULL) as process:
                time.sleep(0.05 + 0.02 * (i % 7))
                process.send_signal(signal.SIGKILL if i % 3 else signal.SIGTERM)
                ends.append(process.wait(60))
            if ends[-1] == 0:
                break
        self.assertTrue({-signal.SIGKILL, 3} & set(ends), ends)
        if ends[-1] != 0:
            self.run_train("csv", "parts")
        self.assertEqual(self.model("parts"), self.model("whole"))
        self.assertEqual(self.rows("parts"), self.rows("whole"))

    def test_a_file_that_breaks_stops_a_run_which_goes_on_when_it_is_mended(self):
        self.put_csv("csv")
        self.recipe = self.write("long.json", test_train.recipe(steps=1000, checkpoint_every=100))
        self.run_train("csv", "whole")
        path = os.path.join(self.folder, "csv/images/5.png")
        with open(path, "rb") as stream:
            body = stream.read()
        with subprocess.Popen(self.command("csv", "parts"), stderr=subprocess.PIPE,
                              text=True) as process:
            log = os.path.join(self.folder, "parts", "metrics.csv")
            end = time.monotonic() + 60
            while not (os.path.exists(log) and os.path.getsize(log) > 0) and time.monotonic() < end:
                time.sleep(0.001)
            with open(path, "r+b") as stream:
                stream.truncate(40)
            error = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 1, error)
        self.assertIn("csv/train.csv:7: images/5.png: ", error)
        # With other bytes it is another data set.
        self.assertIn("other data", self.run_train("csv", "parts", code=1))
        with open(path, "wb") as stream:
            stream.write(body)
        self.run_train("csv", "parts")
        self.assertEqual(self.model("parts"), self.model("whole"))


class Memory(Case):
    def resident(self, command):
        """The most memory a command held, in bytes."""
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            error = process.stderr.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0, error)
        return usage.ru_maxrss * 1024

    def test_plain_idx_images_stay_on_the_disk(self):
        rows, size = 400000, 1 << 20
        self.put("large/train-images.idx4-ubyte", b"\0\0\x08\4" + struct.pack(">4I", rows, 32, 32, 1))
        path = os.path.join(self.folder, "large/train-images.idx4-ubyte")
        os.truncate(path, 20 + rows * 1024)  # a hole: no disk is taken
        self.put("large/train-labels.idx1-ubyte", b"\0\0\x08\1" + struct.pack(">I", rows) + bytes(rows))
        made = one_attribute(steps=30)
        made["model"]["input"] |= {"height": 32, "width": 32}
        made["model"]["layers"] = [{"kind": "flatten"},
                                   {"kind": "linear", "weights": "a", "in": 1024, "out": 2}]
        recipe = self.write("large.json", made)
        held = self.resident(self.command("large", "run", recipe=recipe))
        self.assertLess(held, rows * 1024 // 3, f"{held // size} MiB")

    def test_image_files_are_decoded_one_by_one(self):
        # 1,500 pictures of 400 x 400, hard links of twenty files: 700 MB decoded.
        files = [self.put(f"large/{i}.png", png(400, 400, stripes(i, 400) * 3, 3)) for i in range(20)]
        for i in range(1500):
            name = f"large/train/{WAYS[i % 2]}/{i}.png"
            os.makedirs(os.path.dirname(os.path.join(self.folder, name)), exist_ok=True)
            os.link(files[i % 20], os.path.join(self.folder, name))
        recipe = self.write("one.json", one_attribute(steps=30))
        held = self.resident(self.command("large", "run", recipe=recipe))
        self.assertLess(held, 1500 * 480000 // 4, f"{held >> 20} MiB")


if __name__ == "__main__":
    unittest.main()
