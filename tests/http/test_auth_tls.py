# SPDX-License-Identifier: Apache-2.0
"""Who may do what, TLS, and the signals: reload, drain, end; systemd's sockets."""
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import jemd_test
from jemd_test import (BIN, MODEL, patience, read_all, run_job, sample, submit, wait_ended,
                       wait_until)

SCOPES = ("predict", "sample", "train", "read", "metrics", "admin")
JOB = {"type": "sample", "conditions": [{"count": 1}], "sampler": {"steps": 2}}


def new_key(name, *scopes):
    """(token, line for the keys file) of `jemd key new`."""
    done = subprocess.run([BIN, "key", "new", name, "--scopes", ",".join(scopes)], capture_output=True,
                          text=True, timeout=patience(10), check=True)
    return re.search(r"(jemd_[A-Za-z0-9_-]{43})\n", done.stderr).group(1), done.stdout


class Folder(jemd_test.Case):
    """A folder for the test; daemons are the tests' own."""

    @classmethod
    def setUpClass(cls):
        pass

    @classmethod
    def tearDownClass(cls):
        pass

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="jemd-test-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.daemon = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text, mode=0o600):
        """Installs a file as one should: by renaming."""
        with open(self.path(name + ".new"), "w" if isinstance(text, str) else "wb") as f:
            f.write(text)
        os.chmod(self.path(name + ".new"), mode)
        os.rename(self.path(name + ".new"), self.path(name))
        return self.path(name)

    def serve(self, *flags, **more):
        self.daemon = self.own_daemon(*flags, **more)
        return self.daemon

    def refused_start(self, *flags, says, codes=(1, 2)):
        daemon = self.own_daemon(*flags, start=False).spawn()
        self.assertIn(daemon.wait_exit(20), codes, daemon.log())
        self.assertFalse(daemon.logged("ready"))
        self.assertIn(says, daemon.log())

    def reload(self):
        n = len(self.daemon.logged("reloaded"))
        self.daemon.signal(signal.SIGHUP)
        wait_until(lambda: len(self.daemon.logged("reloaded")) > n, 10, "the reload")


