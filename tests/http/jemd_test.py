# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder share: a daemon of one's own, clients of several kinds, images.

JEMD_BIN is the daemon (default build/release), JEMD_SOURCE the tree. JEMD_SLOW=1 says that the
daemon is a slow one (sanitizers): limits grow and what only measures time is skipped.
"""
import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest
import zlib

import contract

SOURCE = os.environ.get("JEMD_SOURCE") or os.path.abspath(
    os.path.join(os.path.dirname(__file__), "..", ".."))
BIN = os.environ.get("JEMD_BIN") or os.path.join(SOURCE, "build", "release", "server", "jemd")
MODELS = os.path.join(SOURCE, "models")
MODEL = os.path.join(MODELS, "sprites.safetensors")
SAMPLES = os.path.join(SOURCE, "tests", "samples")
SLOW = os.environ.get("JEMD_SLOW") == "1"


def patience(seconds):
    """How long something that should take less than `seconds` is waited for."""
    return seconds * (12 if SLOW else 1)


def wait_until(condition, seconds, what="it"):
    """The first true value of condition(), polled; an error after patience(seconds)."""
    until = time.monotonic() + patience(seconds)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"{what} did not happen within {patience(seconds)} s")
        time.sleep(0.01)


class Answer:
    """status, headers (names in lower case), body."""

    def __init__(self, status, pairs, body):
        self.status, self.pairs, self.body = status, pairs, body
        self.headers = {name.lower(): value for name, value in pairs}

    def json(self):
        return contract.strict_json(self.body)

    def __repr__(self):
        return f"<{self.status} {self.headers.get('content-type')} {self.body[:400]!r}>"


class Daemon:
    """One jemd, on a free loopback port, with its own state. start() waits until it is ready."""

    def __init__(self, *flags, environment=None, descriptors=(), wrapper=()):
        self.folder = tempfile.TemporaryDirectory(prefix="jemd-test-")
        self.log_path = os.path.join(self.folder.name, "log")
        self.flags = ["--http.port=0", "--models.directory=" + MODELS,
                      "--models.cache=" + os.path.join(self.folder.name, "cache"),
                      "--store.directory=" + os.path.join(self.folder.name, "jobs"),
                      "--compute.share=" + self.folder.name, *flags]
        self.environment = {k: v for k, v in os.environ.items()
                            if not k.startswith(("JEMD_", "LISTEN_", "NOTIFY_"))}
        self.environment.update(environment or {})
        self.descriptors, self.wrapper = descriptors, list(wrapper)
        self.process = None
        self.port = 0
        self.contract = None
        self.tls = None  # an ssl context
        self.key = None

    def spawn(self):
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                self.wrapper + [BIN, "serve", *self.flags], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=self.environment, pass_fds=self.descriptors)
        return self

    def start(self):
        self.spawn()
        try:
            wait_until(lambda: self.process.poll() is not None or self.logged("ready"), 20, "ready")
        except AssertionError:
            self.kill()
            raise
        ready = self.logged("ready")
        if not ready:
            self.kill()
            raise AssertionError("jemd ended at once: " + self.log())
        self.port = int(re.search(r"port=(\d+)", ready[0]).group(1))
        return self

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def logged(self, event):
        """The log lines of an event."""
        return re.findall(rf"^.*\bevent={event}\b.*$", self.log(), re.M)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def wait_exit(self, seconds):
        return self.process.wait(patience(seconds))

    def stop(self):
        """SIGTERM; it must end by itself, in time, with 0."""
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
            code = self.wait_exit(30)
            if code != 0 or not self.logged("stopped"):
                raise AssertionError(f"jemd ended with {code}: ... {self.log()[-3000:]}")
        finally:
            self.kill()

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def discard(self):
        self.kill()
        self.folder.cleanup()

    def status_kb(self, field):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
            return int(re.search(rf"^{field}:\s+(\d+) kB", f.read(), re.M).group(1))

    def rss_kb(self):
        return self.status_kb("VmRSS")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # clients

    def connection(self, timeout=60):
        address = ("127.0.0.1", self.port)
        if self.tls:
            return http.client.HTTPSConnection(*address, timeout=patience(timeout), context=self.tls)
        return http.client.HTTPConnection(*address, timeout=patience(timeout))

    def request(self, method, path, body=None, headers=None, check=True, timeout=60):
        """One request on a connection of its own; the answer must be what the contract says."""
        headers = dict(headers or {})
        if self.key and "Authorization" not in headers:
            headers["Authorization"] = "Bearer " + self.key
        connection = self.connection(timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()
        if check:
            sent = None
            if body and headers.get("Content-Type") == "application/json" and answer.status < 300:
                sent = json.loads(body)
            self.check(method, path, answer, sent)
        return answer

    def check(self, method, path, answer, sent=None):
        if not self.contract:
            document = self.request("GET", "/openapi.json", check=False).json()
            self.contract = contract.Contract(document)
        try:
            self.contract.check(method, path, answer, sent)
        except contract.Broken as broken:
            raise contract.Broken(f"{method} {path}: {broken} ({answer!r})") from None

    def get(self, path, headers=None, **more):
        return self.request("GET", path, None, headers, **more)

    def post(self, path, body=b"", content_type="application/json", headers=None, **more):
        """A body of JSON may be given as what it stands for."""
        if not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        return self.request("POST", path, body, {"Content-Type": content_type, **(headers or {})}, **more)

    def socket(self, timeout=20):
        return socket.create_connection(("127.0.0.1", self.port), patience(timeout))

    def raw(self, data, timeout=20):
        """Sends bytes and returns all that comes until the daemon closes the connection."""
        with self.socket(timeout) as s:
            try:
                s.sendall(data)
            except OSError:
                pass  # it has answered and closed before the end
            return read_all(s)

    def raw_answer(self, data, timeout=20):
        """The same, the first answer taken apart; None if the connection was closed without one."""
        got = self.raw(data, timeout)
        return parse_answer(got) if got else None


def read_all(s):
    data = b""
    while True:
        try:
            more = s.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def parse_answer(data):
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    pairs = [tuple(line.split(": ", 1)) for line in lines[1:]]
    length = {n.lower(): v for n, v in pairs}.get("content-length")
    return Answer(int(lines[0].split()[1]), pairs, body[:int(length)] if length else body)


class Case(unittest.TestCase):
    """Tests with one daemon for the class; FLAGS are its settings."""
    FLAGS = ()
    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon(*cls.FLAGS)
        cls.addClassCleanup(cls.daemon.discard)
        cls.daemon.start()

    @classmethod
    def tearDownClass(cls):
        cls.daemon.stop()

    def own_daemon(self, *flags, start=True, **more):
        """One for this test alone."""
        daemon = Daemon(*flags, **more)
        self.addCleanup(daemon.discard)
        return daemon.start() if start else daemon

    def get(self, path, headers=None, **more):
        return self.daemon.get(path, headers, **more)

    def post(self, path, body=b"", content_type="application/json", headers=None, **more):
        return self.daemon.post(path, body, content_type, headers, **more)

    def good(self, answer, status=200):
        self.assertEqual(answer.status, status, answer)
        return answer.json() if answer.body else None

    def problem(self, answer, status, code):
        """The problem document, which must be this one."""
        self.assertIsNotNone(answer, "the connection was closed without an answer")
        self.assertEqual(answer.status, status, answer)
        self.assertEqual(answer.headers.get("content-type"), contract.PROBLEM, answer)
        problem = answer.json()
        self.assertEqual(problem["code"], code, problem)
        self.assertGreater(len(problem["detail"]), 10, problem)
        return problem

    def predict(self, body, content_type="image/png", query="", **more):
        return self.post("/v1/predict" + query, body, content_type, **more)

    def predicted(self, body, content_type="image/png", query="", **more):
        """The results."""
        return self.good(self.predict(body, content_type, query, **more))["results"]


# Jobs

ENDED = ("succeeded", "failed", "canceled", "expired")


def submit(daemon, job, headers=None):
    """The job as accepted."""
    answer = daemon.post("/v1/jobs", job, headers=headers)
    if answer.status != 202:
        raise AssertionError(f"not accepted: {answer!r}")
    return answer.json()


def wait_ended(daemon, job_id, seconds=60):
    until = time.monotonic() + patience(seconds)
    while time.monotonic() < until:
        job = daemon.get(f"/v1/jobs/{job_id}?wait=5").json()
        if job["state"] in ENDED:
            return job
    raise AssertionError(f"job {job_id} is {job['state']} after {patience(seconds)} s")


def run_job(daemon, job, seconds=60):
    """Submits, waits, and wants it to succeed."""
    done = wait_ended(daemon, submit(daemon, job)["id"], seconds)
    if done["state"] != "succeeded":
        raise AssertionError(f"the job {done['state']}: {done['error']}")
    return done


# Images

def sample_list():
    with open(os.path.join(SAMPLES, "samples.json"), encoding="utf-8") as f:
        return json.load(f)


def sample(name="orc-blue-hair.png"):
    with open(os.path.join(SAMPLES, name), "rb") as f:
        return f.read()


def b64(data):
    return base64.b64encode(data).decode()


def chunk(name, data, crc=None):
    """One chunk of a PNG."""
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(width, height, rows, depth=8, colour=2, extra=b""):
    """A PNG of raw rows, each with its filter byte."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (SIGNATURE + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows, 9))
            + chunk(b"IEND", b""))


def save(image, kind, **options):
    """A PIL image as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def form(parts):
    """[(name, filename or None, type, bytes)] as (body, content type)."""
    boundary, out = "------------------------9f1a2b", b""
    for name, filename, kind, data in parts:
        file = f'; filename="{filename}"' if filename else ""
        out += (f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n'
                f"Content-Type: {kind}\r\n\r\n").encode() + data + b"\r\n"
    return out + f"--{boundary}--\r\n".encode(), "multipart/form-data; boundary=" + boundary
