# SPDX-License-Identifier: Apache-2.0
"""State dict -> layer list and weights, for the networks jemd serves.

JEM: wide ResNet d-w (Grathwohl et al. 2020, arXiv 1912.03263). Gibbs-JEM: a plain convolutional net
with an MLP behind it (Kelly et al. 2021, arXiv 2108.04227). Every name of a state dict is either
used, known to be dead, or a reason to refuse.
"""
import re

import numpy as np

from . import Refused, Unusable

SLOPE = 0.2  # of JEM's LeakyReLU
NORM_EPSILON = 1e-5  # torch.nn.BatchNorm2d's default; state dicts do not hold it
POOL = 8  # JEM pools its last 8x8 features


class Network:
    """What was recognised."""

    def __init__(self, family, layers, weights, shape):
        self.family, self.layers, self.weights, self.shape = family, layers, weights, shape
        self.title, self.energy, self.outputs = "", "logits", 0
        self.dropped, self.notes = [], []


class State:
    """The tensors of a state dict, taken one after another; whatever is left over is a surprise."""

    def __init__(self, tensors, array):
        self.tensors, self.array, self.taken = dict(tensors), array, {}

    def __contains__(self, name):
        return name in self.tensors

    def shape(self, name, dimensions):
        if name not in self.tensors:
            raise Unusable(f"the checkpoint has no tensor {name!r}, which this architecture needs")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise Unusable(f"{name} has shape {list(shape)} where this architecture has "
                           f"{dimensions} dimensions")
        return shape

    def take(self, name, shape):
        found = self.shape(name, len(shape))
        if found != tuple(shape):
            raise Unusable(f"{name} has shape {list(found)} where this architecture has "
                           f"{list(shape)}")
        tensor = self.tensors.pop(name)
        value = self.array(tensor)
        self.taken[name] = tensor
        return to_float32(value, name)

    def drop(self, *names):
        found = [name for name in names if name in self.tensors]
        for name in found:
            del self.tensors[name]
        return found


def to_float32(value, name):
    if value.dtype.kind not in "f":
        raise Unusable(f"{name} holds {value.dtype} where weights are floating point numbers")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32, copy=False)
    if not np.isfinite(value).all():
        raise Unusable(f"{name} holds numbers that are not finite: the training had diverged")
    return value


def recognise(tensors, array, uncond=False, norm_as_conv=False):
    """The Network of a state dict, or Unusable with the reason. `array` reads one tensor."""
    state = State(tensors, array)
    spectral = [name for name in tensors if name.endswith("_orig")]
    if spectral:
        raise Unusable(f"{spectral[0]} is spectrally normalised: call "
                       "torch.nn.utils.remove_spectral_norm before saving")
    if "f.conv1.weight" in state:
        return _wide_resnet(state, uncond, norm_as_conv)
    if uncond:
        raise Refused("--uncond is about JEM checkpoints; this one is something else")
    if "cnn.0.weight" in state:
        return _gibbs_net(state)
    some = ", ".join(sorted(tensors)[:4])
    raise Unusable("neither JEM's wide ResNet (f.conv1...) nor Gibbs-JEM's net (cnn.0..., "
                   f"mlp.0...): the state dict begins with {some or 'nothing'}")


def _conv(name, weight, stride, pad, **more):
    out, inputs, height, width = weight.shape
    kernel = height if height == width else [height, width]
    return {"kind": "conv", **more, "weights": name, "in": inputs, "out": out, "kernel": kernel,
            "stride": stride, "pad": pad}


def _linear(name, weight):
    return {"kind": "linear", "weights": name, "in": weight.shape[1], "out": weight.shape[0]}


def fold_norm(weight, bias, norm):
    """A convolution followed by batch normalisation in evaluation mode is one convolution."""
    scale, shift = norm
    return ((weight * scale[:, None, None, None]).astype(np.float32),
            (bias * scale + shift).astype(np.float32))


def _take_norm(state, name, channels):
    """Batch normalisation as (scale, shift) in float64."""
    mean = state.take(name + ".running_mean", (channels,)).astype(np.float64)
    variance = state.take(name + ".running_var", (channels,)).astype(np.float64)
    if (variance < 0).any():
        raise Unusable(f"{name}.running_var is negative")
    scale = 1 / np.sqrt(variance + NORM_EPSILON)
    shift = -mean * scale
    if name + ".weight" in state:
        gain = state.take(name + ".weight", (channels,)).astype(np.float64)
        scale, shift = scale * gain, shift * gain
        shift += state.take(name + ".bias", (channels,))
    state.drop(name + ".num_batches_tracked")
    return scale, shift


# JEM