class Keys(Folder):
    def setUp(self):
        super().setUp()
        self.tokens, lines = {}, "# keys of the test\n\n"
        for scope in SCOPES:
            self.tokens[scope], line = new_key("only-" + scope, scope)
            lines += line
        self.tokens["all"], line = new_key("all", *SCOPES)
        self.lines = lines + line
        self.keys = self.write("keys", self.lines)

    def bearer(self, name):
        return {"Authorization": "Bearer " + self.tokens[name]}

    def operations(self):
        """(method, path, the scopes of which it needs one, or None)."""
        self.daemon.get("/livez")
        for method, path, operation in self.daemon.contract.operations():
            scopes = {s for need in operation.get("security", []) for one in need.values() for s in one}
            path = (path.replace("{code}", "io").replace("{model}", "none").replace("{name}", "x")
                    .replace("{job}", "00000000-0000-4000-8000-000000000000"))
            yield method, path, scopes or None

    def test_every_route_wants_the_scope_that_the_contract_says(self):
        self.serve("--auth.keys=" + self.keys)
        count = 0
        for method, path, scopes in self.operations():
            count += scopes is not None
            for name in (*SCOPES, "all"):
                answer = self.daemon.request(method, path, headers=self.bearer(name))
                if scopes is None or name in scopes or name == "all":
                    self.assertNotIn(answer.status, (401, 403), (method, path, name))
                else:
                    found = self.problem(answer, 403, "forbidden")
                    self.assertTrue(all(s in found["detail"] for s in scopes), found["detail"])
                    self.assertIn(f"only-{name}", found["detail"])
            for headers in ({}, {"Authorization": "Bearer jemd_" + "A" * 43}, {"X-API-Key": "x"}):
                answer = self.daemon.request(method, path, headers=headers)
                if scopes is None:
                    self.assertNotIn(answer.status, (401, 403), (method, path))
                else:
                    self.problem(answer, 401, "unauthorized")
        self.assertGreater(count, 10)
        self.daemon.stop()

    def test_keys_come_in_either_header(self):
        self.serve("--auth.keys=" + self.keys)
        token = self.tokens["read"]
        for headers in ({"Authorization": "Bearer " + token}, {"Authorization": "bearer  " + token}, {"X-API-Key": token}):
            self.good(self.daemon.get("/v1/models", headers))
        for headers in ({"Authorization": "Basic " + token}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x"},
                        {"X-API-Key": token[:-1]}, {"X-API-Key": token + "x"}, {"X-API-Key": "x" * 5000}, {"X-API-Key": ""},
                        {"X-API-Key": self.lines.split()[5]}):
            self.problem(self.daemon.get("/v1/models", headers), 401, "unauthorized")

    def test_jobs_know_their_key(self):
        self.serve("--auth.keys=" + self.keys)
        self.daemon.key = self.tokens["all"]
        self.assertEqual(run_job(self.daemon, JOB)["client"], "all")

    def test_metrics_may_be_public(self):
        self.serve("--auth.keys=" + self.keys, "--auth.metrics_public=yes")
        self.assertEqual(self.daemon.get("/metrics").status, 200)
        self.problem(self.daemon.get("/v1/models"), 401, "unauthorized")

    def test_anonymous_callers_may_be_allowed_the_harmless_things(self):
        self.serve("--auth.keys=" + self.keys, "--auth.allow_anonymous=yes")
        self.good(self.daemon.get("/v1/models"))
        self.good(self.daemon.post("/v1/predict", sample(), "image/png"))
        self.assertEqual(run_job(self.daemon, JOB)["client"], "127.0.0.1")
        self.problem(self.daemon.get("/metrics"), 401, "unauthorized")
        self.problem(self.daemon.get("/v1/models", self.bearer("predict")), 403, "forbidden")

    def test_tokens_are_not_logged(self):
        self.serve("--auth.keys=" + self.keys)
        for headers in (self.bearer("read"), {"X-API-Key": self.tokens["read"]}):
            self.daemon.get("/v1/models", headers)
        self.assertIn("who=only-read", self.daemon.log())
        self.assertNotIn(self.tokens["read"], self.daemon.log())

    def test_sighup_reads_the_keys_again(self):
        self.serve("--auth.keys=" + self.keys)
        token, line = new_key("new", "read")
        self.problem(self.daemon.get("/v1/models", {"X-API-Key": token}), 401, "unauthorized")
        self.write("keys", line)
        self.reload()
        self.good(self.daemon.get("/v1/models", {"X-API-Key": token}))
        self.problem(self.daemon.get("/v1/models", self.bearer("read")), 401, "unauthorized")

    def test_a_broken_keys_file_leaves_the_old_keys(self):
        self.serve("--auth.keys=" + self.keys)
        for broken, mode in (("nonsense\n", 0o600), (self.lines + self.lines, 0o600), ("x " + "0" * 63 + " read\n", 0o600),
                             ("x " + "0" * 64 + " raed\n", 0o600), (self.lines, 0o666), (self.lines, 0o620)):
            n = len(self.daemon.logged("reload_keys_refused"))
            self.write("keys", broken, mode)
            self.reload()
            self.assertEqual(len(self.daemon.logged("reload_keys_refused")), n + 1)
            self.good(self.daemon.get("/v1/models", self.bearer("read")))
        os.unlink(self.keys)
        self.reload()
        self.good(self.daemon.get("/v1/models", self.bearer("read")))

    def test_broken_keys_at_the_start_are_refused(self):
        for text, mode, says in (("x\n", 0o600, "keys:1"), ("\n\nx y z\n", 0o600, "keys:3"), (self.lines, 0o666, "chmod")):
            self.write("keys", text, mode)
            self.refused_start("--auth.keys=" + self.keys, says=says)
        self.refused_start("--auth.keys=" + self.path("none"), says="none")

    def test_key_new_says_what_is_wrong(self):
        for arguments in (["new", "a b", "--scopes", "read"], ["new", "a", "--scopes", "raed"], ["new", "a", "--scopes", ""],
                          ["new", "a"], ["new"], []):
            done = subprocess.run([BIN, "key", *arguments], capture_output=True, text=True, timeout=patience(10))
            self.assertIn(done.returncode, (1, 2))
            self.assertTrue(done.stderr)
            self.assertEqual(done.stdout, "")

    def test_others_may_be_served_only_with_keys(self):
        for address in ("0.0.0.0", "::", "192.0.2.1"):
            self.refused_start("--http.address=" + address, says="auth.keys", codes=(2,))

    def test_settings_that_are_none_are_refused(self):
        for flag, says in (("--http.prot=1", "port"), ("--http.port=x", "http.port"), ("--htp.port=1", "http"),
                           ("--predict.max_images=512", "queue_max"), ("--log.level=loud", "debug")):
            self.refused_start(flag, says=says, codes=(2,))


