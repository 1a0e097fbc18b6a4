# SPDX-License-Identifier: Apache-2.0
"""Writes jemd's model file: safetensors with the description under __metadata__.jemd."""
import json
import os
import struct
import tempfile

import numpy as np

from . import Unusable

ALIGNMENT = 64  # of the first tensor byte in the file
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8"}


def safetensors_bytes(tensors, metadata):
    """The pieces of a safetensors file: header, then every tensor in order, F32 before U8."""
    ordered = sorted(tensors.items(), key=lambda item: item[1].dtype != np.float32)
    header, position = {"__metadata__": metadata}, 0
    for name, array in ordered:
        header[name] = {"dtype": DTYPES[array.dtype], "shape": list(array.shape),
                        "data_offsets": [position, position + array.nbytes]}
        position += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    yield struct.pack("<Q", len(text)) + text
    for _, array in ordered:
        yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def write_model(path, description, tensors):
    """Installs the file by rename, so that a running daemon never maps half of it. Its size."""
    text = json.dumps(description, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    folder = os.path.dirname(os.path.abspath(path))
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".import-", suffix=".safetensors")
        with os.fdopen(handle, "wb") as stream:
            for piece in safetensors_bytes(tensors, {"format": "jemd", "jemd": text}):
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o644 & ~mask)
        os.replace(temporary, path)
        temporary = None
        return size
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    finally:
        if temporary is not None:
            os.unlink(temporary)