class _WideResNet:
    """Builds the layer list of one wide ResNet, block by block."""

    def __init__(self, state, norm_as_conv):
        self.state, self.norm_as_conv = state, norm_as_conv
        self.layers, self.weights, self.folded, self.expanded = [], {}, 0, 0
        self.source = "input"  # the layer id the next block reads

    def take(self, name, shape):
        weight = self.state.take(name + ".weight", shape)
        self.weights[name + ".weight"] = weight
        self.weights[name + ".bias"] = self.state.take(name + ".bias", shape[:1])
        return weight

    def conv(self, name, shape, stride=1, pad=1, **more):
        self.layers.append(_conv(name, self.take(name, shape), stride, pad, **more))

    def norm_on_stream(self, name, channels, **source):
        """A normalisation of the residual stream: other layers read the stream too, so it cannot be
        folded into the convolution before it, and zero padding forbids the one behind it."""
        if name + ".running_mean" not in self.state:
            return source
        if not self.norm_as_conv:
            raise Unusable(f"{name} normalises the residual stream before its activation; it "
                           "cannot be folded into a convolution, since the stream has other "
                           "readers. --norm-as-conv writes it as a diagonal 1x1 convolution "
                           "(exact, a few percent slower)")
        scale, shift = _take_norm(self.state, name, channels)
        weight = np.diag(scale.astype(np.float32))[:, :, None, None].copy()
        self.weights[name + ".weight"], self.weights[name + ".bias"] = weight, np.float32(shift)
        self.layers.append(_conv(name, weight, 1, 0, **source))
        self.expanded += 1
        return {}

    def block(self, name, inputs, outputs, stride):
        prefix, source = "f." + name, self.source
        more = self.norm_on_stream(prefix + ".bn1", inputs, **{"from": source})
        self.layers.append({"kind": "lrelu", "slope": SLOPE, **more})
        self.conv(prefix + ".conv1", (outputs, inputs, 3, 3))
        if prefix + ".bn2.running_mean" in self.state:
            norm = _take_norm(self.state, prefix + ".bn2", outputs)
            w, b = prefix + ".conv1.weight", prefix + ".conv1.bias"
            self.weights[w], self.weights[b] = fold_norm(self.weights[w], self.weights[b], norm)
            self.folded += 1
        self.layers.append({"kind": "lrelu", "slope": SLOPE})
        self.conv(prefix + ".conv2", (outputs, outputs, 3, 3), stride, id=name + ".residual")
        straight = source
        if stride != 1 or inputs != outputs:
            straight = name + ".shortcut"
            self.conv(prefix + ".shortcut.0", (outputs, inputs, 1, 1), stride, 0,
                      id=straight, **{"from": source})
        self.layers.append({"kind": "add", "id": name, "from": name + ".residual",
                            "with": straight})
        self.source = name


def _blocks_in_group(state, group):
    pattern = re.compile(rf"f\.layer{group}\.(\d+)\.")
    numbers = sorted({int(m[1]) for m in map(pattern.match, state.tensors) if m})
    if not numbers or numbers != list(range(len(numbers))):
        raise Unusable(f"the wide ResNet's group f.layer{group} has the blocks {numbers}")
    return len(numbers)


def _wide_resnet(state, uncond, norm_as_conv):
    if "f.layer1.0.conv1.weight" not in state or "class_output.weight" not in state:
        raise Unusable("f.conv1 is there, but not f.layer1.0.conv1 or class_output: no JEM "
                       "classifier")
    stem = state.shape("f.conv1.weight", 4)
    wide = state.shape("f.layer1.0.conv1.weight", 4)
    blocks = [_blocks_in_group(state, g) for g in (1, 2, 3)]
    if stem[0] != 16 or wide[0] % 16 or len(set(blocks)) != 1:
        raise Unusable(f"no wide ResNet d-w: {stem[0]} channels behind f.conv1 (16 wanted), blocks "
                       f"{blocks} in the three groups")
    width = wide[0] // 16
    net = _WideResNet(state, norm_as_conv)
    net.conv("f.conv1", (16, stem[1], 3, 3), id="stem")
    net.source, inputs = "stem", 16
    for group, (count, stride) in enumerate(zip(blocks, (1, 2, 2)), 1):
        outputs = 16 * width * 2 ** (group - 1)
        for i in range(count):
            net.block(f"layer{group}.{i}", inputs, outputs, stride if i == 0 else 1)
            inputs = outputs
    more = net.norm_on_stream("f.bn1", inputs)
    net.layers += [{"kind": "lrelu", "slope": SLOPE, **more}, {"kind": "avgpool", "kernel": POOL},
                   {"kind": "flatten"}]
    found = Network("jem-uncond" if uncond else "jem", net.layers, net.weights, (stem[1], 32, 32))
    _heads(state, net, found, inputs, uncond)
    _nothing_left(state, found)
    found.title = f"JEM wide ResNet {6 * blocks[0] + 4}-{width}, {found.outputs} classes"
    if net.folded:
        found.notes.append(f"{net.folded} batch normalisations folded (epsilon {NORM_EPSILON:g})")
    if net.expanded:
        found.notes.append(f"{net.expanded} batch normalisations became diagonal 1x1 convolutions")
    return found


