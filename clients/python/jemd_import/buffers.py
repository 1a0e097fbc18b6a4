# SPDX-License-Identifier: Apache-2.0
"""The replay buffer: finds it in a checkpoint, thins it out, stores it as 8-bit or float."""
import numpy as np

from . import Refused, Unusable
from .containers import is_array
from .pickles import Record

IMAGES = ("replay_buffer", "buffer.x", "buffer", "x_replay_buffer")
LABELS = ("y_replay_buffer", "buffer.y", "buffer_y", "replay_buffer_y")
FREE = 255  # of y: the attribute was not fixed


class Buffer:
    """x as stored (value = scale * x + offset), y as uint8; `notes` is for the user."""

    def __init__(self, x, y, scale, offset, notes):
        self.x, self.y, self.scale, self.offset, self.notes = x, y, scale, offset, notes


def _find(root, names):
    """(value, filled length or None) of the first member with one of these names."""
    for name in names:
        value = root.get(name) if isinstance(root, dict) else None
        # Gibbs-JEM pickles buffer objects: images in _storage, of which buffer_len are real
        if isinstance(value, Record) and isinstance(value.state, dict):
            filled = value.state.get("buffer_len")
            value = value.state.get("_storage")
            if is_array(value):
                return value, filled if type(filled) is int and filled > 0 else None
        elif is_array(value):
            return value, None
    return None, None


def _labels(labels, rows, picked, attributes):
    y = np.full((len(picked), len(attributes)), FREE, np.uint8)
    if labels is None:
        return y
    labels = labels.reshape(labels.shape[0], -1) if labels.ndim else labels
    if labels.ndim != 2 or labels.shape[0] < rows or labels.shape[1] != len(attributes):
        raise Unusable(f"the replay buffer's labels have shape {list(labels.shape)}, its images "
                       f"{rows} rows, the model {len(attributes)} attributes")
    labels = labels[picked]
    for k, attribute in enumerate(attributes):
        column, n = labels[:, k], len(attribute["values"])
        free = (column == -1) | (column == FREE)
        if not (free | ((column >= 0) & (column < n) & (column == np.floor(column)))).all():
            raise Unusable(f"the replay buffer's labels of {attribute['name']} are not all below "
                           f"{n}")
        y[:, k] = np.where(free, FREE, column).astype(np.uint8)
    return y


def _pick(x, rows, most):
    """Evenly spaced rows that hold finite images, and how many were not finite."""
    finite = np.array([np.isfinite(row).all() for row in x[:rows]], bool)
    good = np.flatnonzero(finite)
    if len(good) > most:
        good = good[np.arange(most) * len(good) // most]
    return good, int((~finite).sum())


def read(checkpoint, description, coding, options):
    """The Buffer of a checkpoint, or None. `coding` is scale and offset of images that come as
    bytes, None for the input range; options: buffer_max, buffer_float, buffer_by_class."""
    found, filled = _find(checkpoint.root, IMAGES)
    if found is None or options.buffer_max == 0:
        return None
    x = checkpoint.array(found)
    size = description["input"]
    wanted = (size["channels"], size["height"], size["width"])
    if x.ndim != 4 or x.shape[1:] != wanted:
        raise Unusable(f"the replay buffer has shape {list(x.shape)}, the model reads "
                       f"{list(wanted)}; --buffer-max 0 leaves it out")
    rows = min(len(x), filled or len(x))
    picked, broken = _pick(x, rows, options.buffer_max)
    if not len(picked):
        return None
    attributes = description["attributes"]
    labels, _ = _find(checkpoint.root, LABELS)
    labels = None if labels is None else checkpoint.array(labels)
    if options.buffer_by_class:
        n = len(attributes[0]["values"])
        if labels is not None or len(attributes) != 1 or rows % n:
            raise Refused("--buffer-by-class is for JEM's class-conditional buffer: one attribute, "
                          "no labels, as many entries for each class")
        labels = np.arange(rows) * n // rows
    y = _labels(labels, rows, picked, attributes)
    notes = [f"{len(picked)} of {rows} entries"]
    if broken:
        notes.append(f"{broken} that were not finite left out")
    return _coded(x[picked], y, (size["range"], coding, options.buffer_float), notes)


def _coded(x, y, how, notes):
    (low, high), coding, as_float = how
    scale, offset = (high - low) / 255, float(low)
    if x.dtype == np.uint8:
        if coding is not None:
            scale, offset = coding["scale"], coding["offset"]
        return Buffer(x, y, scale, offset, notes + ["8-bit as they were"])
    if x.dtype.kind != "f":
        raise Unusable(f"the replay buffer holds {x.dtype} where images are floats or bytes")
    if as_float:
        return Buffer(x.astype(np.float32), y, 1.0, 0.0, notes + ["as floats"])
    outside = float(((x < low) | (x > high)).mean())
    notes.append(f"8-bit, {outside:.2%} of the values clipped to [{low:g}, {high:g}]")
    codes = np.rint((np.clip(x, low, high).astype(np.float64) - offset) / scale)
    return Buffer(codes.astype(np.uint8), y, scale, offset, notes)
