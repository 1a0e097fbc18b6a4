#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A jemd model in PyTorch, as a child of peers.py: commands on standard input, one JSON line each.

Weights are frozen: a Langevin step differentiates with respect to the image alone. Modes: `nchw`
and `channels_last` are eager PyTorch, `jit` is torch.jit.optimize_for_inference (forward passes
only), which folds activations into convolutions and packs weights.
"""
import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

import onnx_file

MODES = ("nchw", "channels_last", "jit")


class Net(torch.nn.Module):
    """The layer list of a model file."""

    def __init__(self, described: dict, tensors: dict[str, np.ndarray]):
        super().__init__()
        self.layers, self.modules_of = described["layers"], torch.nn.ModuleDict()
        for layer in self.layers:
            if layer["kind"] == "conv":
                module = torch.nn.Conv2d(layer["in"], layer["out"], layer["kernel"],
                                         layer.get("stride", 1), layer.get("pad", 0))
            elif layer["kind"] == "linear":
                module = torch.nn.Linear(layer["in"], layer["out"])
            else:
                continue
            name = layer["weights"]
            module.weight.data = torch.from_numpy(tensors[name + ".weight"].copy())
            module.bias.data = torch.from_numpy(tensors[name + ".bias"].copy())
            self.modules_of[name.replace(".", "_")] = module
        self.requires_grad_(False)

    def apply_layer(self, layer: dict, x: torch.Tensor, outputs: dict) -> torch.Tensor:
        kind = layer["kind"]
        if kind in ("conv", "linear"):
            return self.modules_of[layer["weights"].replace(".", "_")](x)
        if kind == "lrelu":
            return F.leaky_relu(x, layer.get("slope", 0.01))
        if kind == "add":
            return x + outputs[layer["with"]]
        if kind == "avgpool":
            return F.avg_pool2d(x, layer["kernel"])
        if kind == "sumpool":
            return F.avg_pool2d(x, layer["kernel"], divisor_override=1)
        return {"silu": F.silu, "relu": F.relu, "square": torch.square,
                "flatten": lambda v: v.flatten(1)}[kind](x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = {"input": x}
        for layer in self.layers:
            x = self.apply_layer(layer, outputs[layer["from"]] if "from" in layer else x, outputs)
            if "id" in layer:
                outputs[layer["id"]] = x
        return x


class Engine:
    """One model in one mode."""

    def __init__(self, path: str, mode: str):
        self.described, tensors = onnx_file.read_model(path)
        self.net, self.mode = Net(self.described, tensors).eval(), mode
        self.layout = torch.contiguous_format
        size = self.described["input"]
        self.shape, self.range = (size["channels"], size["height"], size["width"]), size["range"]
        if mode == "channels_last":
            self.layout = torch.channels_last
            self.net = self.net.to(memory_format=self.layout)
        if mode == "jit":
            with torch.no_grad():
                self.net = torch.jit.optimize_for_inference(
                    torch.jit.trace(self.net, self.images(4)))

    def images(self, n: int) -> torch.Tensor:
        low, high = self.range
        x = torch.rand(n, *self.shape) * (high - low) + low
        return x.contiguous(memory_format=self.layout)

    def log_px(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) + log Z of every image."""
        logits = self.net(x)
        if self.described["energy"]["kind"] == "head":
            return logits[:, -1]
        sizes = [len(a["values"]) for a in self.described["attributes"]]
        return sum(part.logsumexp(1) for part in logits.split(sizes, 1))

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(self.log_px(x).sum(), x)[0]

    def step(self, x: torch.Tensor) -> None:
        """One Langevin step of every chain with the model's own sampler, in place."""
        s = self.described["sampler"]
        g = self.gradient(x)
        if s["step_rule"] == "normalised":
            a = (s["step_norm"] / g.abs().mean((1, 2, 3), keepdim=True)).clamp_(max=s["step_size"])
            x.addcmul_(a, g)
        else:
            x.add_(g, alpha=s["step_size"])
        x.add_(torch.randn_like(x), alpha=s["noise"])
        if s["clamp"]:
            x.clamp_(*s["clamp"])


def measure(call: Callable, seconds: float) -> dict:
    """The median time of a call, one after the other for so many seconds, after one more."""
    call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return {"seconds_per_call": statistics.median(times), "calls": len(times)}


def convert(engine: Engine, call: Callable, source: str, target: str, n: int) -> dict:
    """Applies the call to the n raw float32 images of a file."""
    x = torch.from_numpy(np.fromfile(source, "<f4").reshape(n, *engine.shape))
    call(x.contiguous(memory_format=engine.layout)).contiguous().numpy().tofile(target)
    return {}


def answer(engine: Engine, command: str, *arguments: str) -> dict:
    if command in ("forward", "logits"):
        with torch.inference_mode():
            if command == "logits":
                return convert(engine, engine.net, *arguments[:2], int(arguments[2]))
            x = engine.images(int(arguments[0]))
            return measure(lambda: engine.net(x), float(arguments[1]))
    if command == "gradient":
        return convert(engine, engine.gradient, *arguments[:2], int(arguments[2]))
    if command == "step":
        x = engine.images(int(arguments[0]))
        return measure(lambda: engine.step(x), float(arguments[1]))
    return {"error": f"unknown command {command}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("--mode", choices=MODES, default="nchw")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = Engine(args.model, args.mode)
    for line in sys.stdin:
        print(json.dumps(answer(engine, *line.split())), flush=True)


if __name__ == "__main__":
    main()
