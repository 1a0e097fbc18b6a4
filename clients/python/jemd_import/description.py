# SPDX-License-Identifier: Apache-2.0
"""The description in the model file: a family's defaults, the user's overrides, and the check that
description, weights and buffer fit together."""
import json
import math
import re

from . import Refused, Unusable

FAMILIES = ("jem", "jem-uncond", "gibbs-jem", "mixed")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MAX_TEXT = 64  # bytes of a name with its end, as jemd reads it; 32 of a layer's id
MAX_DESCRIPTION = 4 << 20  # bytes of a --describe file
OVERRIDES = {  # members that --describe may give: type, or members of an object
    "name": str, "version": str, "family": str, "layers": list, "attributes": list,
    "provenance": dict,
    "input": {"channels": int, "height": int, "width": int, "range": list, "pixel_scale": float,
              "pixel_offset": float},
    "energy": {"kind": str},
    "sampler": {"kind": str, "steps": int, "steps_buffer": int, "step_rule": str,
                "step_size": float, "step_norm": float, "noise": float, "cool_last": int,
                "clamp": list, "langevin_steps": int, "pixel_clamp": float, "temperature": float,
                "start": {"kind": str, "grid": int, "noise": float}},
    "replay_buffer": {"scale": float, "offset": float},
}
NULLABLE = ("clamp", "pixel_clamp")
AT_LEAST_ONE = ("steps", "langevin_steps", "channels", "height", "width")


def parse_json(text, what):
    def unique(pairs):
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a member occurs twice")
        return dict(pairs)

    def constant(word):
        raise ValueError(f"{word} is no JSON number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is no valid JSON: {error}") from None


def load_overrides(path):
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_DESCRIPTION + 1)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    if len(data) > MAX_DESCRIPTION:
        raise Refused(f"{path} is larger than {MAX_DESCRIPTION} bytes")
    overrides = parse_json(data, path)
    _check_members(overrides, OVERRIDES, "")
    return overrides


def _check_members(value, members, pointer):
    if not isinstance(value, dict):
        raise Refused(f"--describe: {pointer or 'the file'} must be an object")
    for key, item in value.items():
        where = f"{pointer}/{key}"
        if key not in members:
            raise Refused(f"--describe: {where} is unknown; known are {', '.join(members)}")
        wanted = members[key]
        if item is None and key in NULLABLE:
            continue
        if isinstance(wanted, dict):
            _check_members(item, wanted, where)
        elif wanted in (int, float):
            _check_number(key, item, wanted, where)
        elif not isinstance(item, wanted):
            raise Refused(f"--describe: {where} must be a {wanted.__name__}")


def _check_number(key, item, wanted, where):
    if type(item) not in (int, wanted) or not math.isfinite(item):
        raise Refused(f"--describe: {where} must be a{'n integer' if wanted is int else ' number'}")
    if item < (key in AT_LEAST_ONE) and key not in ("pixel_offset", "offset"):
        raise Refused(f"--describe: {where} is {item}, too small")


