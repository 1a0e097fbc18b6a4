# SPDX-License-Identifier: Apache-2.0
"""Bodies, queries and headers that are wrong. Each is refused with the code and a sentence that
helps, costs nothing, and leaves a daemon that answers as before (tearDown sees to that)."""
import datetime
import io
import json
import struct
import threading
import time
import unittest
import zlib

import numpy as np
from PIL import Image

import jemd_test
from jemd_test import (SIGNATURE, SLOW, b64, chunk, form, png, run_job, sample, save, submit,
                       wait_ended)

JOB = {"type": "sample", "conditions": [{"count": 1, "attributes": {"sex": "male"}}], "seed": "7",
       "sampler": {"steps": 2}}
RSS_MARGIN_KB = 24 << 10


def peak_kb(daemon, request):
    """(answer, growth of the daemon's high-water mark) of a request."""
    before = daemon.rss_kb()
    with open(f"/proc/{daemon.pid}/clear_refs", "w", encoding="ascii") as f:
        f.write("5")
    return request(), daemon.status_kb("VmHWM") - before


class Bad(jemd_test.Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for _ in range(3):
            cls.want = cls.daemon.post("/v1/predict", sample(), "image/png").json()["results"]
        run_job(cls.daemon, {**JOB, "conditions": [{"count": 64}]})  # opens all workspaces
        big = save(Image.new("RGB", (4000, 4000)), "PNG", compress_level=1)
        for _ in range(2):
            cls.daemon.post("/v1/predict", big, "image/png")

    def setUp(self):
        self.rss = self.daemon.rss_kb()

    def tearDown(self):
        self.assertEqual(self.predicted(sample()), self.want, "it does not answer as before")
        if not SLOW:
            jemd_test.wait_until(lambda: self.daemon.rss_kb() < self.rss + RSS_MARGIN_KB, 5,
                                 f"memory back from {self.daemon.rss_kb()} kB to {self.rss} kB")

    def refused(self, answer, status, code, *says):
        """The problem, its sentence holding all of `says`."""
        found = self.problem(answer, status, code)
        for words in says:
            self.assertIn(words, found["detail"])
        return found

    def bad_job(self, job, status, code, *says, pointer=None, suggests=None, limit=None):
        """By validate and by submit alike."""
        for path in ("/v1/jobs:validate", "/v1/jobs"):
            found = self.refused(self.post(path, job), status, code, *says)
            self.check_error(found, pointer, suggests, limit)

    def check_error(self, found, pointer=None, suggests=None, limit=None):
        (error,) = found.get("errors", [{}])
        for name, want in (("pointer", pointer), ("did_you_mean", suggests), ("limit", limit)):
            if want is not None:
                self.assertEqual(error.get(name), want, found)


class Images(Bad):
    def bad_image(self, body, *says, code="bad_image", kind="image/png"):
        return self.refused(self.predict(body, kind), 422, code, *says)

    def test_a_png_cut_anywhere(self):
        whole = sample()
        for end in [*range(1, 60), *range(60, len(whole), 97), len(whole) - 1]:
            self.bad_image(whole[:end])
        self.bad_image(whole[:len(whole) // 2], "ends early")

    def test_a_jpeg_cut_anywhere(self):
        whole = save(Image.open(io.BytesIO(sample())).convert("RGB"), "JPEG")
        for end in range(1, len(whole) - 2, 41):
            self.bad_image(whole[:end], kind="image/jpeg")

    def test_a_png_with_a_wrong_crc(self):
        whole = sample()
        for name in (b"IHDR", b"IDAT"):
            at = whole.index(name)
            length = struct.unpack(">I", whole[at - 4:at])[0]
            broken = bytearray(whole)
            broken[at + 4 + length] ^= 1
            self.bad_image(bytes(broken))

    def test_bytes_flipped_at_random(self):
        rng = np.random.default_rng(3)
        jpeg = save(Image.open(io.BytesIO(sample())).convert("RGB"), "JPEG")
        for whole in (sample(), jpeg):
            for _ in range(100):
                broken = bytearray(whole)
                for at in rng.integers(0, len(whole), 3):
                    broken[at] ^= 1 << int(rng.integers(8))
                answer = self.predict(bytes(broken))
                self.assertIn(answer.status, (200, 422), answer)

    def test_more_pixels_than_the_limit(self):
        limits = self.get("/v1/capabilities").json()["limits"]
        for width, height, limit in ((limits["image_side"] + 1, 1, limits["image_side"]),
                                     (2**31 - 1, 2**31 - 1, limits["image_side"]),
                                     (5000, 5000, limits["image_pixels"])):
            begin = time.monotonic()
            found = self.bad_image(png(width, height, b""), code="image_too_large")
            self.check_error(found, limit=limit)
            self.assertLess(time.monotonic() - begin, jemd_test.patience(1))

    def test_a_jpeg_that_says_it_is_huge(self):
        jpeg = bytearray(save(Image.new("RGB", (16, 16)), "JPEG"))
        at = jpeg.index(b"\xff\xc0")
        jpeg[at + 5:at + 9] = b"\xff\xff\xff\xff"
        self.bad_image(bytes(jpeg), "65", code="image_too_large", kind="image/jpeg")

    def test_a_bomb_of_pixels_costs_what_the_limit_says(self):
        rows = zlib.compress(b"\0" * (4096 * 3 + 1) * 4096, 9)
        self.assertLess(len(rows), 100_000)
        bomb = (SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 4096, 4096, 8, 2, 0, 0, 0))
                + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
        answer, peak = peak_kb(self.daemon, lambda: self.predict(bomb))
        self.assertEqual(self.good(answer)["results"][0]["ood"]["decision"], "out")
        if not SLOW:
            self.assertLess(peak, 200 << 10)

    def test_a_bomb_behind_a_small_header(self):
        rows = zlib.compress(b"\0" * (200 << 20), 9)
        bomb = (SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0))
                + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
        answer, peak = peak_kb(self.daemon, lambda: self.predict(bomb))
        self.assertIn(answer.status, (200, 422), answer)
        if not SLOW:
            self.assertLess(peak, 32 << 10)

    def test_bombs_in_text_and_profile_chunks(self):
        packed = zlib.compress(b"a" * (100 << 20), 9)
        rows = b"\0" * 97 * 32
        for extra in (chunk(b"zTXt", b"Comment\0\0" + packed), chunk(b"iCCP", b"profile\0\0" + packed),
                      chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed)):
            answer, peak = peak_kb(self.daemon, lambda: self.predict(png(32, 32, rows, extra=extra)))
            self.assertIn(answer.status, (200, 422), answer)
            if not SLOW:
                self.assertLess(peak, 32 << 10)

    def test_a_png_without_pixels(self):
        self.bad_image(png(0, 32, b""))
        self.bad_image(png(32, 32, b""))
        self.bad_image(SIGNATURE + chunk(b"IEND", b""), "IHDR")

    def test_kinds_of_png_that_do_not_exist(self):
        for depth, colour in ((3, 2), (8, 5), (16, 3), (0, 0)):
            self.bad_image(png(2, 2, b"\0" * 14, depth=depth, colour=colour))

    def test_a_jpeg_for_print(self):
        self.bad_image(save(Image.new("CMYK", (8, 8)), "JPEG"), "CMYK", "RGB", kind="image/jpeg")

    def test_files_that_are_no_images_or_of_another_kind(self):
        image = Image.new("RGB", (8, 8))
        for kind in ("GIF", "BMP", "WEBP", "TIFF"):
            self.bad_image(save(image, kind), "PNG")
        for data in (b"hello", b"<svg/>", b"\0" * 100, bytes(range(256))):
            self.bad_image(data, "PNG")

    def test_an_empty_body_of_every_kind(self):
        self.bad_image(b"", "0 bytes")
        self.bad_image(b"", "0 bytes", kind="image/jpeg")
        self.refused(self.predict(b"", "application/json"), 400, "malformed_json", "empty")
        self.refused(self.predict(b"", "application/octet-stream"), 400, "missing_field", "X-Image-Shape")
        self.refused(self.predict(b"", form([])[1]), 400, "bad_request", "empty")
        body, kind = form([("f", "a.png", "image/png", b"")])
        found = self.bad_image(body, "0 bytes", kind=kind)
        self.check_error(found, pointer="/parts/0")

    def test_one_bad_image_among_good_ones_is_named(self):
        body, kind = form([("f", None, "image/png", sample()), ("f", None, "image/png", b"x")])
        self.check_error(self.bad_image(body, kind=kind), pointer="/parts/1")
        listed = {"images": [{"b64": b64(sample())}, {"b64": b64(b"x")}]}
        self.check_error(self.bad_image(listed, kind="application/json"), pointer="/images/1/b64")

    def test_a_broken_form(self):
        body, kind = form([("f", "a.png", "image/png", sample())])
        for broken, its_kind in ((body[:-8], kind), (body, "multipart/form-data"), (b"x" + body[4:], kind),
                                 (body, kind + "x"), (body.replace(b"form-data", b"mixed"), kind),
                                 (body, 'multipart/form-data; boundary="'), (body, "multipart/form-data; boundary="),
                                 (body, "multipart/form-data; boundary=" + "b" * 71)):
            answer = self.predict(broken, its_kind)
            self.assertIn(answer.status, (400, 422), (its_kind, answer))

    def test_a_content_type_that_is_not_read(self):
        for kind in ("text/plain", "image/gif", "image", "application/x-www-form-urlencoded", "image/pngx", "/"):
            self.refused(self.predict(sample(), kind), 415, "unsupported_media_type", "image/png", "application/json")

    def test_no_content_type(self):
        answer = self.daemon.request("POST", "/v1/predict", sample(), {"Content-Type": ""})
        self.refused(answer, 415, "unsupported_media_type", "image/png")
        got = self.daemon.raw_answer(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx")
        self.refused(got, 415, "unsupported_media_type", "missing", "image/png")


class RawBytes(Bad):
    def raw(self, shape, size=3072, kind=None, fill=b"\0"):
        headers = {} if shape is None else {"X-Image-Shape": shape}
        if kind:
            headers["X-Image-Type"] = kind
        return self.predict(fill * size, "application/octet-stream", headers=headers)

    def test_no_shape(self):
        self.refused(self.raw(None), 400, "missing_field", "X-Image-Shape: N,H,W,C")

    def test_shapes_that_are_none(self):
        for shape in ("", "x", "1,32", "1,32,32,3,1", "0,32,32,3", "-1,32,32,3", "1;32;32;3", "1,32,32,3x", "1.5,32,32,3",
                      "1e3,32,32,3", "99999999999999999999,1,1,3", "1,32,32,", "1,32,32x", "1048577,1,1,1"):
            with self.subTest(shape=shape):
                self.refused(self.raw(shape), 422, "out_of_range", "N,H,W,C")

    def test_shapes_that_lie(self):
        for shape in ("2,32,32,3", "1,32,33,3", "1,16,32,3", "1048576,1048576,1048576,1048576", "1,32,32"):
            self.refused(self.raw(shape), 400, "bad_request", "3072 bytes", "X-Image-Shape")

    def test_channels_the_model_does_not_have(self):
        for shape, size in (("1,32,32,1", 1024), ("1,32,32,4", 4096), ("1,3,32,32", 3072)):
            self.refused(self.raw(shape, size), 422, "image_size_mismatch", "3 channels", "32 x 32 x 3")

    def test_floats_of_another_size(self):
        self.refused(self.raw("1,16,16,3", 3072, "float32"), 422, "image_size_mismatch", "32 x 32 x 3")

    def test_floats_that_are_not_finite(self):
        for bad in (float("nan"), float("inf"), -float("inf")):
            answer = self.raw("1,32,32,3", 3072, "float32", struct.pack("<f", bad))
            self.refused(answer, 422, "out_of_range", "image 0", "finite")

    def test_a_type_that_does_not_exist(self):
        self.refused(self.raw("1,32,32,3", kind="float64"), 422, "out_of_range", "uint8", "float32")

    def test_another_size_with_resize_reject(self):
        headers = {"X-Image-Shape": "1,16,64,3"}
        answer = self.predict(b"\0" * 3072, "application/octet-stream", "?resize=reject", headers=headers)
        self.refused(answer, 422, "image_size_mismatch", "32")


class Query(Bad):
    def bad_query(self, query, status, code, *says, suggests=None, limit=None, pointer=None):
        for path in ("/v1/predict", "/v1/score"):
            found = self.refused(self.post(path + query, sample(), "image/png"), status, code, *says)
            self.check_error(found, pointer, suggests, limit)

    def test_an_unknown_parameter(self):
        self.bad_query("?incldue=logits", 400, "unknown_field", "incldue", suggests="include")
        self.bad_query("?x", 400, "unknown_field", '"x"')
        found = self.problem(self.get("/v1/jobs?stat=queued"), 400, "unknown_field")
        self.check_error(found, suggests="state")

    def test_an_unknown_attribute(self):
        self.bad_query("?attributes=sex,hiar", 422, "unknown_attribute", "hiar", suggests="hair", pointer="?attributes")
        self.bad_query("?given=haircolour=blue", 422, "unknown_attribute", suggests="hair_colour", pointer="?given")

    def test_an_unknown_value(self):
        self.bad_query("?given=sex=mael", 422, "unknown_value", "mael", suggests="male", pointer="?given")

    def test_given_without_a_value(self):
        self.bad_query("?given=sex", 422, "out_of_range", "attribute=value", pointer="?given")

    def test_given_two_values_of_one_attribute(self):
        self.bad_query("?given=sex=male,sex=female", 409, "conflict", "sex", pointer="?given")

    def test_an_unknown_word_of_include_and_resize(self):
        self.bad_query("?include=logit", 422, "out_of_range", "probabilities, logits, approximate_mass",
                       suggests="logits", pointer="?include")
        self.bad_query("?resize=fi", 422, "out_of_range", "fit, fill, center_crop, reject", suggests="fit")

    def test_numbers_out_of_range(self):
        for alpha in ("0", "1", "-1", "2", "nan", "inf", "x", "", "0.5x"):
            self.bad_query("?alpha=" + alpha, 422, "out_of_range", "(0, 1)", pointer="?alpha")
        for ms in ("0", "-5", "600001", "1.5", "x", "", "99999999999999999999"):
            self.bad_query("?timeout_ms=" + ms, 422, "out_of_range", "1..600000", limit=600000, pointer="?timeout_ms")

    def test_lists_of_jobs(self):
        for query, says, suggests, limit in (
                ("state=runing", "runing", "running", None), ("type=sampel", "sampel", "sample", None),
                ("limit=0", "1..200", None, 200), ("limit=201", "1..200", None, 200), ("limit=x", "1..200", None, 200)):
            found = self.refused(self.get("/v1/jobs?" + query), 422, "out_of_range", says)
            self.check_error(found, suggests=suggests, limit=limit)

    def test_cursors_that_are_none(self):
        for cursor in ("x", "0", "-1", "00f", "F", "g", "1" * 17, "1" * 500, "%20", "1%00"):
            self.refused(self.get("/v1/jobs?cursor=" + cursor), 400, "bad_request")

    def test_wait_out_of_range(self):
        path = "/v1/jobs/00000000-0000-4000-8000-000000000000?wait="
        for wait in ("-1", "61", "nan", "inf", "x", "", "5s"):
            found = self.refused(self.get(path + wait), 422, "out_of_range", "0..60 seconds")
            self.check_error(found, limit=60)

    def test_ids_that_are_no_job(self):
        for job in ("x", "1", "00000000-0000-4000-8000-000000000000", "a" * 36, "%20", "-", "..%2f..", "a" * 120, "a" * 5000):
            self.problem(self.get("/v1/jobs/" + job), 404, "not_found")
            self.problem(self.post(f"/v1/jobs/{job}:cancel"), 404, "not_found")


class Json(Bad):
    """What every JSON body must be, tried on all three routes that read one."""

    def bad_json(self, body, code, *says, status=400):
        for path in ("/v1/jobs", "/v1/jobs:validate", "/v1/predict"):
            self.refused(self.post(path, body), status, code, *says)

    def test_text_that_is_no_json(self):
        for body in (b"{", b"[1,]", b"{'a': 1}", b"{\"a\": 1} x", b"{\"a\" 1}", b"tru", b"\"a", b"01", b"// x\n{}", b"{}{}"):
            self.bad_json(body, "malformed_json", "line 1")

    def test_nothing(self):
        self.bad_json(b"", "malformed_json", "empty")
        self.bad_json(b"  \n ", "malformed_json")

    def test_numbers_json_does_not_have(self):
        for word in (b"NaN", b"Infinity", b"-Infinity", b"0x10", b"+1", b".5", b"1."):
            self.bad_json(b'{"seed": %s}' % word, "malformed_json")

    def test_numbers_that_are_too_large(self):
        for number in (b"1e999", b"-1e999", b"9" * 400, b"9223372036854775808"):
            self.bad_json(b'{"seed": %s}' % number, "malformed_json")
        self.bad_job({**JOB, "sampler": {"step_size": 1e300}}, 422, "out_of_range", "step_size")
        self.bad_job({**JOB, "sampler": {"steps": 2**62}}, 422, "out_of_range", "steps")
        self.bad_job({**JOB, "conditions": [{"count": 2**40}]}, 422, "out_of_range", "count")
        self.bad_job({**JOB, "sampler": {"clamp": [-1e300, 1e300]}}, 422, "out_of_range", "clamp")

    def test_text_that_is_not_utf_8(self):
        for text in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"caf\xe9"):
            self.bad_json(b'{"model": "%s"}' % text, "malformed_json")
        self.bad_json(json.dumps(JOB).encode("utf-16"), "malformed_json")
        self.bad_json(b"\xef\xbb\xbf{}", "malformed_json")

    def test_escapes_that_are_no_characters(self):
        for escape in (rb"\ud800", rb"\udc00\ud800", rb"\u0000", rb"\x41", rb"\u12"):
            self.bad_json(b'{"model": "%s"}' % escape, "malformed_json")

    def test_a_member_that_comes_twice(self):
        self.bad_json(b'{"type": "sample", "type": "sample"}', "duplicate_key", '"type"')
        self.bad_json(b'{"images": [{"b64": "", "b64": ""}]}', "duplicate_key", '"b64"')
        self.bad_json(b'{"a": 1, "\\u0061": 1}', "duplicate_key", "key")

    def test_ten_thousand_levels(self):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            self.bad_json(opening * 10000 + b"1" + closing * 10000, "too_deep", "32")
            self.bad_json(opening * 10000, "too_deep", "32")
            self.bad_json(opening * 33 + b"1" + closing * 33, "too_deep", "32")

    def test_millions_of_values(self):
        """Parsed, they would take eighty times the memory of their text."""
        for body in (b"[" + b"1," * 10000000 + b"1]", b"[" + b"{}," * 10000000 + b"1]", b'{"a":[' + b"[[]]," * 6000000 + b"1]}"):
            for path in ("/v1/jobs", "/v1/jobs:validate", "/v1/predict"):
                answer, peak = peak_kb(self.daemon, lambda: self.post(path, body))
                self.check_error(self.refused(answer, 422, "out_of_range", "values"), limit=100000)
                if not SLOW:
                    self.assertLess(peak, 100 << 10)
        found = self.refused(self.post("/v1/jobs:validate", {**JOB, "conditions": [{}] * 40000}), 422, "out_of_range")
        self.check_error(found, pointer="/conditions", limit=64)

    def test_another_type_at_the_top(self):
        for body in (b"[]", b"1", b'"x"', b"null", b"true"):
            self.bad_json(body, "wrong_type", "an object")

    def test_a_job_of_another_content_type(self):
        for kind in ("text/json", "application/xml", "application/jsonp", "application/json-patch+json", "", "image/png"):
            for path in ("/v1/jobs", "/v1/jobs:validate"):
                answer = self.post(path, JOB, kind)
                with self.subTest(kind=kind):
                    self.refused(answer, 415, "unsupported_media_type", "application/json")

    def test_base64_that_is_none(self):
        for text in ("!", "YWJj=", "YWJ", "YW J", "YWI_", "Y===", "====", "YWJjé"):
            with self.subTest(text=text):
                answer = self.predict({"images": [{"b64": text}]}, "application/json")
                self.check_error(self.refused(answer, 400, "bad_base64"), pointer="/images/0/b64")
                job = {**JOB, "sampler": {"start": "image"}, "image": {"b64": text}}
                self.bad_job(job, 400, "bad_base64", pointer="/image/b64")

    def test_images_of_a_prediction(self):
        for body, status, code, pointer in (
                ({}, 400, "missing_field", "/images"), ({"images": []}, 400, "missing_field", None),
                ({"images": {}}, 400, "wrong_type", "/images"), ({"images": [5]}, 400, "wrong_type", "/images/0"),
                ({"images": [{}]}, 400, "missing_field", "/images/0/b64"),
                ({"images": [{"b64": 5}]}, 400, "wrong_type", "/images/0/b64"),
                ({"images": [{"b64": "", "id": "i" * 64}]}, 422, "out_of_range", "/images/0/id"),
                ({"images": [{"b64": "", "ib": "x"}]}, 400, "unknown_field", "/images/0/ib"),
                ({"images": [], "image": 1}, 400, "unknown_field", "/image")):
            found = self.refused(self.predict(body, "application/json"), status, code)
            self.check_error(found, pointer=pointer)


