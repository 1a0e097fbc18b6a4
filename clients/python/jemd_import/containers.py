# SPDX-License-Identifier: Apache-2.0
"""The files a checkpoint comes in: torch.save's zip format (1.6 and later) and the one before it,
safetensors. Opening gives the object (dicts, Tensors, Records); tensor bytes are read when wanted.
"""
import io
import json
import os
import struct
import zipfile

import numpy as np

from . import Unusable
from .pickles import (ITEM_BYTES, Bounded, Machine, Record, Storage, Storages, Tensor,
                      no_persistent)

MAGIC = 0x1950A86A20F9469CFC6C  # of the legacy format
MAX_PICKLE = 256 << 20  # bytes of data.pkl
MAX_HEADER = 100 << 20  # bytes of a safetensors header
MAX_STORAGES = 1 << 16
MAX_ENTRIES = 1 << 17  # of a zip archive
SAFE_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
               "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
               "BOOL": "bool"}


class Checkpoint:
    """An open file: `root` is its object, `metadata` a safetensors file's strings."""

    def __init__(self, path):
        try:
            self.stream = open(path, "rb")
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from None
        try:
            self.size = os.fstat(self.stream.fileno()).st_size
            self.metadata, self.big_endian = {}, False
            self.root = self._load(path)
        except BaseException:
            self.stream.close()
            raise

    def close(self):
        self.stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _load(self, path):
        head = self.stream.read(16)
        self.stream.seek(0)
        if head[:4] == b"PK\3\4":
            self.kind = "zip"
            return self._load_zip()
        if len(head) > 8 and head[8:9] == b"{":
            self.kind = "safetensors"
            return self._load_safetensors()
        if head[:1] == b"\x80":
            self.kind = "legacy"
            return self._load_legacy()
        raise Unusable(f"{path} is not a checkpoint: neither a zip nor a legacy file of "
                       "torch.save, nor safetensors")

    # torch.save, PyTorch 1.6 and later

    def _load_zip(self):
        try:
            archive = zipfile.ZipFile(self.stream)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
            raise Unusable(f"damaged or truncated zip file: {error}") from None
        entries = {info.filename: info for info in archive.infolist()}
        pickled = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
        if any(name.endswith("constants.pkl") for name in entries):
            raise Unusable("a TorchScript archive: save the state_dict() with torch.save instead")
        if len(entries) > MAX_ENTRIES or len(pickled) != 1:
            raise Unusable("the zip file is no PyTorch checkpoint (no single data.pkl in it)")
        folder = pickled[0][:-len("data.pkl")]
        if folder + "byteorder" in entries:
            self.big_endian = self._entry(archive, entries[folder + "byteorder"], 16) == b"big"
        storages = Storages(self.size)
        data = self._entry(archive, entries[pickled[0]], MAX_PICKLE)
        root = Machine(storages).run(io.BytesIO(data))
        for storage in storages.by_key.values():
            info = entries.get(f"{folder}data/{storage.key}")
            wanted = storage.elements * ITEM_BYTES[storage.dtype]
            if info is None:
                raise Unusable(f"storage '{storage.key}' is not in the zip file")
            if info.file_size != wanted:
                raise Unusable(f"storage '{storage.key}' claims {wanted} bytes, its record holds "
                               f"{info.file_size}")
            storage.read = lambda info=info, wanted=wanted: self._entry(archive, info, wanted)
        return root

    def _entry(self, archive, info, limit):
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Unusable(f"{info.filename} is compressed; torch.save never does that")
        if info.file_size > min(limit, self.size):
            raise Unusable(f"{info.filename} claims {info.file_size} bytes, too many")
        try:
            return archive.read(info)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError,
                EOFError, struct.error) as error:
            raise Unusable(f"{info.filename}: {error or 'truncated'}") from None

    # torch.save before 1.6: magic number, protocol, system, object, storage keys, storages

    def _load_legacy(self):
        stream = Bounded(self.stream, self.size)
        if Machine(no_persistent).run(stream) != MAGIC:
            raise Unusable("a pickle, but none that torch.save wrote")
        if Machine(no_persistent).run(stream) != 1001:
            raise Unusable("an unknown protocol version of torch.save")
        system = Machine(no_persistent).run(stream)
        self.big_endian = isinstance(system, dict) and system.get("little_endian") is False
        storages = Storages(self.size)
        root = Machine(storages).run(stream)
        keys = Machine(no_persistent).run(stream)
        if not isinstance(keys, list) or len(keys) > MAX_STORAGES:
            raise Unusable("the list of storages is damaged")
        for key in keys:
            storage = storages.by_key.get(key) if isinstance(key, str) else None
            if storage is None or storage.read is not None:
                raise Unusable(f"the list of storages names {key!r}, which no tensor uses or twice")
            self._place(storage)
        missing = [key for key, storage in storages.by_key.items() if storage.read is None]
        if missing:
            raise Unusable(f"storage '{missing[0]}' is missing in the list of storages")
        return root

    def _place(self, storage):
        count = self.stream.read(8)
        start = self.stream.tell()
        size = storage.elements * ITEM_BYTES[storage.dtype]
        if len(count) != 8:
            raise Unusable(f"the file ends before storage '{storage.key}': truncated")
        stored = struct.unpack(">q" if self.big_endian else "<q", count)[0]
        if stored != storage.elements:
            raise Unusable(f"storage '{storage.key}' claims {storage.elements} elements, the file "
                           f"says {stored}")
        if start + size > self.size:
            raise Unusable(f"the file ends inside storage '{storage.key}': truncated")
        storage.read = lambda: self._at(start, size)
        self.stream.seek(start + size)

    def _at(self, start, size):
        self.stream.seek(start)
        return self.stream.read(size)

    # safetensors

    def _load_safetensors(self):
        length = struct.unpack("<Q", self.stream.read(8))[0]
        if length > min(MAX_HEADER, self.size - 8):
            raise Unusable("the safetensors header is longer than the file")
        try:
            header = json.loads(self.stream.read(length), object_pairs_hook=_unique)
            self.metadata = header.pop("__metadata__", {})
            entries = sorted((e["data_offsets"][0], e["data_offsets"][1], name, e)
                             for name, e in header.items())
            position, root = 0, {}
            for begin, end, name, entry in entries:
                if type(begin) is not int or type(end) is not int or begin != position:
                    raise Unusable(f"tensor {name} does not begin where the one before it ends")
                root[name] = self._safe_tensor(name, entry, 8 + length + begin, end - begin)
                position = end
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise Unusable(f"damaged safetensors header: {error}") from None
        if 8 + length + position != self.size:
            raise Unusable(f"the safetensors header describes {8 + length + position} bytes, the "
                           f"file has {self.size}")
        return root

    def _safe_tensor(self, name, entry, start, size):
        dtype, shape = SAFE_DTYPES.get(entry["dtype"]), entry["shape"]
        if dtype is None:
            raise Unusable(f"tensor {name} has the element type {entry['dtype']!r}, not supported")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise Unusable(f"tensor {name} has a shape that is no list of sizes")
        strides, elements = [], 1
        for n in reversed(shape):
            strides.insert(0, elements)
            elements *= n
        if elements * ITEM_BYTES[dtype] != size:
            raise Unusable(f"tensor {name}: its shape and its {size} bytes do not agree")
        storage = Storage(name, dtype, elements)
        storage.read = lambda: self._at(start, size)
        return Tensor(storage, 0, shape, [min(s, elements) for s in strides])

    def array(self, value):
        """A Tensor or a pickled numpy array as an array in this machine's byte order."""
        if isinstance(value, Record):
            return _numpy_array(value)
        storage = value.storage
        raw = storage.read()
        if len(raw) != storage.elements * ITEM_BYTES[storage.dtype]:
            raise Unusable(f"the file ends inside storage '{storage.key}': truncated")
        order = ">" if self.big_endian and self.kind != "safetensors" else "<"
        if storage.dtype == "bfloat16":  # the upper half of a float32
            flat = np.frombuffer(raw, order + "u2").astype(np.uint32)
            flat = (flat << 16).view(np.float32)
        else:
            flat = np.frombuffer(raw, np.dtype(storage.dtype).newbyteorder(order))
        bytes_each = [stride * flat.itemsize for stride in value.strides]
        # Tensor has checked that the view stays inside the storage.
        view = np.lib.stride_tricks.as_strided(flat[value.offset:], value.shape, bytes_each)
        return _native(view)


def is_array(value):
    return isinstance(value, Tensor) or (
        isinstance(value, Record) and value.kind.endswith(".multiarray._reconstruct"))


def _numpy_array(record):
    """numpy's pickles: _reconstruct, then the state (version, shape, dtype, fortran, bytes)."""
    try:
        _, shape, dtype, fortran, raw = record.state
        code, order = dtype.arguments[0], dtype.state[1]
        if dtype.kind != "numpy.dtype" or code not in (
                "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
            raise Unusable(f"a numpy array of type {code!r} is not supported")
        flat = np.frombuffer(raw, np.dtype(code).newbyteorder("=" if order == "|" else order))
        array = flat.reshape(shape, order="F" if fortran else "C")
        return _native(array)
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise Unusable(f"a numpy array in the checkpoint is damaged: {error}") from None


def _native(array):
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _unique(pairs):
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)