def merge(base, over):
    """`over` into `base`: objects member by member, everything else replaced."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def case_overrides(metadata):
    """What the `case` text of a safetensors state dict says about input and attributes."""
    try:
        case = json.loads(metadata["case"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(case, dict):
        return {}
    found = {}
    if isinstance(case.get("attributes"), list):
        found["attributes"] = case["attributes"]
    bounds = case.get("range", case["input"].get("range") if isinstance(case.get("input"), dict)
                      else None)
    if isinstance(bounds, list):
        found["input"] = {"range": bounds}
    return found


def _sampler(network, bounds):
    jem = network.family.startswith("jem")
    sampler = {"kind": "sgld" if jem else "gibbs", "steps": 100 if jem else 60,
               "steps_buffer": 20 if jem else 40, "step_rule": "fixed", "step_size": 1.0,
               "noise": 0.01 if jem else 0.001, "cool_last": 0, "clamp": None if jem else bounds,
               "langevin_steps": 1, "pixel_clamp": None, "temperature": 1.0,
               "start": {"kind": "noise", "grid": 0, "noise": 0.0}}
    return sampler


def _attributes(network):
    if network.family.startswith("jem"):
        values = [str(i) for i in range(network.outputs)]
        return [{"name": "class", "values": values}]
    if network.outputs % 2:
        raise Unusable(f"{network.outputs} logits are no pairs: name the attributes and their "
                       "values in a --describe file")
    return [{"name": f"attribute_{i}", "values": ["absent", "present"]}
            for i in range(network.outputs // 2)]


def _pixels(network, bounds):
    """x = scale * pixel + offset. Gibbs-JEM dequantises to (255 x + u)/256; served at u = 1/2."""
    if not network.family.startswith("jem") and bounds == [0, 1]:
        return 1 / 256, 0.5 / 256
    return (bounds[1] - bounds[0]) / 255, float(bounds[0])


def describe(network, name, case, overrides):
    """The whole description but the replay buffer's tensors."""
    channels, height, width = network.shape
    known = merge(dict(case), overrides)
    bounds = known.get("input", {}).get(
        "range", [-1, 1] if network.family.startswith("jem") else [0, 1])
    _check_range("/input/range", bounds)
    scale, offset = _pixels(network, bounds)
    result = {
        "format": 1, "name": name, "version": "1", "family": network.family,
        "input": {"channels": channels, "height": height, "width": width, "range": bounds,
                  "pixel_scale": scale, "pixel_offset": offset},
        "layers": network.layers, "energy": {"kind": network.energy},
        "attributes": known.get("attributes") or _attributes(network),
        "sampler": _sampler(network, bounds),
    }
    # what is read from the replay buffer's coding is written with its tensors
    merge(result, {k: v for k, v in known.items() if k not in ("replay_buffer", "provenance")})
    if result["family"] == "gibbs-jem" and "family" not in overrides:
        if any(len(a.get("values", ())) != 2 for a in result["attributes"] if isinstance(a, dict)):
            result["family"] = "mixed"
    return result


def _check_range(where, bounds):
    good = isinstance(bounds, list) and len(bounds) == 2 and all(
        type(b) in (int, float) and math.isfinite(b) for b in bounds)
    if not good or bounds[0] >= bounds[1]:
        raise Refused(f"{where} must be two numbers [low, high], low below high")


def _check_word(where, word, words):
    if word not in words:
        raise Refused(f"{where} is {word!r}; known are {', '.join(words)}")


def _check_attributes(attributes):
    """Checks names and values; the number of logits they need."""
    names, logits = set(), 0
    for i, a in enumerate(attributes):
        where = f"/attributes/{i}"
        if not isinstance(a, dict) or not set(a) <= {"name", "values", "temperature"}:
            raise Refused(f"{where} must be an object of name, values and perhaps temperature")
        values, name = a.get("values"), a.get("name")
        words = [name] + (values if isinstance(values, list) else [None])
        if not all(isinstance(w, str) and w.isprintable() and 0 < len(w.encode()) < MAX_TEXT
                   for w in words):
            raise Refused(f"{where}: name and values must be printable texts of at most "
                          f"{MAX_TEXT - 1} bytes")
        if len(values) < 2 or len(set(values)) != len(values) or len(values) > 255:
            raise Refused(f"{where} ({name}) must have 2 to 255 different values")
        if name in names:
            raise Refused(f"two attributes are called {name!r}")
        temperature = a.setdefault("temperature", 1.0)
        if type(temperature) not in (int, float) or not 0.01 <= temperature <= 100:
            raise Refused(f"{where}/temperature must be in [0.01, 100]")
        names.add(name)
        logits += len(values)
    return logits


