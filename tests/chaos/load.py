# SPDX-License-Identifier: Apache-2.0
"""The load of kill.py: what the jobs are, clients that submit and change them, and what they know.

A client writes down what it was answered, so that everything it was promised can be asked for later. One
that got no answer sends the same again, with the same key.
"""
import base64
import copy
import hashlib
import http.client
import json
import random
import socket
import threading
import time

import numpy as np

from jemd_test import ENDED
from test_mcmc import KINDS, SIDE, grey

PRIORITIES = ("low", "normal", "high")


# What the jobs are

def sample(rng, number, kind, steps, count, **more):
    sampler = {"kind": kind, "steps": steps, **KINDS[kind], **more.pop("sampler", {})}
    return {"type": "sample", "model": "bowl", "seed": str(1000 + number), "sampler": sampler,
            "conditions": [{"count": count, "attributes": {"y": rng.choice(("low", "high"))}}],
            "outputs": ["grid", "images", "tensor", "trace"], "priority": rng.choice(PRIORITIES), **more}


def inpainting(rng, number, steps):
    pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE))
    mask = np.tri(SIDE) * 255
    kind = rng.choice(("sgld", "mala", "hmc"))
    return sample(rng, number, kind, steps, 4, image=grey(pixels), mask=grey(mask),
                  sampler={"start": {"kind": rng.choice(("image", "noise"))}})


def sprites(rng, number):
    """Of a real network: seconds of computing."""
    return {"type": "sample", "model": "sprites", "seed": str(number), "sampler": {"steps": 12},
            "conditions": [{"count": 2, "attributes": {"sex": rng.choice(("male", "female"))}}],
            "priority": rng.choice(PRIORITIES)}


def predictions(rng, number, model, images, *shape):
    """Of a tensor of noise: lines of JSON."""
    pixels = np.random.default_rng(number).integers(0, 256, (images, *shape), dtype=np.uint8)
    return {"type": "predict", "model": model, "include": rng.choice((["probabilities"], ["probabilities", "logits"])),
            "tensor": {"b64": base64.b64encode(pixels.tobytes()).decode(), "shape": list(pixels.shape), "type": "uint8"},
            "priority": rng.choice(PRIORITIES)}


def documents(seed, real=True):
    """Requests of every kind, long and short; each may be sent any number of times."""
    rng, out = random.Random(seed), []
    for kind in ("sgld", "gibbs", "mala", "hmc"):
        for steps, count in ((50, 2), (1000, 8), (6000, 8), (3000, 20)):
            out.append(sample(rng, len(out), kind, steps, count))
    for start in ("buffer", "gaussian"):
        out.append(sample(rng, len(out), "sgld", 3000, 6, sampler={"start": {"kind": start}}))
    for steps in (500, 5000, 10000):
        out.append(inpainting(rng, len(out), steps))
    for images in (3, 800):
        out.append(predictions(rng, len(out), "bowl", images, SIDE, SIDE, 1))
    if real:
        out += [predictions(rng, len(out) + i, "sprites", images, 32, 32, 3) for i, images in enumerate((20, 150))]
        out += [sprites(rng, len(out) + i) for i in range(2)]
    return out


# What they leave

def outcome(daemon_get, job):
    """(sha256 of each artifact's bytes by name, result) of a job that has succeeded."""
    digests = {}
    for artifact in job["result"]["artifacts"]:
        answer = daemon_get(job["links"]["artifacts"] + artifact["name"])
        if answer.status != 200:
            raise AssertionError(f"artifact {artifact['name']} of job {job['id']}: {answer!r}")
        digests[artifact["name"]] = hashlib.sha256(answer.body).hexdigest()
        if digests[artifact["name"]] != artifact["sha256"]:
            raise AssertionError(f"artifact {artifact['name']} of job {job['id']} is not what it was")
    return digests, job["result"]


class Item:
    """One submission and what is known of it."""

    def __init__(self, key, which, document):
        self.key, self.which, self.document = key, which, document
        self.id = None         # once accepted
        self.may_cancel = self.may_expire = False  # asked for, perhaps without an answer
        self.must_cancel = False  # the daemon has said that it is
        self.ended = None      # the job as it was first seen after its end
        self.lost = False      # named as lost to damage


class NoAnswer(Exception):
    pass