def certificate(folder, name="127.0.0.1"):
    """Paths of a self-signed certificate and its key."""
    cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=" + name,
                    "-addext", "subjectAltName=IP:" + name, "-keyout", key, "-out", cert],
                   check=True, capture_output=True, timeout=patience(30))
    return cert, key


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class Tls(Folder):
    def setUp(self):
        super().setUp()
        self.cert, self.private = certificate(self.folder)

    def test_https_with_a_certificate_of_ones_own(self):
        daemon = self.serve("--http.tls_certificate=" + self.cert, "--http.tls_key=" + self.private)
        daemon.tls = ssl.create_default_context(cafile=self.cert)
        self.good(daemon.post("/v1/predict", sample(), "image/png"))
        job = run_job(daemon, JOB)
        self.assertIn(b"event: end", daemon.get(job["links"]["events"]).body)
        self.assertEqual(daemon.get(job["links"]["artifacts"] + "grid.png").status, 200)
        big = daemon.post("/v1/predict", b"\0" * (20 << 20), "image/png")
        self.problem(big, 422, "bad_image")
        with self.assertRaises(ssl.SSLCertVerificationError):
            daemon.tls = ssl.create_default_context()
            daemon.get("/livez")
        daemon.stop()

    def test_old_versions_are_not_spoken(self):
        daemon = self.serve("--http.tls_certificate=" + self.cert, "--http.tls_key=" + self.private)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            daemon.tls = ssl.create_default_context(cafile=self.cert)
            daemon.tls.minimum_version = daemon.tls.maximum_version = version
            self.good(daemon.get("/livez"))
        daemon.tls = ssl.create_default_context(cafile=self.cert)
        daemon.tls.set_ciphers("ALL:@SECLEVEL=0")
        daemon.tls.minimum_version = daemon.tls.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises((ssl.SSLError, OSError)):
            daemon.get("/livez")

    def test_plain_talk_to_a_tls_port_ends_the_connection(self):
        daemon = self.serve("--http.tls_certificate=" + self.cert, "--http.tls_key=" + self.private, "--http.header_timeout_ms=1000")
        for _ in range(20):
            got = daemon.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", timeout=5)
            self.assertNotIn(b"HTTP/1.1 200", got)
        daemon.tls = ssl.create_default_context(cafile=self.cert)
        self.good(daemon.get("/livez"))
        daemon.stop()

    def test_a_client_that_stalls_in_the_handshake_is_cut(self):
        daemon = self.serve("--http.tls_certificate=" + self.cert, "--http.tls_key=" + self.private, "--http.header_timeout_ms=600")
        with daemon.socket(10) as s:
            s.sendall(b"\x16\x03\x01\x02\x00\x01")
            self.assertEqual(read_all(s), b"")

    def test_certificates_that_do_not_work_are_refused(self):
        other = tempfile.TemporaryDirectory()
        self.addCleanup(other.cleanup)
        other_key = certificate(other.name)[1]
        garbage = self.write("garbage", "hello")
        for cert, key, says in ((self.cert, "", "http.tls_key"), ("", self.private, "http.tls_certificate"),
                                (self.path("none"), self.private, "none"), (garbage, self.private, ""), (self.cert, garbage, ""),
                                (self.cert, other_key, "")):
            self.refused_start("--http.tls_certificate=" + cert, "--http.tls_key=" + key, says=says)


def version_of(model, version):
    """A model file with another version in its description."""
    length = struct.unpack("<Q", model[:8])[0]
    header = json.loads(model[8:8 + length])
    description = json.loads(header["__metadata__"]["jemd"])
    description["version"] = version
    header["__metadata__"]["jemd"] = json.dumps(description)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + model[8 + length:]


