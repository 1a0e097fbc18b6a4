# SPDX-License-Identifier: Apache-2.0
"""Requests that break HTTP, clients that are slow, greedy or gone. Each is refused or cut, and the
daemon goes on as before (tearDown sees to that)."""
import re
import socket
import struct
import threading
import time
import unittest

import jemd_test
from jemd_test import SLOW, parse_answer, patience, read_all, run_job, sample, submit, wait_until

RSS_MARGIN_KB = 24 << 10


class Bad(jemd_test.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.want = cls.daemon.post("/v1/predict", sample(), "image/png").json()["results"]
        run_job(cls.daemon, {"type": "sample", "conditions": [{"count": 64}],
                             "sampler": {"steps": 2}})  # opens all workspaces

    def setUp(self):
        time.sleep(0.1)  # what the test before has closed is gone
        self.rss, self.files = self.daemon.rss_kb(), self.daemon.open_files()

    def tearDown(self):
        self.assertEqual(self.predicted(sample()), self.want, "it does not answer as before")
        wait_until(lambda: self.daemon.open_files() <= self.files, 5,
                   f"descriptors back from {self.daemon.open_files()} to {self.files}")
        if not SLOW:
            wait_until(lambda: self.daemon.rss_kb() < self.rss + RSS_MARGIN_KB, 5, "memory back")

    def raw(self, data, path="/livez"):
        """The answer to raw bytes, held against the contract, on a connection that then closes."""
        got = self.daemon.raw(data)
        self.assertTrue(got, "the connection was closed without an answer")
        self.assertEqual(len(re.findall(rb"HTTP/1\.1 \d{3} ", got)), 1, "not one answer: " + repr(got[:2000]))
        answer = parse_answer(got)
        self.daemon.check("GET", path, answer)
        return answer

    def counted(self, reason):
        """jemd_http_rejected_total of a reason."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(f'jemd_http_rejected_total{{reason="{reason}"}}'):
                return float(line.split()[-1])
        return 0


class Heads(Bad):
    def bad_head(self, *lines, says=(), code="bad_request", status=400, first=b"GET /livez HTTP/1.1"):
        data = b"\r\n".join([first, *lines, b"", b""]) + b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n"
        found = self.problem(self.raw(data), status, code)
        for words in says:
            self.assertIn(words, found["detail"])
        return found

    def test_two_lengths(self):
        for second in (b"0", b"5"):
            self.bad_head(b"Host: x", b"Content-Length: 5", b"Content-Length: " + second, says=("Content-Length", "once"))

    def test_a_length_and_chunks(self):
        for lines in ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), (b"Transfer-Encoding: chunked", b"Content-Length: 5")):
            self.bad_head(b"Host: x", *lines, says=("Transfer-Encoding",))

    def test_encodings_that_are_not_chunked(self):
        for value in (b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked", b"chunked;q=1", b""):
            self.bad_head(b"Host: x", b"Transfer-Encoding: " + value, says=("Transfer-Encoding",))
        self.bad_head(b"Host: x", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", says=("once",))

    def test_chunks_for_http_1_0(self):
        self.bad_head(b"Transfer-Encoding: chunked", first=b"GET /livez HTTP/1.0", says=("HTTP/1.0",))

    def test_a_space_before_the_colon(self):
        self.bad_head(b"Host: x", b"Content-Length : 5", says=("header name",))
        self.bad_head(b"Host: x", b"X-A : 5", says=("header name",))

    def test_two_hosts_no_host_and_hosts_that_are_none(self):
        self.bad_head(b"Host: x", b"Host: x", says=("Host",))
        self.bad_head(says=("Host",))
        self.bad_head(b"Host: a b", says=("Host",))
        self.bad_head(b"Host: a/b", says=("Host",))

    def test_names_and_values_that_are_not_allowed(self):
        for line in (b"X\x01: a", b"X(: a", b"\xc3\xa9: a", b"X-A: a\x01b", b"X-A: a\x7fb"):
            self.bad_head(b"Host: x", line)

    def test_a_folded_line(self):
        self.bad_head(b"Host: x", b"X-A: a", b" b", says=("folded",))

    def test_a_nul_in_the_head(self):
        self.bad_head(b"Host: x", b"X-A: a\0b")

    def test_headers_beyond_the_limit(self):
        found = self.bad_head(b"Host: x", b"X-A: " + b"a" * 65536, status=431, code="headers_too_large", says=("32768",))
        self.assertEqual(found["errors"][0]["limit"], 32768)
        self.bad_head(b"Host: x", *[b"X-%d: a" % i for i in range(200)], status=431, code="headers_too_large")

    def test_a_target_beyond_the_limit(self):
        found = self.bad_head(b"Host: x", first=b"GET /" + b"a" * 9000 + b" HTTP/1.1", status=414, code="uri_too_long", says=("8192",))
        self.assertEqual(found["errors"][0]["limit"], 8192)

    def test_targets_that_are_none(self):
        for target in (b"/%", b"/%4", b"/%zz", b"/%00", b"/livez#a", b"/a\x7f", b"/%ff", b"/%0a", b"/livez?a=%", b"/livez?a=%ff",
                       b"livez", b"ftp://x/livez"):
            self.bad_head(b"Host: x", first=b"GET " + target + b" HTTP/1.1")

    def test_targets_of_other_forms(self):
        for target in (b"http://elsewhere/livez", b"HTTP://x:80/livez?a=b", b"/l%69vez", b"/livez?"):
            answer = self.raw(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            self.assertEqual(answer.status, 200, target)

    def test_a_method_that_is_none(self):
        self.bad_head(b"Host: x", first=b"GE(T /livez HTTP/1.1", says=("method",))

    def test_a_method_in_lower_case_is_another_method(self):
        answer = self.daemon.raw_answer(b"get /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.problem(answer, 405, "method_not_allowed")

    def test_http_1_0_needs_no_host(self):
        self.assertEqual(self.raw(b"GET /livez HTTP/1.0\r\n\r\n").status, 200)

    def test_what_is_no_http_at_all_ends_the_connection(self):
        before = self.counted("malformed")
        for data in (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 500 + b"\r\n\r\n", b"hello\r\n\r\n",
                     b"GET /livez HTTP/3.0\r\nHost: x\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
                     b"GET  /livez  HTTP/1.1 x\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                     b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 300000 + b"\r\n\r\n"):
            got = self.daemon.raw(data, timeout=5)
            self.assertTrue(not got or 400 <= parse_answer(got).status < 600, got[:300])
        self.assertGreater(self.counted("malformed"), before)


class Bodies(Bad):
    FLAGS = ("--http.max_body_bytes=1M",)
    HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"

    def too_large(self, answer, limit):
        found = self.problem(answer, 413, "body_too_large")
        self.assertIn(str(limit), found["detail"])
        self.assertEqual(found["errors"][0]["limit"], limit)

    def test_a_body_declared_too_large_is_refused_before_it_comes(self):
        for more in (b"", b"Expect: 100-continue\r\n"):
            answer = self.daemon.raw_answer(self.HEAD + more + b"Content-Length: 1048577\r\n\r\n")
            self.too_large(answer, 1 << 20)
        answer = self.daemon.raw_answer(self.HEAD + b"Content-Length: 999999999999999999\r\n\r\n")
        self.too_large(answer, 1 << 20)

    def test_a_body_of_chunks_that_grows_too_large(self):
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        answer = self.daemon.raw_answer(self.HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + block * 17 + b"0\r\n\r\n")
        self.too_large(answer, 1 << 20)

    def test_a_body_of_chunks_without_end_is_cut(self):
        with self.daemon.socket() as s:
            s.sendall(self.HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            with self.assertRaises(OSError):
                for _ in range(4000):
                    s.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    def test_as_much_as_the_limit_is_taken(self):
        answer = self.predict(b"x" * (1 << 20))
        self.problem(answer, 422, "bad_image")

    def test_a_body_in_small_chunks_is_whole(self):
        data = sample()
        chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(data[i:i + 7]), data[i:i + 7]) for i in range(0, len(data), 7))
        answer = self.daemon.raw_answer(self.HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        self.assertEqual(self.good(answer)["results"], self.want)

    def test_expecting_clients_are_told_to_go_on(self):
        with self.daemon.socket() as s:
            s.sendall(self.HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(sample()))
            self.assertTrue(s.recv(100).startswith(b"HTTP/1.1 100 "))
            s.sendall(sample())
            self.assertEqual(self.good(parse_answer(read_all(s)))["results"], self.want)

    def test_small_routes_take_small_bodies(self):
        job = "/v1/jobs/00000000-0000-4000-8000-000000000000:cancel"
        self.problem(self.post(job, b"x" * 65536), 404, "not_found")
        self.too_large(self.post(job, b"x" * 65537), 65536)

    def test_get_takes_a_few_bytes_and_forgets_them(self):
        self.good(self.daemon.request("GET", "/livez", b"x" * 4096))
        self.too_large(self.daemon.request("GET", "/livez", b"x" * 4097), 4096)

    def test_broken_chunks_end_the_connection(self):
        for body in (b"xyz\r\n", b"-1\r\n", b"5\r\nab\r\n0\r\n\r\n", b"fffffffffffffffffff\r\n"):
            got = self.daemon.raw(self.HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"\r\n", timeout=5)
            self.assertTrue(not got or 400 <= parse_answer(got).status < 600, got[:300])

    def test_a_refused_body_is_not_read_as_the_next_request(self):
        inner = b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n"
        for head in (b"POST /nowhere HTTP/1.1\r\nHost: x\r\n", b"POST /livez HTTP/1.1\r\nHost: x\r\n"):
            last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            got = self.daemon.raw(head + b"Content-Length: %d\r\n\r\n" % len(inner) + inner + last)
            self.assertNotIn(b"there is no /nope", got)


class Slow(Bad):
    FLAGS = ("--http.header_timeout_ms=600", "--http.body_timeout_ms=800", "--http.idle_timeout_ms=700",
             "--http.write_timeout_ms=1000")

    def drip(self, first, rest, seconds):
        """Sends a byte every 0.1 s until cut; what came back and after how long."""
        with self.daemon.socket() as s:
            begin = time.monotonic()
            s.sendall(first)
            got = b""
            for i in range(int(patience(seconds) / 0.1)):
                try:
                    s.sendall(rest[i % len(rest):][:1])
                    s.settimeout(0.1)
                    more = s.recv(4096)
                    got += more
                    if not more:
                        return got, time.monotonic() - begin
                except socket.timeout:
                    continue
                except OSError:
                    return got, time.monotonic() - begin
            self.fail("a slow client was not cut")

    def test_a_client_that_sends_its_head_byte_by_byte_is_cut(self):
        before = self.counted("slow_headers")
        got, took = self.drip(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", b"aaaa", 5)
        self.assertEqual(got, b"")
        self.assertGreater(took, 0.5)
        self.assertGreater(self.counted("slow_headers"), before)

    def test_a_client_that_sends_nothing_is_cut(self):
        with self.daemon.socket(5) as s:
            self.assertEqual(s.recv(100), b"")

    def test_a_client_that_sends_its_body_byte_by_byte_is_cut(self):
        before = self.counted("slow_body")
        got, took = self.drip(Bodies.HEAD + b"Content-Length: 100000\r\n\r\n", sample(), 5)
        self.assertTrue(got == b"" or parse_answer(got).status == 408, got[:300])
        self.assertGreater(took, 0.7)
        self.assertGreater(self.counted("slow_body"), before)

    def test_a_slow_second_request_on_a_connection_is_cut_too(self):
        got, _ = self.drip(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 5)
        self.assertEqual(got.count(b"HTTP/1.1 200"), 1)

    def test_an_idle_connection_is_closed(self):
        with self.daemon.socket(10) as s:
            s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(read_all(s).startswith(b"HTTP/1.1 200"))

    def reader(self):
        """A connection that asks for much and has room for little."""
        s = socket.socket()
        self.addCleanup(s.close)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(patience(20))
        s.connect(("127.0.0.1", self.daemon.port))
        return s

    def test_a_client_that_reads_nothing_is_cut(self):
        s = self.reader()
        s.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        wait_until(lambda: self.daemon.open_files() > self.files, 5)
        wait_until(lambda: self.daemon.open_files() <= self.files, 8, "the cut")
        self.assertLess(len(read_all(s)), 6 << 20)

    @unittest.skipIf(SLOW, "a matter of time")
    def test_a_client_that_reads_slowly_is_not(self):
        s = self.reader()
        s.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 9
                  + b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got, begin = b"", time.monotonic()
        while time.monotonic() < begin + 3:
            got += s.recv(2048)
            time.sleep(0.1)
        got += read_all(s)
        self.assertEqual(got.count(b"HTTP/1.1 200"), 10)
        self.assertTrue(got.endswith(b"}"))


class Leaving(Bad):
    """Clients that leave while their request is under way."""
    FLAGS = ("--predict.threads=1", "--predict.queue_max=4096", "--predict.queue_ms=0")
    BODY = (b"\0" * 3072) * 64
    HEAD = (b"POST /v1/predict?include=approximate_mass HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"X-Image-Shape: 64,32,32,3\r\nContent-Length: %d\r\n\r\n" % len(BODY))

    def leave(self, s, reset):
        if reset:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()

    def test_during_a_prediction(self):
        for round_ in range(3):
            crowd = [self.daemon.socket() for _ in range(12)]
            for s in crowd:
                s.sendall(self.HEAD + self.BODY)
            for i, s in enumerate(crowd):
                self.leave(s, reset=i % 2)

    def test_in_the_middle_of_a_head_or_a_body(self):
        for i in range(30):
            with self.daemon.socket() as kept:  # whoever is accepted after it finds the daemon awake
                kept.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                s = self.daemon.socket()
                kept.recv(1000)
                s.sendall((self.HEAD + self.BODY)[:i * 3000 + 20])
                time.sleep(0.02)
                self.leave(s, reset=i % 2)

    def test_before_they_were_even_accepted(self):
        """Data and FIN are both there when the daemon first looks."""
        for data in (self.HEAD[:40], self.HEAD + self.BODY[:5000]):
            for _ in range(60):
                s = self.daemon.socket()
                s.sendall(data)
                s.close()

    def running(self):
        job = submit(self.daemon, {"type": "sample", "conditions": [{"count": 64}], "sampler": {"steps": 5000}})
        self.addCleanup(lambda: self.daemon.request("DELETE", "/v1/jobs/" + job["id"]))
        self.addCleanup(lambda: jemd_test.wait_ended(self.daemon, job["id"]))
        self.addCleanup(lambda: self.post(f"/v1/jobs/{job['id']}:cancel"))
        wait_until(lambda: self.get("/v1/jobs/" + job["id"]).json()["state"] == "running", 5)
        return "/v1/jobs/" + job["id"]

    def vanish(self, target, n=20):
        """Suspends n requests and leaves; the daemon must let go of their connections soon."""
        crowd = [self.daemon.socket() for _ in range(n)]
        for s in crowd:
            s.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target.encode())
        wait_until(lambda: self.daemon.open_files() >= self.files + n, 5, "all being there")
        time.sleep(0.3)
        for i, s in enumerate(crowd):
            self.leave(s, reset=i % 2)
        wait_until(lambda: self.daemon.open_files() < self.files + n // 2, 4, "letting go of vanished clients")

    def test_during_a_long_poll(self):
        self.vanish(self.running() + "?wait=20")

    def test_while_following_events(self):
        self.vanish(self.running() + "/events")

    def test_while_following_events_with_idle_connections_about(self):
        path = self.running()
        for _ in range(4):
            s = self.daemon.socket()
            self.addCleanup(s.close)
            s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            s.recv(1000)
        self.files += 4
        try:
            self.vanish(path + "/events")
        finally:
            self.doCleanups()
            self.files -= 4

    def test_a_client_that_only_closes_its_sending_side_is_answered(self):
        """As `nc -N` does, and some HTTP/1.0 clients."""
        head = Bodies.HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(sample())
        for request in (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", head + sample()):
            for _ in range(10):
                with self.daemon.socket() as s:
                    s.sendall(request)
                    s.shutdown(socket.SHUT_WR)
                    got = read_all(s)
                self.assertTrue(got.startswith(b"HTTP/1.1 200"), got[:700])


class Crowds(Bad):
    FLAGS = ("--http.max_connections_per_ip=40",)

    def test_one_address_may_have_so_many_connections(self):
        before = self.counted("per_ip_limit")
        wait_until(lambda: self.daemon.open_files() <= self.files, 5)
        crowd = [self.daemon.socket(5) for _ in range(40)]
        for s in crowd:
            s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(s.recv(100).startswith(b"HTTP/1.1 200"))
        with self.daemon.socket(5) as more:
            try:
                self.assertEqual(more.recv(100), b"")
            except ConnectionResetError:
                pass
        for s in crowd:
            s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertIn(b"{\"status\":\"ok\"}", s.recv(2000))
            s.close()
        wait_until(lambda: self.daemon.open_files() <= self.files, 5)
        self.assertGreater(self.counted("per_ip_limit"), before)

    def test_many_clients_at_once_are_all_answered(self):
        failures = []

        def client():
            for _ in range(20):
                try:
                    if self.get("/livez").status != 200:
                        failures.append("status")
                except OSError as error:
                    failures.append(repr(error))

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])


if __name__ == "__main__":
    unittest.main()
