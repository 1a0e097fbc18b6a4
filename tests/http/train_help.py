# SPDX-License-Identifier: Apache-2.0
"""Training jobs for the tests: small images of stripes, a recipe for them, streams of events."""
import gzip
import hashlib
import http.client
import json
import os
import subprocess
import threading

from jemd_test import BIN, patience, png

SIDE = 8


def write_idx(path, shape, values):
    head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(head + bytes(values))


def stripes(folder, split, rows):
    """Stripes across or down, dark or bright."""
    os.makedirs(folder, exist_ok=True)
    images, labels = [], []
    for i in range(rows):
        down, bright = i % 2, i // 2 % 2
        for y in range(SIDE):
            for x in range(SIDE):
                at = (x if down else y) + i // 4 % 4
                noise = (x * 7 + y * 13 + i + len(split)) % 16
                images.append((170 if at // 2 % 2 else 20) + 50 * bright + noise)
        labels += [down, bright]
    write_idx(os.path.join(folder, split + "-images.idx3-ubyte.gz"), (rows, SIDE, SIDE), images)
    write_idx(os.path.join(folder, split + "-attr-cat.idx2-ubyte.gz"), (rows, 2), labels)


def picture():
    """One such image as a file."""
    rows = b"".join(b"\0" + bytes(190 if x // 2 % 2 else 40 for x in range(SIDE)) for _ in range(SIDE))
    return png(SIDE, SIDE, rows, colour=0)


def recipe(version="1", **training):
    conv = {"kind": "conv", "weights": "a", "in": 1, "out": 8, "kernel": 3, "stride": 1, "pad": 1}
    model = {"format": 1, "name": "stripes", "version": version, "family": "mixed",
             "input": {"channels": 1, "height": SIDE, "width": SIDE, "range": [-1, 1]},
             "layers": [conv, {"kind": "silu"}, {"kind": "flatten"},
                        {"kind": "linear", "weights": "b", "in": 512, "out": 4}],
             "attributes": [{"name": "way", "values": ["across", "down"]},
                            {"name": "tone", "values": ["dark", "bright"]}],
             "sampler": {"kind": "sgld", "steps": 20, "steps_buffer": 10, "step_rule": "normalised",
                         "step_size": 10, "step_norm": 0.02, "noise": 0.01, "clamp": [-1, 1]}}
    chains = {"count": 8, "buffer": 32, "steps": 4, "births": {"every": 5, "count": 4, "steps": 8}}
    return {"model": model, "training": {"steps": 200, "seed": 3, "batch": 8, "checkpoint_every": 50,
                                         "health": {"fresh": {"every": 0}}, "chains": chains} | training}


def by_command(folder, data, document, *more):
    """The bytes of the model that `jemd train` makes of a recipe."""
    path, out = os.path.join(folder, "recipe.json"), os.path.join(folder, "by-command")
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(document, stream)
    subprocess.run([BIN, "train", path, "--data", data, "--out", out, *more], check=True,
                   stderr=subprocess.DEVNULL, timeout=patience(300))
    with open(os.path.join(out, "model.safetensors"), "rb") as stream:
        return stream.read()


def make_impossible(path):
    """A training's checkpoint claims two thousand million buffer entries, and has the digest to it."""
    with open(path, "rb") as stream:
        whole = bytearray(stream.read())
    first = 8 + int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8:first])
    meta = head["__metadata__"]
    filled = first + head["progress"]["data_offsets"][0] + 7 * 8
    whole[filled:filled + 8] = (2 * 10**9).to_bytes(8, "little")
    content = hashlib.sha256()
    for key in ("layout", "training", "compute"):
        content.update(meta["jemd." + key].encode() + b"\0")
    for name in ("progress", "optimiser", "parameters", "average", "buffer.x", "buffer.age", "buffer.y"):
        start, end = head[name]["data_offsets"]
        content.update(whole[first + start:first + end])
    with open(path, "wb") as stream:
        stream.write(whole.replace(meta["jemd.content"].encode(), content.hexdigest().encode()))


class Events(threading.Thread):
    """Follows a job's events: list of (kind, data)."""

    def __init__(self, daemon, job_id):
        super().__init__(daemon=True)
        self.seen, self.changed, self.over = [], threading.Condition(), False
        connection = daemon.connection(120)
        headers = {"Authorization": "Bearer " + daemon.key} if daemon.key else {}
        connection.request("GET", f"/v1/jobs/{job_id}/events", headers=headers)
        self.response = connection.getresponse()
        self.connection = connection
        self.start()

    def run(self):
        kind = None
        try:
            for raw in self.response:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    with self.changed:
                        self.seen.append((kind, json.loads(line[6:])))
                        self.changed.notify_all()
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            pass  # the daemon has gone
        self.response.close()
        self.connection.close()
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def of(self, kind):
        with self.changed:
            return [data for k, data in self.seen if k == kind]

    def wait_for(self, condition, seconds, what):
        """The first true value of condition(events seen)."""
        with self.changed:
            value = self.changed.wait_for(lambda: condition(self.seen) or self.over, patience(seconds))
            value = condition(self.seen)
        if not value:
            raise AssertionError(f"{what} did not come; seen: {self.seen[-5:]}")
        return value

    def wait_for_step(self, step, seconds=60):
        return self.wait_for(lambda seen: next((d for k, d in reversed(seen) if k == "progress" and
                                                d["step"] >= step), None), seconds, f"step {step}")


class Clients:
    """Threads that predict all the time on connections that they keep."""

    def __init__(self, daemon, n=3):
        self.daemon, self.stopping = daemon, threading.Event()
        self.answers = [[] for _ in range(n)]  # (status, digest, energy) of each, in order
        self.errors = []
        self.threads = [threading.Thread(target=self.predict, args=(a,), daemon=True)
                        for a in self.answers]
        for thread in self.threads:
            thread.start()

    def predict(self, answers):
        body, connection = picture(), self.daemon.connection(60)
        try:
            while not self.stopping.is_set():
                connection.request("POST", "/v1/models/stripes:predict", body,
                                   {"Content-Type": "image/png"})
                response = connection.getresponse()
                document = json.loads(response.read())
                answers.append((response.status, document.get("digest"),
                                document["results"][0]["energy"] if response.status == 200 else document))
        except Exception as error:  # any failure is one
            self.errors.append(error)
        finally:
            connection.close()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(patience(60))
        return self.answers