class Models(Folder):
    def setUp(self):
        super().setUp()
        with open(MODEL, "rb") as f:
            self.bytes = version_of(f.read(), "1")
        self.write("m.safetensors", self.bytes)
        self.serve("--models.directory=" + self.folder)

    def served(self):
        return self.good(self.daemon.get("/v1/models/sprites"))

    def test_a_new_version_is_swapped_in_without_a_failed_request(self):
        stop, seen, failed = threading.Event(), set(), []

        def predict():
            while not stop.is_set():
                answer = self.daemon.post("/v1/predict", sample(), "image/png", check=False)
                if answer.status == 200:
                    seen.add((answer.json()["version"], answer.json()["digest"], answer.json()["results"][0]["energy"]))
                else:
                    failed.append(answer)

        def look():
            while not stop.is_set():
                answer = self.daemon.get("/v1/models/sprites", check=False)
                if answer.status != 200:
                    failed.append(answer)

        threads = [threading.Thread(target=f) for f in (predict, predict, predict, look)]
        for thread in threads:
            thread.start()
        try:
            for version in ("2", "3", "4"):
                self.write("m.safetensors", version_of(self.bytes, version))
                self.reload()
                self.assertEqual(self.served()["version"], version)
                wait_until(lambda: version in {v for v, _, _ in seen}, 10)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.assertEqual(failed, [])
        self.assertEqual(len({v for v, _, _ in seen}), 4)
        self.assertEqual(len({d for _, d, _ in seen}), 4)
        self.assertEqual(len({e for _, _, e in seen}), 1)
        self.daemon.stop()

    def test_a_broken_version_leaves_the_old_one_serving(self):
        old = self.served()
        nan = bytearray(self.bytes)
        at = 8 + struct.unpack("<Q", nan[:8])[0]
        nan[at:at + 4000] = struct.pack("<f", float("nan")) * 1000
        for broken in (b"", b"x" * 100, self.bytes[:-1], self.bytes[:100000], self.bytes + b"x",
                       self.bytes.replace(b'\\"name\\": \\"sprites\\"', b'\\"name\\": 0000000000').replace(
                           b'\\"name\\":\\"sprites\\"', b'\\"name\\":0000000000'), bytes(nan)):
            self.write("m.safetensors", broken)
            self.reload()
            now = self.served()
            self.assertEqual((now["digest"], now["state"]), (old["digest"], "serving_older_version"), broken[:20])
            self.assertIn("m.safetensors", now["error"])
            ready = self.good(self.daemon.get("/readyz?verbose"))
            (check,) = [c for c in ready["checks"] if c["name"] == "sprites"]
            self.assertEqual((check["ok"], check["detail"]), (False, now["error"]))
            self.good(self.daemon.post("/v1/predict", sample(), "image/png"))
        self.write("m.safetensors", version_of(self.bytes, "2"))
        self.reload()
        now = self.served()
        self.assertEqual((now["version"], now["state"]), ("2", "serving"))
        self.assertNotIn("error", now)

    def test_a_job_ends_with_the_model_it_began_with(self):
        accepted = submit(self.daemon, {**JOB, "conditions": [{"count": 16}], "sampler": {"steps": 300}})
        self.write("m.safetensors", version_of(self.bytes, "2"))
        self.reload()
        done = wait_ended(self.daemon, accepted["id"])
        self.assertEqual((done["state"], done["model"]["version"]), ("succeeded", "1"))
        self.assertEqual(self.served()["version"], "2")

    def test_a_model_that_is_taken_away_is_gone(self):
        os.unlink(self.path("m.safetensors"))
        self.reload()
        self.assertEqual(self.daemon.get("/v1/models").json(), {"models": []})
        self.assertEqual(self.daemon.get("/readyz").status, 503)
        self.problem(self.daemon.post("/v1/predict", sample(), "image/png"), 404, "not_found")
        self.problem(self.daemon.post("/v1/jobs", JOB), 404, "not_found")
        self.write("m.safetensors", self.bytes)
        self.reload()
        self.assertEqual(self.daemon.get("/readyz").status, 200)

    def test_a_second_model(self):
        length = struct.unpack("<Q", self.bytes[:8])[0]
        header = json.loads(self.bytes[8:8 + length])
        description = json.loads(header["__metadata__"]["jemd"])
        description["name"] = "another"
        header["__metadata__"]["jemd"] = json.dumps(description)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.write("n.safetensors", struct.pack("<Q", len(text)) + text + self.bytes[8 + length:])
        self.reload()
        models = self.daemon.get("/v1/models").json()["models"]
        self.assertEqual(sorted(m["name"] for m in models), ["another", "sprites"])
        self.assertEqual(sum(m["default"] for m in models), 1)
        self.good(self.daemon.post("/v1/models/another:predict", sample(), "image/png"))
        found = self.problem(self.daemon.get("/v1/models/anther"), 404, "not_found")
        self.assertEqual(found["errors"][0]["did_you_mean"], "another")

    def test_two_files_of_one_name_are_one_too_many(self):
        self.write("n.safetensors", version_of(self.bytes, "2"))
        self.reload()
        self.assertEqual(len(self.daemon.get("/v1/models").json()["models"]), 1)
        self.assertIn("sprites", self.daemon.logged("model_refused")[0])
        self.assertIn("n.safetensors", self.good(self.daemon.get("/readyz?verbose"))["checks"][-1]["detail"])


