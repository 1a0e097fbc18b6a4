#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Converts a PyTorch checkpoint of a JEM or Gibbs-JEM model to jemd's model file."""
import argparse
import hashlib
import os
import re
import sys

try:
    from jemd_import import Refused, Unusable, architectures, buffers, description, writer
    from jemd_import.containers import Checkpoint
    from jemd_import.pickles import Tensor
except ModuleNotFoundError as missing:
    if missing.name != "numpy":
        raise
    sys.exit(f"import_torch.py: {sys.executable} has no numpy (Debian: apt install python3-numpy)")

EPILOG = """\
Reads files of torch.save (both formats) and safetensors state dicts; PyTorch is not needed and no
code in the checkpoint is run. Recognised: JEM's wide ResNets and Gibbs-JEM's net, from the tensors'
names and shapes. Of several state dicts the exponential moving average is taken, unless --state
says otherwise. Batch normalisation is folded in evaluation mode (epsilon 1e-5).

--describe FILE.json holds an object whose members replace or complete the description in the model
file, for example
  {"version": "2",
   "attributes": [{"name": "beard", "values": ["no", "yes"]}, ...],
   "sampler": {"steps": 120, "start": {"grid": 8, "noise": 0.1}},
   "provenance": {"source": "...", "licence": "..."}}
Attributes are in the order of the logits; without them they are numbered.

exit codes: 0 converted, 1 the checkpoint cannot be used, 2 refused as dangerous or wrong usage
"""
STRIPPED = ("module.", "_orig_mod.")  # DataParallel, torch.compile
KNOWN_FIRST = ("f.conv1.weight", "cnn.0.weight")
AVERAGED = re.compile(r"(^|[._])ema([._]|$)", re.IGNORECASE)
MAX_DEPTH = 6  # of dicts in dicts


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        prog="import_torch.py", description=__doc__, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pt, .pth or .safetensors file")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL.safetensors",
                        help="the model file to write")
    parser.add_argument("--describe", metavar="FILE.json",
                        help="members of the description (below)")
    parser.add_argument("--name", help="the model's name (default: the output's file name)")
    parser.add_argument("--state", metavar="PATH",
                        help="which state dict, as in models.ema_logp_net (default: found)")
    parser.add_argument("--prefix", default="", metavar="P",
                        help="use only the tensors whose names begin with P, without it")
    parser.add_argument("--uncond", action="store_true",
                        help="JEM trained with --uncond: log p(x) is the energy head's output")
    parser.add_argument("--norm-as-conv", action="store_true",
                        help="write batch normalisation that cannot be folded as 1x1 convolutions")
    parser.add_argument("--buffer-max", type=int, default=1000, metavar="N",
                        help="replay buffer entries to keep, evenly spaced (default 1000, 0: none)")
    parser.add_argument("--buffer-float", action="store_true",
                        help="keep the replay buffer as floats, unclipped, at four times the size")
    parser.add_argument("--buffer-by-class", action="store_true",
                        help="JEM's class-conditional buffer: equal slots, class after class")
    options = parser.parse_args(arguments)
    if options.buffer_max < 0:
        parser.error("--buffer-max must not be negative")
    return options


