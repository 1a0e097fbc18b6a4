#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`jemd predict --tensors` on imported golden networks: the whole offline path, file to file."""
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest

import numpy as np

SHARED = os.environ.get("JEMD_SHARED", "")
SOURCE = os.environ.get("JEMD_SOURCE", "")
JEMD = os.environ.get("JEMD_BIN", "")
DTYPES = {"F32": "<f4", "I64": "<i8", "U8": "u1"}


def read(path):
    with open(path, "rb") as f:
        data = f.read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + o for o in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(
                entry["shape"])
    return tensors


def write(path, tensors):
    header, blobs, at = {}, [], 0
    for name, value in tensors.items():
        raw = np.ascontiguousarray(value, "<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape),
                        "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def relative(got, expected):
    got, expected = got.reshape(-1).astype("f8"), expected.reshape(-1).astype("f8")
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@unittest.skipUnless(os.path.isdir(os.path.join(SHARED, "golden")),
                     "skipped: ../shared/golden is not there")
class GoldenFiles(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def path(self, name):
        return os.path.join(self.dir.name, name)

    def predict(self, golden, model):
        write(self.path("in.safetensors"), {"in.x": golden["in.x"]})
        subprocess.run([JEMD, "predict", "--tensors", self.path("in.safetensors"), "--out",
                        self.path("out.safetensors"), model], check=True)
        return read(self.path("out.safetensors"))

    def converted_sprites(self):
        model = self.path("model.safetensors")
        subprocess.run(["/usr/bin/python3", os.path.join(SOURCE, "clients/python/import_torch.py"),
                        os.path.join(SHARED, "models", "sprites.safetensors"), "-o", model, "--describe",
                        os.path.join(SOURCE, "tests/golden/sprites.describe.json")],
                       check=True, stdout=subprocess.DEVNULL)
        return model

    def imported(self, name, *options):
        model = self.path("model.safetensors")
        subprocess.run(["/usr/bin/python3", os.path.join(SOURCE, "clients/python/import_torch.py"),
                        os.path.join(SHARED, "golden", name), "--prefix", "model.", "-o", model,
                        *options], check=True, stdout=subprocess.DEVNULL)
        return model

    def compare(self, golden, out):
        self.assertLess(relative(out["out.logits"], golden["out.logits"]), 1e-5)
        self.assertLess(relative(out["out.logp_x"], golden["out.logp_x"]), 1e-5)
        self.assertLess(relative(out["out.grad_logp_x"], golden["out.grad_logp_x"]), 1e-4)
        norms = -np.sqrt((golden["out.grad_logp_x"].astype("f8") ** 2).sum(axis=(1, 2, 3)))
        self.assertLess(relative(out["out.approx_mass"], norms), 1e-4)

    def test_jem_wide_resnet(self):
        golden = read(os.path.join(SHARED, "golden", "jem_wrn10_2.safetensors"))
        out = self.predict(golden, self.imported("jem_wrn10_2.safetensors"))
        self.compare(golden, out)
        self.assertLess(relative(out["out.approx_mass"], golden["out.approx_mass"]), 1e-4)
        logits = golden["out.logits"].astype("f8")
        softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        self.assertLess(relative(out["out.prob"], softmax), 1e-5)

    def gibbs(self, name):
        golden = read(os.path.join(SHARED, "golden", name))
        out = self.predict(golden, self.imported(name))
        self.compare(golden, out)
        prob1 = out["out.prob"].reshape(golden["out.logits"].shape)[:, :, 1]
        self.assertLess(relative(prob1, golden["out.prob1"]), 1e-5)

    def test_gibbs_jem_32(self):
        self.gibbs("gibbs_jem_32_nf8_k5.safetensors")

    def test_gibbs_jem_64(self):
        self.gibbs("gibbs_jem_64_nf8_k7.safetensors")

    def test_sprites_on_four_real_images(self):
        golden = read(os.path.join(SHARED, "golden", "sprites_test4.safetensors"))
        out = self.predict(golden, self.converted_sprites())
        self.compare(golden, out)
        self.assertLess(relative(out["out.prob"], golden["out.prob"]), 1e-5)
        self.assertLess(relative(out["out.approx_mass"], golden["out.approx_mass"]), 1e-4)


if __name__ == "__main__":
    if not JEMD:
        sys.exit("JEMD_BIN is not set")
    unittest.main()