class Signals(Folder):
    BODY = (b"\0" * 3072) * 64
    HEAD = (b"POST /v1/predict?include=approximate_mass&timeout_ms=600000 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"X-Image-Shape: 64,32,32,3\r\nContent-Length: %d\r\n\r\n" % len(BODY))

    def long_job(self):
        accepted = submit(self.daemon, {**JOB, "conditions": [{"count": 64}], "sampler": {"steps": 5000}})
        wait_until(lambda: self.daemon.get("/v1/jobs/" + accepted["id"]).json()["state"] == "running", 5)
        return "/v1/jobs/" + accepted["id"]

    def ends(self, code, seconds):
        self.assertEqual(self.daemon.wait_exit(seconds), code, self.daemon.log()[-2000:])

    def test_sigterm_lets_requests_in_flight_finish(self):
        self.serve("--predict.threads=1", "--predict.queue_max=4096", "--predict.queue_ms=0", "--http.threads=1", "--shutdown.drain_ms=600000")
        path = self.long_job()
        crowd = [self.daemon.socket(30) for _ in range(12)]
        for s in crowd:
            s.sendall(self.HEAD + self.BODY)
        poll, events = self.daemon.socket(30), self.daemon.socket(30)
        poll.sendall(b"GET %s?wait=30 HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        events.sendall(b"GET %s/events HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        self.assertTrue(events.recv(65536).startswith(b"HTTP/1.1 200"))
        for s in crowd:  # the last is in once the one thread that reads has answered this
            self.daemon.get("/livez")
        begin = time.monotonic()
        self.daemon.signal(signal.SIGTERM)
        for s in crowd:
            got = read_all(s)
            self.assertTrue(got.startswith(b"HTTP/1.1 200"), got[:500])
            self.assertTrue(got.endswith(b"}"))
        got = read_all(poll)
        self.assertTrue(got.startswith(b"HTTP/1.1 200"), got[:500])
        self.assertIn(b'"state":"running"', got)
        self.assertTrue(read_all(events).endswith(b"0\r\n\r\n"))
        self.ends(0, 20)
        self.assertLess(time.monotonic() - begin, patience(10))
        self.assertTrue(self.daemon.logged("job_released"))
        for s in (*crowd, poll, events):
            s.close()
        with self.assertRaises(OSError):
            self.daemon.socket()

    def test_sigint_ends_it_too(self):
        self.serve()
        self.daemon.signal(signal.SIGINT)
        self.ends(0, 10)

    def stuck(self):
        """A client in the middle of its body."""
        s = self.daemon.socket()
        self.addCleanup(s.close)
        s.sendall(self.HEAD + self.BODY[:1000])
        time.sleep(0.2)

    def test_a_second_signal_ends_it_at_once(self):
        for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)):
            self.serve()
            self.stuck()
            self.daemon.signal(first)
            wait_until(lambda: self.daemon.logged("stopping"), 5)
            time.sleep(0.3)
            self.assertIsNone(self.daemon.process.poll())
            begin = time.monotonic()
            self.daemon.signal(second)
            self.ends(1, 5)
            self.assertLess(time.monotonic() - begin, patience(1))

    def test_the_drain_has_an_end(self):
        self.serve("--shutdown.drain_ms=500")
        self.stuck()
        begin = time.monotonic()
        self.daemon.signal(signal.SIGTERM)
        self.ends(0, 10)
        self.assertLess(time.monotonic() - begin, patience(4))

    def test_sighup_during_the_drain_is_ignored(self):
        self.serve("--shutdown.drain_ms=1000")
        self.stuck()
        self.daemon.signal(signal.SIGTERM)
        wait_until(lambda: self.daemon.logged("stopping"), 5)
        self.daemon.signal(signal.SIGHUP)
        self.ends(0, 10)

    def test_a_storm_of_sighups(self):
        self.serve()
        for i in range(5000):
            self.daemon.signal(signal.SIGHUP)
            if i % 50 == 0:
                time.sleep(0.0005)
        self.assertIsNone(self.daemon.process.poll(), "a signal has killed it")
        self.good(self.daemon.post("/v1/predict", sample(), "image/png"))
        self.daemon.stop()

    def test_stopping_while_jobs_begin_and_end(self):
        for delay in (0, 0.01, 0.05, 0.2):
            self.serve()
            stop = threading.Event()

            def submitting(daemon):
                while not stop.is_set():
                    try:
                        daemon.post("/v1/jobs", {**JOB, "deadline": "2020-01-01T00:00:00Z"}, check=False)
                        daemon.post("/v1/jobs", JOB, check=False)
                    except OSError:
                        return

            thread = threading.Thread(target=submitting, args=(self.daemon,))
            thread.start()
            time.sleep(0.1 + delay)
            try:
                self.daemon.stop()
            finally:
                stop.set()
                thread.join()

    def test_a_port_that_is_taken(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            self.refused_start(f"--http.port={port}", says=str(port))

    def test_a_model_that_is_broken_at_the_start(self):
        self.write("broken.safetensors", b"x" * 100)
        self.refused_start("--models.model=" + self.path("broken.safetensors"), says="broken.safetensors")
        self.serve("--models.directory=" + self.folder)
        self.assertEqual(self.daemon.get("/readyz").status, 503)
        self.assertEqual(self.daemon.get("/livez").status, 200)


PASS_ON = ("import os, sys; os.dup2(int(sys.argv[1]), 3, True); "
           "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2]); os.execv(sys.argv[3], sys.argv[3:])")


class Systemd(Folder):
    def activated(self, listener, n="1", start=True, *flags):
        fd = listener.fileno()
        return self.serve(*flags, start=start, descriptors=(fd,), wrapper=[sys.executable, "-c", PASS_ON, str(fd), n])

    def test_a_socket_that_is_handed_over(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            early = socket.create_connection(listener.getsockname(), patience(10))
            early.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            daemon = self.activated(listener)
            self.assertEqual(daemon.port, listener.getsockname()[1])
            self.assertTrue(read_all(early).startswith(b"HTTP/1.1 200"))
            early.close()
            self.good(daemon.post("/v1/predict", sample(), "image/png"))
            daemon.stop()

    def test_what_is_no_listening_socket_is_refused(self):
        for make, n in ((socket.socket, "1"), (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "1"), (socket.socket, "2")):
            with make() as s:
                daemon = self.activated(s, n, False).spawn()
                self.assertIn(daemon.wait_exit(20), (1, 2))
                self.assertIn("ListenStream", daemon.log())

    def test_readiness_and_reloads_are_told(self):
        for address in (self.path("notify"), "\0jemd-test-%d" % os.getpid()):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.bind(address)
                s.settimeout(patience(20))
                daemon = self.serve(environment={"NOTIFY_SOCKET": address.replace("\0", "@")})
                self.assertEqual(s.recv(1000), b"READY=1")
                daemon.signal(signal.SIGHUP)
                told = s.recv(1000).decode().split("\n")
                self.assertEqual(told[0], "RELOADING=1")
                self.assertRegex(told[1], r"^MONOTONIC_USEC=\d+$")
                self.assertEqual(s.recv(1000), b"READY=1")
                daemon.signal(signal.SIGTERM)
                self.assertEqual(s.recv(1000), b"STOPPING=1")
                self.assertEqual(daemon.wait_exit(20), 0)


if __name__ == "__main__":
    unittest.main()
