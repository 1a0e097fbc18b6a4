# SPDX-License-Identifier: Apache-2.0
"""Sampling jobs for the tests: requests, and what they leave."""
import json
import struct

import numpy as np

from jemd_test import run_job

LONG_STEPS = 5000


def job(count=2, steps=6, seed="7", **more):
    return {"type": "sample", "conditions": [{"count": count, "attributes": {"sex": "male"}}],
            "sampler": {"steps": steps}, "seed": seed, **more}


def long_job(**more):
    return job(64, LONG_STEPS, **more)


def drawn(daemon, document):
    """name -> bytes of what a job leaves."""
    done = run_job(daemon, document)
    return {a["name"]: daemon.get(done["links"]["artifacts"] + a["name"]).body
            for a in done["result"]["artifacts"]}


def tensors(data):
    """(arrays, metadata) of a safetensors file, which must have no holes."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    metadata, arrays, ends = header.pop("__metadata__"), {}, [0]
    for name, e in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = e["data_offsets"]
        assert first == ends[-1], name
        ends.append(end)
        kind = {"F32": "<f4", "I32": "<i4", "U8": "u1"}[e["dtype"]]
        arrays[name] = np.frombuffer(data[8 + length + first:8 + length + end], kind).reshape(e["shape"])
    assert 8 + length + ends[-1] == len(data)
    return arrays, metadata