def check(description, weights):
    """Refuses a description that jemd could not load: words, ranges, shapes through all layers."""
    for member in ("name", "version"):
        if not NAME.fullmatch(description[member]):
            raise Refused(f"the {member} {description[member]!r} must be letters, digits, '.', '_' "
                          "or '-', at most 63 of them")
    sampler = description["sampler"]
    _check_word("/family", description["family"], FAMILIES)
    _check_word("/energy/kind", description["energy"]["kind"], ("logits", "head"))
    _check_word("/sampler/kind", sampler["kind"], ("sgld", "gibbs", "ula"))
    _check_word("/sampler/step_rule", sampler["step_rule"], ("fixed", "normalised"))
    _check_word("/sampler/start/kind", sampler["start"]["kind"], ("noise", "buffer"))
    if sampler["step_rule"] == "normalised" and not sampler.get("step_norm"):
        raise Refused("/sampler/step_norm is missing: the normalised step rule needs it")
    if not sampler["temperature"] > 0:
        raise Refused("/sampler/temperature must be above 0")
    if sampler["clamp"] is not None:
        _check_range("/sampler/clamp", sampler["clamp"])
    size = description["input"]
    shape = flow(description["layers"], (size["channels"], size["height"], size["width"]), weights)
    logits = _check_attributes(description["attributes"])
    logits += description["energy"]["kind"] == "head"
    if shape != (logits,):
        raise Refused(f"the net gives {' x '.join(map(str, shape))} outputs, the attributes need "
                      f"{logits}")


# Shapes through the layers

def _pair(value):
    return tuple(value) if isinstance(value, list) and len(value) == 2 else (value, value)


def _parameters(layer, weights, shape):
    name = layer["weights"]
    for suffix, wanted in ((".weight", shape), (".bias", shape[:1])):
        found = weights.get(name + suffix)
        if found is None or found.shape != wanted:
            has = "is not there" if found is None else f"has shape {list(found.shape)}"
            raise Refused(f"layer {name}: {name}{suffix} of shape {list(wanted)} is wanted, it "
                          + has)


def _conv_shape(layer, shape, weights):
    channels, *size = shape
    kernel = _pair(layer["kernel"])
    _parameters(layer, weights, (layer["out"], layer["in"], *kernel))
    if layer["in"] != channels:
        raise Refused(f"layer {layer['weights']} reads {layer['in']} channels but gets {channels}")
    size = [(n + 2 * layer["pad"] - k) // layer["stride"] + 1 for n, k in zip(size, kernel)]
    if min(size) < 1:
        raise Refused(f"layer {layer['weights']}: its kernel is larger than the image it gets")
    return (layer["out"], *size)


def _pool_shape(layer, shape, _):
    channels, height, width = shape
    k = layer["kernel"]
    if height % k or width % k:
        raise Refused(f"a {height}x{width} image cannot be pooled by {k}")
    return channels, height // k, width // k


def _linear_shape(layer, shape, weights):
    _parameters(layer, weights, (layer["out"], layer["in"]))
    if shape != (layer["in"],):
        raise Refused(f"layer {layer['weights']} reads {layer['in']} numbers but gets {shape}")
    return (layer["out"],)


def _same_shape(_layer, shape, _weights):
    return shape


SHAPES = {"conv": _conv_shape, "avgpool": _pool_shape, "sumpool": _pool_shape,
          "linear": _linear_shape, "flatten": lambda _l, shape, _w: (math.prod(shape),)}
SHAPES |= dict.fromkeys(("silu", "lrelu", "relu", "square", "add"), _same_shape)


def flow(layers, shape, weights):
    """The shape of the last layer's output."""
    outputs = {"input": shape}
    for i, layer in enumerate(layers):
        try:
            _check_word(f"/layers/{i}/kind", layer["kind"], SHAPES)
            shape = outputs[layer["from"]] if "from" in layer else shape
            if layer["kind"] == "add" and outputs[layer["with"]] != shape:
                raise Refused(f"/layers/{i} adds {shape} and {outputs[layer['with']]}")
            shape = SHAPES[layer["kind"]](layer, shape, weights)
            if "id" in layer:
                if layer["id"] in outputs or len(layer["id"].encode()) >= MAX_TEXT // 2:
                    raise Refused(f"/layers/{i}: the id {layer['id']!r} is too long or used twice")
                outputs[layer["id"]] = shape
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise Refused(f"/layers/{i} is incomplete or does not fit its input: {error}") from None
    return shape