class Jobs(Bad):
    def condition(self, **members):
        return {**JOB, "conditions": [{"count": 1}, members]}

    def test_an_unknown_field_at_every_depth(self):
        image = {"b64": b64(sample())}
        for job, pointer, suggests in (
                ({**JOB, "sede": 1}, "/sede", "seed"),
                ({**JOB, "conditons": []}, "/conditons", "conditions"),
                (self.condition(cuont=1), "/conditions/1/cuont", "count"),
                (self.condition(any_of=[{}, {"atributes": {}}]), "/conditions/1/any_of/1/atributes", "attributes"),
                (self.condition(attributes={"sex": {"nto": "male", "not": "male"}}), "/conditions/1/attributes/sex/nto", "not"),
                ({**JOB, "sampler": {"step_zise": 1}}, "/sampler/step_zise", "step_size"),
                ({**JOB, "sampler": {"start": {"knid": "noise"}}}, "/sampler/start/knid", "kind"),
                ({**JOB, "sampler": {"start": "image"}, "image": {**image, "b46": ""}}, "/image/b46", "b64")):
            self.bad_job(job, 400, "unknown_field", pointer=pointer, suggests=suggests)

    def test_an_unknown_attribute(self):
        for job, pointer in (
                (self.condition(attributes={"hair_color": "blue"}), "/conditions/1/attributes/hair_color"),
                (self.condition(weights={"hair_color": 2}), "/conditions/1/weights/hair_color"),
                (self.condition(any_of=[{"attributes": {"hair_color": "blue"}}]), "/conditions/1/any_of/0/attributes/hair_color"),
                (self.condition(any_of=[{"weights": {"hair_color": 1}}]), "/conditions/1/any_of/0/weights/hair_color")):
            self.bad_job(job, 422, "unknown_attribute", "hair_color", pointer=pointer, suggests="hair_colour")

    def test_an_unknown_value(self):
        at = "/conditions/1/attributes/"
        self.bad_job(self.condition(attributes={"hair": "mohwak"}), 422, "unknown_value", "mohwak", pointer=at + "hair", suggests="mohawk")
        self.bad_job(self.condition(attributes={"hair": ["long", "crly"]}), 422, "unknown_value", pointer=at + "hair", suggests="curly")
        self.bad_job(self.condition(attributes={"hair": {"not": "nnoe"}}), 422, "unknown_value", suggests="none")
        self.bad_job(self.condition(attributes={"hair": 3}), 422, "unknown_value")
        self.bad_job(self.condition(attributes={"hair": ""}), 422, "unknown_value")

    def test_a_value_of_another_type(self):
        for value in (None, 1.5, {}, [[]], [None], [{"not": "male"}]):
            for path in ("/v1/jobs:validate", "/v1/jobs"):
                answer = self.post(path, self.condition(attributes={"sex": value}))
                self.assertIn(answer.json().get("code"), ("wrong_type", "missing_field"), answer)
        self.bad_job(self.condition(attributes={"hair": True}), 400, "wrong_type", "5 values", pointer="/conditions/1/attributes/hair")

    def test_no_value_left(self):
        everything = ["female", "male"]
        for spec in ([], {"not": everything}, {"not": []}):
            self.bad_job(self.condition(attributes={"sex": spec}), 422, "empty_value_set", "sex", pointer="/conditions/1/attributes/sex")

    def test_alternatives_that_contradict_what_holds_for_all(self):
        job = self.condition(attributes={"sex": "male"}, any_of=[{"attributes": {"sex": ["male", "female"]}},
                                                                 {"attributes": {"sex": "female"}}])
        self.bad_job(job, 422, "empty_value_set", "sex", pointer="/conditions/1/any_of/1/attributes/sex")
        self.bad_job(self.condition(any_of=[]), 422, "empty_value_set", "any_of", pointer="/conditions/1/any_of")

    def test_limits(self):
        limits = self.get("/v1/capabilities").json()["limits"]
        steps, images = limits["job_steps"], limits["job_images"]
        self.bad_job({**JOB, "sampler": {"steps": steps + 1}}, 422, "out_of_range", str(steps), pointer="/sampler/steps", limit=steps)
        self.bad_job({**JOB, "sampler": {"steps": -1}}, 422, "out_of_range", pointer="/sampler/steps", limit=0)
        self.bad_job(self.condition(count=images + 1), 422, "out_of_range", str(images), pointer="/conditions/1/count", limit=images)
        self.bad_job(self.condition(count=images), 422, "out_of_range", str(images + 1), pointer="/conditions", limit=images)
        self.bad_job(self.condition(count=0), 422, "out_of_range", pointer="/conditions/1/count", limit=1)
        self.bad_job({**JOB, "conditions": [{}] * 65}, 422, "out_of_range", pointer="/conditions", limit=64)
        self.bad_job(self.condition(any_of=[{}] * 17), 422, "out_of_range", pointer="/conditions/1/any_of", limit=16)
        self.bad_job(self.condition(weights={"sex": 1001}), 422, "out_of_range", pointer="/conditions/1/weights/sex", limit=1000)
        self.bad_job({**JOB, "sampler": {"steps": 5, "cool_last": 6}}, 422, "out_of_range", pointer="/sampler/cool_last", limit=5)
        self.bad_job({**JOB, "labels": {str(i): "" for i in range(17)}}, 422, "out_of_range", "16", pointer="/labels")

    def test_members_that_do_not_go_together(self):
        image = {"b64": b64(sample())}
        self.bad_job({**JOB, "image": image}, 422, "unsupported", '"start": "image"', pointer="/image")
        self.bad_job({**JOB, "sampler": {"start": "image"}}, 400, "missing_field", pointer="/image")
        self.bad_job({**JOB, "sampler": {"kind": "ula", "noise": 0.1}}, 422, "unsupported", "sgld", pointer="/sampler/noise")
        self.bad_job({**JOB, "mask": image}, 400, "missing_field", pointer="/image")
        self.bad_job({**JOB, "sampler": {"clamp": [1, -1]}}, 422, "out_of_range", "low < high", pointer="/sampler/clamp")

    def test_words_that_do_not_exist(self):
        for job, pointer, suggests in (
                ({**JOB, "priority": "hgih"}, "/priority", "high"), ({**JOB, "outputs": ["gird"]}, "/outputs", "grid"),
                ({**JOB, "sampler": {"kind": "sgdl"}}, "/sampler/kind", "sgld"),
                ({**JOB, "sampler": {"step_rule": "normalized"}}, "/sampler/step_rule", "normalised"),
                ({**JOB, "sampler": {"start": "bufer"}}, "/sampler/start", "buffer")):
            self.bad_job(job, 422, "out_of_range", pointer=pointer, suggests=suggests)
        self.bad_job({**JOB, "type": "sampel"}, 422, "unsupported", "sample", pointer="/type", suggests="sample")

    def test_seeds_and_deadlines_that_are_none(self):
        for seed in ("", "x", "-1", "1.5", "18446744073709551616", -1, 1.5, True, []):
            self.bad_job({**JOB, "seed": seed}, 422, "out_of_range", "2^64", pointer="/seed")
        for deadline in ("", "tomorrow", "2030-01-01", "2030-01-01T00:00:00", "2030-13-01T00:00:00Z", "2030-01-01T00:00:00+1",
                         "2030-02-31T00:00:00Z", "2030-01-01T00:00:00.Z", "2030-01-01T00:00:00+99:99", "1960-01-01T00:00:00Z"):
            with self.subTest(deadline=deadline):
                self.bad_job({**JOB, "deadline": deadline}, 422, "out_of_range", "RFC 3339", pointer="/deadline")

    def test_a_model_that_is_not_there(self):
        self.bad_job({**JOB, "model": "sprite"}, 404, "not_found", "sprite", suggests="sprites", pointer="/model")

    def test_idempotency_keys_that_are_none(self):
        for key, status, code in (("", 422, "out_of_range"), ("k" * 129, 422, "out_of_range"),
                                  ("a b", 400, "bad_request"), ("a\tb", 400, "bad_request"), ("caf\xe9", 400, "bad_request")):
            self.refused(self.post("/v1/jobs", JOB, headers={"Idempotency-Key": key}), status, code, "Idempotency-Key")

    def test_a_deadline_that_has_passed(self):
        done = wait_ended(self.daemon, submit(self.daemon, {**JOB, "deadline": "2020-01-01T00:00:00Z"})["id"])
        self.assertEqual((done["state"], done["error"]["code"]), ("expired", "deadline"))

    def test_a_deadline_that_passes_while_it_runs(self):
        soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=jemd_test.patience(0.7))
        job = {**JOB, "conditions": [{"count": 64}], "sampler": {"steps": 5000}, "deadline": soon.isoformat()}
        done = wait_ended(self.daemon, submit(self.daemon, job)["id"], 10)
        self.assertEqual((done["state"], done["error"]["code"]), ("expired", "deadline"))
        self.assertIsNotNone(done["started_at"])


