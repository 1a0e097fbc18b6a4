# SPDX-License-Identifier: Apache-2.0
"""A jemd model file as an ONNX model, written by hand: the protobuf of onnx.proto has few parts,
and Debian has no `onnx` package.

Only what the layers of a model file need: one float input "x" [batch, C, H, W] and one output
"logits" [batch, L]; the batch is free.
"""
import json
import struct
from collections.abc import Iterable

import numpy as np

FLOAT, INT64 = 1, 7  # TensorProto.DataType
OPSET, IR_VERSION = 13, 8
A_FLOAT, A_INT, A_INTS = 1, 2, 7  # AttributeProto.AttributeType


def read_model(path: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(description, float32 tensors by name) of a model file."""
    with open(path, "rb") as stream:
        size = struct.unpack("<Q", stream.read(8))[0]
        header, data = json.loads(stream.read(size)), stream.read()
    described = json.loads(header.pop("__metadata__")["jemd"])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "F32":
            tensors[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
    return described, tensors


# Protobuf's wire format. A message is a bytes object; repeated fields are written one by one.

def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def single(field: int, value: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", value)


def blob(field: int, value: bytes | str) -> bytes:
    """A message, bytes or text."""
    raw = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(raw)) + raw


# The messages of onnx.proto; numbers of fields are its own.

def tensor(name: str, array: np.ndarray) -> bytes:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9."""
    kind, dtype = (FLOAT, "<f4") if array.dtype.kind == "f" else (INT64, "<i8")
    return (b"".join(number(1, n) for n in array.shape) + number(2, kind) + blob(8, name)
            + blob(9, array.astype(dtype).tobytes()))


def attribute(name: str, value: int | float | list[int]) -> bytes:
    """AttributeProto: name 1, f 2, i 3, ints 8, type 20."""
    if isinstance(value, float):
        return blob(1, name) + single(2, value) + number(20, A_FLOAT)
    if isinstance(value, int):
        return blob(1, name) + number(3, value) + number(20, A_INT)
    return blob(1, name) + b"".join(number(8, v) for v in value) + number(20, A_INTS)


def node(kind: str, inputs: Iterable[str], output: str, **attributes) -> bytes:
    """NodeProto: input 1, output 2, name 3, op_type 4, attribute 5."""
    return (b"".join(blob(1, name) for name in inputs) + blob(2, output) + blob(3, output)
            + blob(4, kind)
            + b"".join(blob(5, attribute(name, v)) for name, v in attributes.items()))


def value_info(name: str, shape: Iterable[int | str]) -> bytes:
    """ValueInfoProto: name 1, type 2 {tensor_type 1 {elem_type 1, shape 2 {dim 1}}}."""
    dims = b"".join(blob(1, blob(2, n) if isinstance(n, str) else number(1, n)) for n in shape)
    return blob(1, name) + blob(2, blob(1, number(1, FLOAT) + blob(2, dims)))


def layer_nodes(layer: dict, sources: list[str], output: str) -> list[bytes]:
    """The nodes of one layer of the model file."""
    kind = layer["kind"]
    if kind in ("conv", "linear"):
        inputs = sources + [layer["weights"] + ".weight", layer["weights"] + ".bias"]
        if kind == "linear":
            return [node("Gemm", inputs, output, transB=1)]
        k = layer["kernel"] if isinstance(layer["kernel"], list) else [layer["kernel"]] * 2
        return [node("Conv", inputs, output, kernel_shape=k, strides=[layer.get("stride", 1)] * 2,
                     pads=[layer.get("pad", 0)] * 4)]
    if kind == "silu":
        gate = output + ".gate"
        return [node("Sigmoid", sources, gate), node("Mul", [*sources, gate], output)]
    if kind == "lrelu":
        return [node("LeakyRelu", sources, output, alpha=float(layer.get("slope", 0.01)))]
    if kind == "square":
        return [node("Mul", sources * 2, output)]
    if kind in ("avgpool", "sumpool"):
        k, mean, count = layer["kernel"], output + ".mean", output + ".count"
        pool = {"kernel_shape": [k, k], "strides": [k, k]}
        if kind == "avgpool":
            return [node("AveragePool", sources, output, **pool)]
        return [node("AveragePool", sources, mean, **pool),
                node("Constant", (), count, value_float=float(k * k)),
                node("Mul", (mean, count), output)]
    if kind not in ("relu", "add", "flatten"):
        raise ValueError(f"no ONNX operator for a layer of kind {kind}")
    return [node({"relu": "Relu", "add": "Add", "flatten": "Flatten"}[kind], sources, output)]


def onnx_model(described: dict, tensors: dict[str, np.ndarray]) -> bytes:
    """ModelProto: ir_version 1, producer_name 2, graph 7, opset_import 8 {version 2};
    GraphProto: node 1, name 2, initializer 5, input 11, output 12."""
    nodes, names, previous, last = [], {"input": "x"}, "x", len(described["layers"]) - 1
    used = []
    for i, layer in enumerate(described["layers"]):
        sources = [names[layer["from"]] if "from" in layer else previous]
        if "with" in layer:
            sources.append(names[layer["with"]])
        previous = "logits" if i == last else f"layer{i}"
        nodes += layer_nodes(layer, sources, previous)
        if "id" in layer:
            names[layer["id"]] = previous
        if "weights" in layer:
            used += [layer["weights"] + ".weight", layer["weights"] + ".bias"]
    size = described["input"]
    outputs = len(tensors[used[-1]])
    graph = (b"".join(blob(1, n) for n in nodes) + blob(2, described["name"])
             + b"".join(blob(5, tensor(n, tensors[n])) for n in dict.fromkeys(used))
             + blob(11, value_info("x", ("batch", size["channels"], size["height"],
                                         size["width"])))
             + blob(12, value_info("logits", ("batch", outputs))))
    return (number(1, IR_VERSION) + blob(2, "jemd") + blob(7, graph)
            + blob(8, blob(1, "") + number(2, OPSET)))