def _heads(state, net, found, features, uncond):
    classes = state.shape("class_output.weight", 2)[0]
    found.outputs = classes
    if not uncond:
        found.layers.append(_linear("class_output", net.take("class_output", (classes, features))))
        found.dropped += state.drop("energy_output.weight", "energy_output.bias")
    else:
        parts = [("class_output", classes), ("energy_output", 1)]
        head = np.concatenate([state.take(n + ".weight", (k, features)) for n, k in parts])
        net.weights["head.weight"] = head
        net.weights["head.bias"] = np.concatenate([state.take(n + ".bias", (k,)) for n, k in parts])
        found.layers.append(_linear("head", head))
        found.energy = "head"
    found.dropped += state.drop("f.linear.weight", "f.linear.bias")


def _nothing_left(state, found):
    """Refuses names that nothing used. A second name of a used tensor (JEM++) is no harm."""
    used = {(t.storage.key, t.offset, t.shape) for t in state.taken.values()}
    for name, tensor in sorted(state.tensors.items()):
        if (tensor.storage.key, tensor.offset, tensor.shape) in used:
            found.dropped.append(name)
        elif name.startswith("f.other_layers.") and found.family.startswith("jem"):
            found.dropped.append(name)  # JEM++'s second list of the same modules
        elif name.endswith(".num_batches_tracked"):
            found.dropped.append(name)
        else:
            hint = " (a normalisation other than batch normalisation?)" if re.search(
                r"\.(bn|norm|gn|ln)\w*\.", name) else ""
            raise Unusable(f"the tensor {name} has no place in this architecture{hint}")


# Gibbs-JEM

def _numbered(state, group):
    pattern = re.compile(rf"{group}\.(\d+)\.weight$")
    return sorted(int(m[1]) for m in map(pattern.match, state.tensors) if m)


def _gibbs_convs(state):
    """(layers, weights, folded): convolutions with an optional batch normalisation and a SiLU each,
    the last one without either; the state dict's numbers must say just that."""
    layers, weights, folded, index = [], {}, 0, 0
    last = _numbered(state, "cnn")[-1]
    while True:
        name = f"cnn.{index}"
        if name + ".weight" not in state:
            raise Unusable(f"{name} should be a convolution: the net is no sequence of convolution "
                           "(, batch normalisation), SiLU")
        shape = state.shape(name + ".weight", 4)
        weight, bias = state.take(name + ".weight", shape), state.take(name + ".bias", shape[:1])
        index += 1
        if f"cnn.{index}.running_mean" in state:
            weight, bias = fold_norm(weight, bias, _take_norm(state, f"cnn.{index}", shape[0]))
            folded, index = folded + 1, index + 1
        weights[name + ".weight"], weights[name + ".bias"] = weight, bias
        # kernel 3 keeps the size, kernel 4 halves it, kernel 1 mixes channels
        known = {(3, 3): (1, 1), (4, 4): (2, 1), (1, 1): (1, 0)}.get(shape[2:])
        if known is None:
            raise Unusable(f"{name} has a kernel of {shape[2]}x{shape[3]}; 3x3, 4x4 and 1x1 are "
                           "known")
        layers.append(_conv(name, weight, *known))
        if index > last:
            return layers, weights, folded
        layers.append({"kind": "silu"})
        index += 1


def _gibbs_net(state):
    numbers = _numbered(state, "mlp")
    if not numbers:
        raise Unusable("cnn.* without mlp.*: an unconditional Gibbs-JEM net has no attributes to "
                       "serve")
    outputs = state.shape(f"mlp.{numbers[-1]}.weight", 2)[0]
    features = state.shape("mlp.0.weight", 2)[1]
    layers, weights, folded = _gibbs_convs(state)
    if outputs == 1 or layers[-1]["kernel"] != 1:
        raise Unusable("a joint net with one energy f(x, y) for image and attributes together "
                       "(Gibbs-JEM --model joint), not one with logits per attribute: the model "
                       "file cannot hold it")
    side = round((features / layers[-1]["out"]) ** 0.5)
    if side * side * layers[-1]["out"] != features:
        raise Unusable(f"mlp.0 reads {features} numbers, which is no square of {layers[-1]['out']} "
                       "channels")
    size = side * 2 ** sum(layer.get("stride") == 2 for layer in layers)
    layers.append({"kind": "flatten"})
    for i, number in enumerate(numbers):
        name = f"mlp.{number}"
        if number != 2 * i:
            raise Unusable(f"{name}: the MLP is no sequence of linear layers with a SiLU between")
        outs = state.shape(name + ".weight", 2)[0]
        weight = state.take(name + ".weight", (outs, features))
        weights[name + ".weight"] = weight
        weights[name + ".bias"] = state.take(name + ".bias", weight.shape[:1])
        layers += ([{"kind": "silu"}] if i else []) + [_linear(name, weight)]
        features = weight.shape[0]
    found = Network("gibbs-jem", layers, weights, (layers[0]["in"], size, size))
    found.outputs = outputs
    found.title = f"Gibbs-JEM net, n_f {layers[0]['out']}, {outputs} logits"
    if folded:
        found.notes.append(f"{folded} batch normalisations folded (epsilon {NORM_EPSILON:g})")
    _nothing_left(state, found)
    return found