class Ranges(Bad):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        job = run_job(cls.daemon, JOB)
        cls.path = job["links"]["artifacts"] + "grid.png"
        cls.size = job["result"]["artifacts"][0]["size_bytes"]

    def test_ranges_that_are_ignored(self):
        for text in ("bytes=", "bytes=-", "bytes=x-", "bytes=5-4", "bytes=1-2,4-5", "bytes 0-1", "items=0-1", "0-1", "",
                     "bytes=--5", "bytes=+1-2", "bytes=1-2x", "bytes=0x1-", "bytes=99999999999999999999-", "bytes= 0-1"):
            answer = self.get(self.path, {"Range": text})
            self.assertEqual((answer.status, len(answer.body)), (200, self.size), text)

    def test_ranges_outside(self):
        for text in (f"bytes={self.size}-", "bytes=-0", "bytes=9999999999-"):
            answer = self.get(self.path, {"Range": text})
            self.refused(answer, 416, "range_not_satisfiable", f"{self.size} bytes")
            self.assertEqual(answer.headers["content-range"], f"bytes */{self.size}")

    def test_artifacts_that_are_not_there(self):
        base = self.path[:-len("grid.png")]
        for name in ("grid", "GRID.png", "samples", "samples/", "samples/001.png", "../grid.png", "samples/../grid.png",
                     "preview.png", "a" * 120, "a" * 500, "%00"):
            answer = self.get(base + name)
            self.assertIn(answer.status, (400, 404), (name, answer))