def state_dicts(root):
    """(path, dict) of every dict that holds tensors under text keys, outermost first."""
    found, waiting, seen = [], [((), root)], set()
    while waiting:
        path, value = waiting.pop(0)
        if not isinstance(value, dict) or id(value) in seen or len(path) > MAX_DEPTH:
            continue
        seen.add(id(value))
        if any(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
            found.append((".".join(path), value))
        waiting += [((*path, k), v) for k, v in value.items() if isinstance(k, str)]
    return found


def normalised(state, prefix):
    """name -> tensor with the prefix and the wrappers' prefixes off."""
    tensors = {k[len(prefix):]: v for k, v in state.items()
               if isinstance(k, str) and k.startswith(prefix) and isinstance(v, Tensor)}
    for wrapper in STRIPPED:
        if tensors and all(k.startswith(wrapper) for k in tensors):
            tensors = {k[len(wrapper):]: v for k, v in tensors.items()}
    return tensors


def choose_state(root, options):
    """(path, tensors) of the state dict to convert."""
    found = [(path, normalised(state, options.prefix)) for path, state in state_dicts(root)]
    if options.state is not None:
        for path, tensors in found:
            if path == options.state:
                return path, tensors
        raise Refused(f"--state {options.state}: no such state dict; there are "
                      + (", ".join(repr(path) for path, _ in found) or "none"))
    known = [(p, t) for p, t in found if any(first in t for first in KNOWN_FIRST)]
    averaged = [(p, t) for p, t in known if AVERAGED.search(p)]
    candidates = averaged or known
    if len(candidates) > 1:
        raise Unusable("several state dicts could be meant: "
                       + ", ".join(path for path, _ in candidates) + "; choose with --state")
    if candidates:
        return candidates[0]
    if not found:
        raise Unusable("no state dict in the checkpoint: nothing but tensors under names can be "
                       "converted (a whole pickled module cannot: save its state_dict())")
    return found[0]


def without_buffer(tensors):
    names = buffers.IMAGES + buffers.LABELS
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def digest(path):
    value = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            value.update(block)
    return value.hexdigest()


def model_name(options, described):
    stem = os.path.splitext(os.path.basename(options.output))[0]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:63]
    return options.name or described or plain or "model"


def convert(options):
    """Converts; the lines that say what was found."""
    overrides = description.load_overrides(options.describe) if options.describe else {}
    if os.path.exists(options.output) and os.path.exists(options.checkpoint) and os.path.samefile(
            options.output, options.checkpoint):
        raise Refused("the output would replace the checkpoint itself")
    coding = overrides.get("replay_buffer")
    if coding is not None and set(coding) != {"scale", "offset"}:
        raise Refused("--describe: /replay_buffer needs scale and offset")
    with Checkpoint(options.checkpoint) as checkpoint:
        if checkpoint.metadata.get("format") == "jemd":
            raise Unusable("this is a jemd model file already")
        path, tensors = choose_state(checkpoint.root, options)
        network = architectures.recognise(without_buffer(tensors), checkpoint.array,
                                          options.uncond, options.norm_as_conv)
        name = model_name(options, overrides.pop("name", None))
        case = description.case_overrides(checkpoint.metadata)
        result = description.describe(network, name, case, overrides)
        description.check(result, network.weights)
        buffer = buffers.read(checkpoint, result, coding, options)
        kind = checkpoint.kind
    weights = dict(network.weights)
    if buffer is not None:
        result["replay_buffer"] = {"x": "buffer.x", "y": "buffer.y", "scale": buffer.scale,
                                   "offset": buffer.offset}
        weights |= {"buffer.x": buffer.x, "buffer.y": buffer.y}
    result["provenance"] = {
        "checkpoint": os.path.basename(options.checkpoint),
        "checkpoint_sha256": digest(options.checkpoint)}
    if path:
        result["provenance"]["checkpoint_state"] = path
    result["provenance"] |= overrides.get("provenance", {})
    size = writer.write_model(options.output, result, weights)
    return summary(options, network, result, buffer, f"{path or 'the state dict'} ({kind})", size)


def summary(options, network, result, buffer, source, size):
    count = sum(w.size for w in network.weights.values())
    low, high = result["input"]["range"]
    image = "x".join(str(n) for n in network.shape)
    attributes = ", ".join(f"{a['name']} ({len(a['values'])})" for a in result["attributes"][:12])
    more = len(result["attributes"]) - 12
    yield (f"{network.title}: {count / 1e6:.2f} M parameters in {len(network.weights)} tensors, "
           f"input {image} in [{low:g}, {high:g}], from {source}")
    yield f"attributes: {attributes}" + (f" and {more} more" if more > 0 else "")
    if network.dropped or network.notes:
        unused = [f"unused and left out: {', '.join(network.dropped)}"] if network.dropped else []
        yield "; ".join(network.notes + unused)
    yield "replay buffer: " + (", ".join(buffer.notes) if buffer else "none")
    model = f"model {result['name']} {result['version']}"
    yield f"wrote {options.output} ({size / 1e6:.1f} MB), {model}"


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        for line in convert(options):
            print(line)
        return 0
    except (Unusable, Refused) as error:
        print(f"import_torch.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, Unusable) else 2
    except (OSError, MemoryError) as error:
        why = error if str(error) else "not enough memory"
        print(f"import_torch.py: {options.checkpoint}: {why}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
