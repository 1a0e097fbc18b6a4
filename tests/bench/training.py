#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Training steps a second of `jemd train` and of PyTorch, by turns, with the same network, batch,
chains, steps of chains and threads.

    training.py MODEL.safetensors [--data DIR]

The network is a model file's, weights fresh. A step: a batch of data with noise; chains of a replay
buffer make Langevin steps with the normalised rule on log p(x, y) for labels of their own; the loss
raises log p(x, y) of data and lowers that of chains, with cross entropy and a penalty on squares;
clip, Adam, moving average. No births, no checkpoints. Data are random pixels and labels unless DIR
has a split "train" of the model's size. Both measure the time of a number of steps after a few
untimed ones; the rounds alternate, the ratio is taken within a round.
"""
import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import onnx_file

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
FIRST = 10  # untimed steps


def write_idx(path: str, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(head + array.tobytes())


def make_data(described: dict, folder: str) -> str:
    size, rng = described["input"], np.random.default_rng(1)
    images = rng.integers(0, 256, (512, size["height"], size["width"], size["channels"]), np.uint8)
    labels = np.stack([rng.integers(0, len(a["values"]), 512, np.uint8)
                       for a in described["attributes"]], 1)
    write_idx(os.path.join(folder, "train-images.idx4-ubyte.gz"), images)
    write_idx(os.path.join(folder, "train-attr-cat.idx2-ubyte.gz"), labels)
    return folder


class Jemd:
    """Runs of two lengths: the difference of their times is that of the steps between."""

    def __init__(self, args, described: dict, data: str, folder: str):
        self.args, self.folder, self.data, self.runs = args, folder, data, 0
        for drop in ("calibration", "replay_buffer"):
            described.pop(drop, None)
        self.recipe = {"model": described, "training": {
            "batch": args.batch, "seed": 1, "checkpoint_every": 1000000, "export_buffer": 0,
            "health": {"warm_up": 1000000},
            "chains": {"count": args.chains, "buffer": 10 * args.chains, "steps": args.steps,
                       "births": {"count": 0}, "blur": 0, "shift": 0}}}

    def run(self, steps: int) -> float:
        self.runs += 1
        recipe = os.path.join(self.folder, "recipe.json")
        self.recipe["training"]["steps"] = steps
        with open(recipe, "w", encoding="utf-8") as stream:
            json.dump(self.recipe, stream)
        begin = time.monotonic()
        subprocess.run([self.args.jemd, "train", recipe, "--data", self.data, "--out",
                        os.path.join(self.folder, f"run{self.runs}"), "--threads",
                        str(self.args.threads)], check=True, stderr=subprocess.DEVNULL)
        return time.monotonic() - begin

    def measure(self, steps: int) -> float:
        short = self.run(FIRST)
        return (self.run(FIRST + steps) - short) / steps


class Torch:
    """The same step in PyTorch, written as its users write it, with its faster settings."""

    def __init__(self, args, described: dict, tensors: dict, layout: str):
        import torch
        import peer_torch
        torch.set_num_threads(args.threads)
        self.torch, self.args = torch, args
        self.layout = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.net = peer_torch.Net(described, tensors).to(memory_format=self.layout)
        self.net.requires_grad_(True)
        self.average = [p.detach().clone() for p in self.net.parameters()]
        self.adam = torch.optim.Adam(self.net.parameters(), 3e-4)
        self.values = [len(a["values"]) for a in described["attributes"]]
        size = described["input"]
        self.low, self.high = size["range"]
        shape = (size["channels"], size["height"], size["width"])
        self.buffer = self.images(10 * args.chains, shape)
        self.buffer_y = self.labels(10 * args.chains)
        self.data, self.data_y = self.images(512, shape), self.labels(512)

    def images(self, n, shape):
        x = self.torch.rand(n, *shape) * (self.high - self.low) + self.low
        return x.contiguous(memory_format=self.layout)

    def labels(self, n):
        return self.torch.stack([self.torch.randint(v, (n,)) for v in self.values], 1)

    def log_pxy(self, logits, y):
        """log p(x, y), all labelled, and the cross entropy."""
        parts = logits.split(self.values, 1)
        joint = sum(f.gather(1, y[:, k:k + 1])[:, 0] for k, f in enumerate(parts))
        marginal = sum(f.logsumexp(1) for f in parts)
        return joint, (marginal - joint).mean() / len(parts)

    def chains(self, x, y):
        torch = self.torch
        for _ in range(self.args.steps):
            x = x.detach().requires_grad_(True)
            joint, _ = self.log_pxy(self.net(x), y)
            g, = torch.autograd.grad(joint.sum(), x)
            a = (0.015 / g.abs().mean((1, 2, 3), keepdim=True)).clamp(max=10)
            x = (x.detach() + a * g + 0.01 * torch.randn_like(x)).clamp_(self.low, self.high)
        return x.detach()

    def step(self):
        torch, args = self.torch, self.args
        rows = torch.randint(512, (args.batch,))
        x = (self.data[rows] + 0.03 * torch.randn_like(self.data[rows])).clamp_(self.low, self.high)
        picks = torch.randperm(len(self.buffer))[:args.chains]
        y = self.buffer_y[picks]
        self.net.requires_grad_(False)
        moved = self.chains(self.buffer[picks], y)
        self.net.requires_grad_(True)
        self.buffer[picks] = moved
        logits = self.net(torch.cat([x, moved]))
        data, entropy = self.log_pxy(logits[:args.batch], self.data_y[rows])
        chains, _ = self.log_pxy(logits[args.batch:], y)
        loss = (chains.mean() - data.mean() + entropy +
                0.005 * (data.square().mean() + chains.square().mean()))
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1)
        self.adam.step()
        with torch.no_grad():
            for average, p in zip(self.average, self.net.parameters()):
                average.lerp_(p, 0.001)

    def measure(self, steps: int) -> float:
        for _ in range(FIRST):
            self.step()
        begin = time.monotonic()
        for _ in range(steps):
            self.step()
        return (time.monotonic() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.safetensors")
    parser.add_argument("--data", metavar="DIR")
    parser.add_argument("--jemd", default=os.path.join(ROOT, "build/release/server/jemd"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of a chain in a training step")
    parser.add_argument("--timed", type=int, default=100, help="training steps of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    described, tensors = onnx_file.read_model(args.model)
    peers = {layout: Torch(args, described, tensors, layout) for layout in ("nchw", "channels_last")}
    times = {layout: peer.measure(args.timed // 4) for layout, peer in peers.items()}
    layout = min(times, key=times.get)
    with tempfile.TemporaryDirectory() as folder:
        jemd = Jemd(args, described, args.data or make_data(described, folder), folder)
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(jemd.measure(args.timed))
            theirs.append(peers[layout].measure(args.timed))
    ratios = sorted(t / o for o, t in zip(ours, theirs))
    print(f"{described['name']}, batch {args.batch}, {args.chains} chains x {args.steps} steps, "
          f"{args.threads} threads, {args.rounds} rounds")
    print(f"jemd     {1 / statistics.median(ours):6.1f} steps/s")
    print(f"PyTorch  {1 / statistics.median(theirs):6.1f} steps/s ({layout})")
    print(f"ratio    {statistics.median(ratios):6.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    sys.exit(main())
