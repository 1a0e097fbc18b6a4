#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes jemd model files of the papers' networks for benchmarks: PyTorch's default initialisation
from a seed, no training. The weights are the same on every machine; PyTorch is not needed.

  wrn-28-10, wrn-16-4, wrn-10-2   JEM wide ResNets, 10 classes, 32x32 in [-1, 1]
  gibbs-64, gibbs-32              Gibbs-JEM nets, n_f 64, hidden 128, 7 attributes, in [0, 1]
  gibbs-64-8, gibbs-32-8          n_f 8, hidden 32, 7 and 5 attributes
  sprites                         a copy of the demo model
"""
import argparse
import os
import shutil
import sys
import zlib

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "clients", "python"))

from jemd_import import architectures, description, writer  # noqa: E402

DEMO = os.path.join(ROOT, "models", "sprites.safetensors")


class Parameter:
    """An array as the importer wants its tensors: one that knows where it is stored."""

    def __init__(self, name: str, array: np.ndarray):
        self.array, self.shape = array, array.shape
        self.storage, self.offset, self.key = self, 0, name


class Maker:
    """Collects the parameters of one network under PyTorch's names."""

    def __init__(self, name: str):
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.state: dict[str, Parameter] = {}

    def layer(self, name: str, *shape: int) -> None:
        """A convolution or linear layer: weight and bias uniform in +-1/sqrt(fan_in)."""
        bound = float(np.prod(shape[1:])) ** -0.5
        for suffix, size in ((".weight", shape), (".bias", shape[:1])):
            values = self.rng.uniform(-bound, bound, size).astype(np.float32)
            self.state[name + suffix] = Parameter(name + suffix, values)


def wide_resnet(net: Maker, depth: int, width: int) -> None:
    """JEM's wide ResNet without normalisation, 10 classes."""
    inputs = 16
    net.layer("f.conv1", inputs, 3, 3, 3)
    for group in (1, 2, 3):
        outputs = 16 * width * 2 ** (group - 1)
        for block in range((depth - 4) // 6):
            name = f"f.layer{group}.{block}"
            net.layer(name + ".conv1", outputs, inputs, 3, 3)
            net.layer(name + ".conv2", outputs, outputs, 3, 3)
            if inputs != outputs:
                net.layer(name + ".shortcut.0", outputs, inputs, 1, 1)
            inputs = outputs
    net.layer("class_output", 10, inputs)


def gibbs_net(net: Maker, size: int, features: int, hidden: int, attributes: int) -> None:
    """Gibbs-JEM's convolutions down to 4x4, then its MLP of two logits an attribute."""
    net.layer("cnn.0", features, 3, 3, 3)
    index, inputs = 2, features
    while size > 4:
        outputs = min(2 * inputs, 8 * features)
        net.layer(f"cnn.{index}", outputs, inputs, 4, 4)
        index, inputs, size = index + 2, outputs, size // 2
    net.layer(f"cnn.{index}", features, inputs, 1, 1)
    net.layer("mlp.0", hidden, 16 * features)
    net.layer("mlp.2", hidden, hidden)
    net.layer("mlp.4", 2 * attributes, hidden)


NETWORKS = {
    "wrn-28-10": (wide_resnet, 28, 10),
    "wrn-16-4": (wide_resnet, 16, 4),
    "wrn-10-2": (wide_resnet, 10, 2),
    "gibbs-64": (gibbs_net, 64, 64, 128, 7),
    "gibbs-32": (gibbs_net, 32, 64, 128, 7),
    "gibbs-64-8": (gibbs_net, 64, 8, 32, 7),
    "gibbs-32-8": (gibbs_net, 32, 8, 32, 5),
}
NAMES = (*NETWORKS, "sprites")


def make(folder: str, name: str) -> str:
    """Writes NAME.safetensors into the folder; its path."""
    path = os.path.join(folder, name + ".safetensors")
    if name == "sprites":
        shutil.copyfile(DEMO, path)
        return path
    build, *sizes = NETWORKS[name]
    net = Maker(name)
    build(net, *sizes)
    network = architectures.recognise(net.state, lambda parameter: parameter.array)
    described = description.describe(network, name, {}, {})
    description.check(described, network.weights)
    writer.write_model(path, described, network.weights)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="OUT_DIR", help="where the files go; made if missing")
    parser.add_argument("names", metavar="NAME", nargs="*", help="networks (default: all)")
    args = parser.parse_args()
    for name in args.names:
        if name not in NAMES:
            parser.error(f"{name} is unknown; known are {', '.join(NAMES)}")
    os.makedirs(args.folder, exist_ok=True)
    for name in args.names or NAMES:
        path = make(args.folder, name)
        print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
