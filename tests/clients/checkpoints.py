# SPDX-License-Identifier: Apache-2.0
"""Checkpoints made by hand for the importer's tests: pickles opcode by opcode, both of torch.save's
containers, safetensors, small state dicts; and the layer list evaluated in numpy."""
import io
import json
import os
import struct
import sys
import tempfile
import unittest
import zipfile
from contextlib import redirect_stderr, redirect_stdout

import numpy as np

SOURCE = os.environ.get("JEMD_SOURCE") or os.path.abspath(
    os.path.join(os.path.dirname(__file__), "..", ".."))
SHARED = os.environ.get("JEMD_SHARED") or os.path.join(SOURCE, "..", "shared")
PROGRAM = os.path.join(SOURCE, "clients", "python", "import_torch.py")
sys.path.insert(0, os.path.dirname(PROGRAM))

import import_torch  # noqa: E402
from jemd_import import containers  # noqa: E402


# Pickles and containers by hand

class Name:
    """A global."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """REDUCE, and BUILD if there is a state."""

    def __init__(self, function, arguments=(), state=None):
        self.function, self.arguments, self.state = function, arguments, state


class Persistent:
    def __init__(self, identifier):
        self.identifier = identifier


def p(value):
    """The opcodes that push a value."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, int):
        raw = value.to_bytes(16, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(value, tuple):
        return b"(" + b"".join(map(p, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(p, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(p(k) + p(v) for k, v in value.items()) + b"u"
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        code = p(value.function) + p(value.arguments) + b"R"
        return code if value.state is None else code + p(value.state) + b"b"
    if isinstance(value, Persistent):
        return p(value.identifier) + b"Q"
    raise TypeError(type(value))


def dump(value):
    return b"\x80\x02" + p(value) + b"."


STORAGE = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage",
           "int64": "LongStorage", "uint8": "ByteStorage", "uint16": "BFloat16Storage"}


class Writer:
    """Collects storages while an object with tensors is put together."""

    def __init__(self, byte_order="<"):
        self.storages, self.order = {}, byte_order

    def storage(self, array, claimed=None, key=None):
        key = key or str(len(self.storages))
        self.storages[key] = np.ascontiguousarray(array).astype(
            array.dtype.newbyteorder(self.order)).tobytes()
        kind = Name("torch", STORAGE[str(array.dtype)])
        return Persistent(("storage", kind, key, "cpu", array.size if claimed is None else claimed))

    def view(self, storage, offset, shape, strides):
        hooks = Call(Name("collections", "OrderedDict"))
        return Call(Name("torch._utils", "_rebuild_tensor_v2"),
                    (storage, offset, tuple(shape), tuple(strides), False, hooks))

    def tensor(self, array):
        array = np.ascontiguousarray(array)
        strides = tuple(s // array.itemsize for s in array.strides)
        return self.view(self.storage(array), 0, array.shape, strides)

    def state(self, arrays):
        pairs = [(name, self.tensor(a)) for name, a in arrays.items()]
        return Call(Name("collections", "OrderedDict"), (pairs,), {"_metadata": {}})

    def zip(self, value, pickled=None):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", pickled or dump(value))
            archive.writestr("archive/byteorder", "little" if self.order == "<" else "big")
            for key, raw in self.storages.items():
                archive.writestr(f"archive/data/{key}", raw)
        return stream.getvalue()

    def legacy(self, value, item_bytes=4):
        system = {"protocol_version": 1001, "little_endian": self.order == "<", "type_sizes": {}}
        out = dump(containers.MAGIC) + dump(1001) + dump(system) + dump(value)
        out += dump(list(self.storages))
        for raw in self.storages.values():
            out += struct.pack(self.order + "q", len(raw) // item_bytes) + raw
        return out


def safetensors(arrays, metadata=None, dtype="F32"):
    header, data = {"__metadata__": metadata or {}}, b""
    for name, a in arrays.items():
        header[name] = {"dtype": {"uint8": "U8"}.get(str(a.dtype), dtype), "shape": list(a.shape),
                        "data_offsets": [len(data), len(data) + a.nbytes]}
        data += a.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_model(path):
    """(description, name -> array, names in file order)."""
    with open(path, "rb") as stream:
        data = stream.read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, e in header.items():
        raw = data[8 + length + e["data_offsets"][0]:8 + length + e["data_offsets"][1]]
        kind = {"F32": "<f4", "U8": "u1", "I64": "<i8"}[e["dtype"]]
        arrays[name] = np.frombuffer(raw, kind).reshape(e["shape"])
    return json.loads(metadata["jemd"]) if "jemd" in metadata else metadata, arrays, length + 8


# The layer list in numpy, written from the format's definition

def convolve(x, weight, bias, stride, pad):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    out = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3)))
    return out.transpose(0, 3, 1, 2) + bias[:, None, None]


def pool(x, k):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // k, k, w // k, k).sum(axis=(3, 5))


def evaluate(description, arrays, x):
    x = np.asarray(x, np.float64)
    outputs = {"input": x}
    for layer in description["layers"]:
        x = outputs[layer["from"]] if "from" in layer else x
        kind = layer["kind"]
        if kind in ("conv", "linear"):
            weight = arrays[layer["weights"] + ".weight"].astype(np.float64)
            bias = arrays[layer["weights"] + ".bias"].astype(np.float64)
        if kind == "conv":
            x = convolve(x, weight, bias, layer["stride"], layer["pad"])
        elif kind == "linear":
            x = x @ weight.T + bias
        elif kind == "silu":
            x = x / (1 + np.exp(-x))
        elif kind == "lrelu":
            x = np.where(x > 0, x, layer["slope"] * x)
        elif kind == "add":
            x = x + outputs[layer["with"]]
        elif kind == "avgpool":
            x = pool(x, layer["kernel"]) / layer["kernel"] ** 2
        elif kind == "flatten":
            x = x.reshape(len(x), -1)
        else:
            raise AssertionError(kind)
        if "id" in layer:
            outputs[layer["id"]] = x
    return x


def relative(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# State dicts

def uniform(rng, shape, fan):
    return rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(fan ** 0.5)


def add(arrays, rng, name, shape):
    fan = int(np.prod(shape[1:]))
    arrays[name + ".weight"] = uniform(rng, shape, fan)
    arrays[name + ".bias"] = uniform(rng, shape[:1], fan)


def gibbs_arrays(n_f=4, logits=6, size=32, hidden=8, seed=1):
    rng, arrays = np.random.default_rng(seed), {}
    channels = [3, n_f, 2 * n_f, 4 * n_f, 8 * n_f] + ([8 * n_f] if size == 64 else [])
    for i in range(len(channels) - 1):
        k = 3 if i == 0 else 4
        add(arrays, rng, f"cnn.{2 * i}", (channels[i + 1], channels[i], k, k))
    add(arrays, rng, f"cnn.{2 * len(channels) - 2}", (n_f, 8 * n_f, 1, 1))
    add(arrays, rng, "mlp.0", (hidden, 16 * n_f))
    add(arrays, rng, "mlp.2", (hidden, hidden))
    add(arrays, rng, "mlp.4", (logits, hidden))
    return arrays


def jem_shapes(depth, width, classes=10):
    """name -> shape of everything JEM's F(depth, width) stores, in its order."""
    shapes = {"f.conv1": (16, 3, 3, 3)}
    inputs = 16
    for group in (1, 2, 3):
        outputs = 16 * width * 2 ** (group - 1)
        for i in range((depth - 4) // 6):
            name = f"f.layer{group}.{i}"
            shapes[name + ".conv1"] = (outputs, inputs, 3, 3)
            shapes[name + ".conv2"] = (outputs, outputs, 3, 3)
            if inputs != outputs or (i == 0 and group > 1):
                shapes[name + ".shortcut.0"] = (outputs, inputs, 1, 1)
            inputs = outputs
    shapes["f.linear"] = (10, inputs)
    shapes["energy_output"] = (1, inputs)
    shapes["class_output"] = (classes, inputs)
    return shapes


def jem_arrays(depth=10, width=1, classes=10, seed=1):
    rng, arrays = np.random.default_rng(seed), {}
    for name, shape in jem_shapes(depth, width, classes).items():
        add(arrays, rng, name, shape)
    return arrays


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.output = os.path.join(self.folder, "out.safetensors")

    def put(self, data, name="ckpt.pt"):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as stream:
            stream.write(data)
        return path

    def run_main(self, *arguments):
        """(exit code, stdout, stderr) of the program, inside this process."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = import_torch.main([*arguments])
            except SystemExit as end:
                code = end.code
        return code, out.getvalue(), err.getvalue()

    def convert(self, data, *arguments, describe=None):
        """Converts bytes; (description, arrays, what was printed)."""
        extra = ()
        if describe is not None:
            extra = ("--describe", self.put(json.dumps(describe).encode(), "d.json"))
        code, out, err = self.run_main(self.put(data), "-o", self.output, *arguments, *extra)
        self.assertEqual((code, err), (0, ""))
        description, arrays, _ = read_model(self.output)
        return description, arrays, out

    def refuse(self, code, message, data, *arguments, describe=None):
        if os.path.exists(self.output):
            os.unlink(self.output)
        extra = ()
        if describe is not None:
            extra = ("--describe", self.put(json.dumps(describe).encode(), "d.json"))
        found, out, err = self.run_main(self.put(data), "-o", self.output, *arguments, *extra)
        self.assertEqual(found, code, err)
        self.assertIn(message, err)
        self.assertEqual(out, "")
        self.assertNotIn("Traceback", err)
        self.assertFalse(os.path.exists(self.output))
        left = [f for f in os.listdir(self.folder) if f.startswith(".import-")]
        self.assertEqual(left, [])

    def assert_same(self, arrays, wanted):
        for name, value in wanted.items():
            np.testing.assert_array_equal(arrays[name], value, err_msg=name)