class Client(threading.Thread):
    """Keeps `active` jobs going at whatever daemon there is, from an address of its own."""

    def __init__(self, owner, number, active):
        super().__init__(daemon=True)
        self.owner, self.number, self.active = owner, number, active
        self.rng = random.Random(f"{owner.seed}/{number}")
        self.address = (f"127.0.0.{10 + number}", 0)
        self.items, self.error = [], None
        self.counts = dict.fromkeys(("submitted", "resubmitted", "no_answer", "refused", "canceled", "changed", "read"), 0)

    # talking

    def request(self, method, path, body=None, headers=None):
        """An answer that must be one of the daemon's, or NoAnswer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.port, timeout=20, source_address=self.address)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, data
        except (OSError, http.client.HTTPException, socket.timeout):
            self.counts["no_answer"] += 1
            raise NoAnswer from None
        finally:
            connection.close()

    def submit(self, item):
        status, data = self.request("POST", "/v1/jobs", item.document, {"Idempotency-Key": item.key})
        if status == 202:
            got = json.loads(data)["id"]
            if item.id not in (None, got):
                raise AssertionError(f"key {item.key} made jobs {item.id} and {got}")
            item.id = got
        elif status in (429, 503, 507):
            self.counts["refused"] += 1
        else:
            raise AssertionError(f"key {item.key}: {status} {data!r}")
        return status

    def new_item(self):
        which = self.rng.randrange(len(self.owner.documents))
        item = Item(f"{self.number}-{len(self.items)}", which, copy.deepcopy(self.owner.documents[which]))
        self.items.append(item)
        self.counts["submitted"] += 1
        return item

    def look(self, item):
        """The job, or None where the daemon cannot say just now."""
        status, data = self.request("GET", "/v1/jobs/" + item.id)
        self.counts["read"] += 1
        if status == 200:
            job = json.loads(data)
            if job["state"] in ENDED and not item.ended:
                item.ended = job
            if item.ended and job != item.ended:
                raise AssertionError(f"an ended job has changed: {item.ended} is now {job}")
            return job
        if status == 410 and self.owner.may_lose:
            item.lost = True
            return None
        if status != 503:
            raise AssertionError(f"job {item.id} (key {item.key}) was accepted: {status} {data!r}")
        return None

    def cancel(self, item):
        item.may_cancel = True
        status, data = self.request("POST", f"/v1/jobs/{item.id}:cancel")
        if status in (200, 202):
            self.counts["canceled"] += 1
            item.must_cancel |= json.loads(data)["state"] == "canceled"  # one that is canceling may still succeed
        elif status not in (409, 410, 503, 507):
            raise AssertionError(f"cancel of {item.id}: {status} {data!r}")

    def change(self, item):
        document = {"priority": self.rng.choice(PRIORITIES)}
        if self.rng.random() < .3:
            item.may_expire = True
            until = time.time() + self.rng.uniform(.2, 3)
            document["deadline"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(until)) + f".{int(until % 1 * 1000):03d}Z"
        status, data = self.request("PATCH", "/v1/jobs/" + item.id, document)
        self.counts["changed"] += status == 200
        if status not in (200, 409, 410, 503, 507):
            raise AssertionError(f"change of {item.id}: {status} {data!r}")

    # working

    def step(self):
        unsure = [i for i in self.items if not i.id]
        going = [i for i in self.items if i.id and not i.ended and not i.lost]
        if unsure:
            self.counts["resubmitted"] += 1
            if self.submit(unsure[0]) != 202:
                time.sleep(.1)
        elif len(going) < self.active and not self.owner.closing:
            self.submit(self.new_item())
        elif going:
            dice, item = self.rng.random(), self.rng.choice(going)
            if dice < .03:
                self.cancel(item)
            elif dice < .12:
                self.change(item)
            elif dice < .2 and self.items[0].id:
                self.look(self.rng.choice([i for i in self.items if i.id]))
            else:
                self.look(item)
            time.sleep(.01)
        else:
            time.sleep(.02)

    def run(self):
        while not self.owner.stop:
            if not self.owner.port:
                time.sleep(.005)
                continue
            try:
                self.step()
            except NoAnswer:
                time.sleep(.01)
            except Exception as error:  # pylint: disable=broad-except
                self.error = error
                return