class Deadlines(Bad):
    FLAGS = ("--predict.threads=1", "--predict.queue_max=1024", "--predict.queue_ms=0", "--jobs.max_queued=100")

    def test_a_prediction_that_comes_too_late_is_504(self):
        """Waits behind many large ones for longer than the millisecond it has."""
        body = (b"\0" * 3072) * 64
        headers = {"X-Image-Shape": "64,32,32,3"}
        stop = threading.Event()

        def crowd():
            while not stop.is_set():
                self.predict(body, "application/octet-stream", "?include=approximate_mass", headers=headers, check=False)

        threads = [threading.Thread(target=crowd) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            answer = jemd_test.wait_until(
                lambda: next((a for a in [self.predict(sample(), query="?timeout_ms=1")] if a.status != 200), None), 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        self.refused(answer, 504, "deadline", "timeout_ms = 1")


class Overload(Bad):
    FLAGS = ("--predict.threads=1", "--predict.queue_max=64", "--http.threads=2")

    def test_more_images_than_may_wait_is_503_with_a_time(self):
        body = (b"\0" * 3072) * 64
        headers = {"X-Image-Shape": "64,32,32,3"}
        refused, stop = [], threading.Event()

        def crowd():
            while not stop.is_set():
                answer = self.predict(body, "application/octet-stream", "?include=approximate_mass", headers=headers)
                if answer.status != 200:
                    refused.append(answer)

        threads = [threading.Thread(target=crowd) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            jemd_test.wait_until(lambda: refused, 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        found = self.refused(refused[0], 503, "overloaded", "64")
        self.check_error(found, limit=64)
        self.assertGreaterEqual(int(refused[0].headers["retry-after"]), 1)


class Memory(Bad):
    def test_two_thousand_bad_requests_leave_nothing_behind(self):
        broken = bytearray(sample())
        broken[60] ^= 1
        bodies = [("/v1/predict", bytes(broken), "image/png"), ("/v1/predict", sample()[:200], "image/png"),
                  ("/v1/predict", b'{"images": [{"b64": "!"}]}', "application/json"), ("/v1/jobs", b"[" * 10000, "application/json"),
                  ("/v1/jobs", json.dumps({**JOB, "sampler": {"stesp": 1}}), "application/json"),
                  ("/v1/jobs", json.dumps({**JOB, "conditions": [{"attributes": {"sx": 1}}]}), "application/json"),
                  ("/v1/predict", *form([("f", None, "image/png", b"x" * 10000)])), ("/nope" + "x" * 1000, b"x" * 20000, "x/y"),
                  ("/v1/predict?alpha=7", sample(), "image/png"), ("/v1/jobs:validate", b"\xff" * 30000, "application/json")]
        before = None
        for round_ in range(20 if SLOW else 220):
            for path, body, kind in bodies:
                answer = self.post(path, body, kind, check=False)
                self.assertIn(answer.status, (400, 404, 422), answer)
            if round_ == 20:
                before = self.daemon.rss_kb()
        if not SLOW:
            self.assertLess(self.daemon.rss_kb() - before, 2 << 10, "kB more after 2,000 bad requests")


if __name__ == "__main__":
    unittest.main()
