# SPDX-License-Identifier: Apache-2.0
"""Predictions: the truth about the bundled samples, the same from every kind of body, the numbers
as the mathematics has them, and the line between what the model knows and what it does not."""
import concurrent.futures
import hashlib
import json
import struct
import unittest

import numpy as np
from PIL import Image

import jemd_test
from jemd_test import b64, chunk, form, png, sample, sample_list, save

NAMES = [s["file"] for s in sample_list()]


def pixels(name=NAMES[0]):
    with Image.open(jemd_test.os.path.join(jemd_test.SAMPLES, name)) as image:
        return np.array(image.convert("RGB"))


def as_png(array):
    return save(Image.fromarray(np.ascontiguousarray(array)), "PNG")


def values(result):
    return {a["name"]: a["value"] for a in result["attributes"]}


def without_id(result):
    return {k: v for k, v in result.items() if k not in ("id", "input", "warnings")}


def log_sum_exp(v):
    v = np.asarray(v, np.float64)
    return v.max() + np.log(np.exp(v - v.max()).sum())


class Samples(jemd_test.Case):
    def test_the_attributes_of_every_sample_are_right_where_the_list_says_so(self):
        for entry in sample_list():
            (result,) = self.predicted(sample(entry["file"]))
            self.assertEqual(values(result), {**entry["attributes"], **entry["mistaken"]}, entry["file"])

    def test_the_samples_belong_to_the_models_world(self):
        for name in NAMES:
            (result,) = self.predicted(sample(name))
            self.assertEqual((result["ood"]["decision"], result["abstain"]), ("in", False), name)
            self.assertGreater(result["ood"]["p_value"], 0.1)
            self.assertEqual(result["warnings"], [])

    def test_noise_does_not(self):
        noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        self.is_out(as_png(noise))

    def test_neither_do_samples_that_are_shifted_inverted_upside_down_or_gone(self):
        for name in NAMES:
            image = pixels(name)
            for other in (np.roll(image, 8, 1), 255 - image, image[::-1], np.zeros_like(image)):
                self.is_out(as_png(other))

    def is_out(self, body):
        (result,) = self.predicted(body)
        self.assertEqual((result["ood"]["decision"], result["abstain"]), ("out", True), result["ood"])
        self.assertLess(result["ood"]["p_value"], 0.01)
        self.assertLess(result["ood"]["log_px_percentile"], 1)

    def test_the_default_model_is_the_one_it_says(self):
        (model,) = [m for m in self.get("/v1/models").json()["models"] if m["default"]]
        answer = self.good(self.predict(sample()))
        with open(jemd_test.MODEL, "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        self.assertEqual((answer["model"], answer["digest"]), (model["name"], digest))
        named = self.good(self.post("/v1/models/sprites:predict", sample(), "image/png"))
        self.assertEqual(answer["results"], named["results"])
        self.assertEqual(answer["request_id"] == named["request_id"], False)


class Bodies(jemd_test.Case):
    def setUp(self):
        (self.want,) = self.predicted(sample())

    def same(self, result, of=None):
        self.assertEqual(without_id(result), without_id(of or self.want))

    def test_what_is_told_of_the_input(self):
        self.assertEqual(self.want["input"], {"width": 32, "height": 32, "format": "png", "resized": False,
                                              "sha256": hashlib.sha256(sample()).hexdigest()})
        self.assertNotIn("id", self.want)

    def test_a_jpeg_says_roughly_the_same(self):
        body = save(Image.fromarray(pixels()), "JPEG", quality=95, subsampling=0)
        (result,) = self.predicted(body, "image/jpeg")
        self.assertEqual(values(result), values(self.want))
        self.assertAlmostEqual(result["energy"], self.want["energy"], delta=3)
        self.assertEqual((result["input"]["format"], result["ood"]["decision"]), ("jpeg", "in"))

    def test_the_bytes_decide_what_a_file_is(self):
        (result,) = self.predicted(sample(), "image/jpeg")
        self.assertEqual(result["input"]["format"], "png")
        self.same(result)

    def test_content_types_may_have_parameters_and_any_case(self):
        self.same(self.predicted(sample(), "Image/PNG; charset=binary")[0])

    def test_a_form_of_several_files(self):
        body, kind = form([("f", name, "image/png", sample(name)) for name in NAMES]
                          + [("only-a-name", None, "application/octet-stream", sample())])
        results = self.predicted(body, kind)
        self.assertEqual([r["id"] for r in results], NAMES + ["only-a-name"])
        for name, result in zip(NAMES, results):
            self.same(result, self.predicted(sample(name))[0])

    def test_ids_of_a_form_are_text_whatever_they_are_cut_to(self):
        for name in ("é" * 60, "a" + "é" * 60):
            body, kind = form([("f", name, "image/png", sample())])
            (result,) = self.predicted(body, kind)
            self.assertTrue(result.get("id"), "the id is missing")
            self.assertTrue(name.startswith(result["id"]), result["id"])

    def test_a_filename_that_is_not_utf_8_is_refused_or_mended(self):
        body, kind = form([("f", "cafe.png", "image/png", sample())])
        answer = self.predict(body.replace(b"cafe", b"caf\xe9"), kind)
        if answer.status == 200:
            self.assertTrue(answer.json()["results"][0].get("id"), "the id is missing")
        else:
            self.problem(answer, 400, "bad_request")

    def test_json_with_ids_and_without(self):
        body = {"images": [{"id": "first", "b64": b64(sample())}, {"b64": b64(sample(NAMES[1]))}]}
        first, second = self.predicted(body, "application/json")
        self.assertEqual(first["id"], "first")
        self.assertNotIn("id", second)
        self.same(first)
        self.same(second, self.predicted(sample(NAMES[1]))[0])

    def test_raw_bytes_of_several_images(self):
        raw = b"".join(pixels(name).tobytes() for name in NAMES)
        headers = {"X-Image-Shape": f"{len(NAMES)},32,32,3"}
        results = self.predicted(raw, "application/octet-stream", headers=headers)
        for name, result in zip(NAMES, results):
            self.same(result, self.predicted(sample(name))[0])
            self.assertEqual(result["input"]["format"], "uint8")
        headers = {"X-Image-Shape": f" {len(NAMES)} , 32 ,32, 3", "X-Image-Type": "UINT8"}
        self.assertEqual(self.predicted(raw, "application/octet-stream", headers=headers), results)

    def test_raw_bytes_of_another_size_are_resized_like_a_file(self):
        large = np.kron(pixels(), np.ones((3, 2, 1), np.uint8))
        headers = {"X-Image-Shape": "1,96,64,3"}
        for resize in ("fit", "fill", "center_crop"):
            (raw,) = self.predicted(large.tobytes(), "application/octet-stream", "?resize=" + resize, headers=headers)
            (file,) = self.predicted(as_png(large), "image/png", "?resize=" + resize)
            self.same(raw, file)
            self.assertEqual((raw["input"]["width"], raw["input"]["height"], raw["input"]["resized"]), (64, 96, True))

    def test_float32_in_the_range_of_the_model(self):
        x = (pixels().astype(np.float32) * np.float32(2 / 255) - np.float32(1)).astype("<f4")
        headers = {"X-Image-Shape": "1,32,32,3", "X-Image-Type": "float32"}
        (result,) = self.predicted(x.tobytes(), "application/octet-stream", headers=headers)
        self.assertEqual(values(result), values(self.want))
        self.assertAlmostEqual(result["energy"], self.want["energy"], delta=1e-3)
        self.assertEqual(result["input"]["format"], "float32")


class Formats(jemd_test.Case):
    """The same picture in every form of file; equal pixels must give equal numbers."""

    def setUp(self):
        self.image = Image.fromarray(pixels())
        (self.want,) = self.predicted(as_png(pixels()))

    def same(self, body, kind="image/png", of=None):
        (result,) = self.predicted(body, kind)
        self.assertEqual(without_id(result), without_id(of or self.want))

    def test_sixteen_bit_samples(self):
        wide = (pixels().astype(np.uint16) * 257).astype(">u2")
        self.same(png(32, 32, b"".join(b"\0" + row.tobytes() for row in wide), depth=16))

    def test_a_palette(self):
        palette = self.image.quantize(256, dither=Image.Dither.NONE)
        self.assertEqual(np.array(palette.convert("RGB")).tolist(), pixels().tolist())
        self.same(save(palette, "PNG"))

    def test_grey(self):
        grey = self.image.convert("L")
        (want,) = self.predicted(save(grey.convert("RGB"), "PNG"))
        self.same(save(grey, "PNG"), of=want)
        self.same(save(grey.convert("LA"), "PNG"), of=want)
        (black,) = self.predicted(save(grey.convert("1").convert("RGB"), "PNG"))
        self.same(save(grey.convert("1"), "PNG"), of=black)

    def test_an_opaque_alpha_channel_changes_nothing(self):
        self.same(save(self.image.convert("RGBA"), "PNG"))

    def test_what_is_transparent_is_white(self):
        with_alpha = np.dstack([pixels(), np.full((32, 32), 255, np.uint8)])
        with_alpha[:, :16, 3] = 0
        white = pixels().copy()
        white[:, :16] = 255
        (want,) = self.predicted(as_png(white))
        self.same(save(Image.fromarray(with_alpha), "PNG"), of=want)

    def test_a_transparent_colour_of_a_palette_is_white(self):
        palette = self.image.quantize(256, dither=Image.Dither.NONE)
        background = palette.getpixel((0, 0))
        white = pixels().copy()
        white[np.array(palette) == background] = 255
        (want,) = self.predicted(as_png(white))
        self.same(save(palette, "PNG", transparency=background), of=want)

    def test_gamma_and_profiles_are_not_applied(self):
        rows = b"".join(b"\0" + row.tobytes() for row in pixels())
        self.same(png(32, 32, rows, extra=chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0")))

    def test_a_photo_lying_on_its_side_is_turned_upright(self):
        upright = save(self.image, "JPEG", quality=95, subsampling=0)
        (want,) = self.predicted(upright, "image/jpeg")
        turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
                 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
                 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
        for orientation, turn in turns.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            body = save(self.image.transpose(turn), "JPEG", quality=95, subsampling=0, exif=exif)
            (result,) = self.predicted(body, "image/jpeg")
            self.assertEqual(values(result), values(want), orientation)
            self.assertAlmostEqual(result["energy"], want["energy"], delta=3)

    def test_a_png_can_lie_on_its_side_too(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = np.array(self.image.transpose(Image.Transpose.ROTATE_90))
        rows = b"".join(b"\0" + row.tobytes() for row in turned)
        self.same(png(32, 32, rows, extra=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))

    def test_progressive_and_grey_jpegs(self):
        body = save(self.image, "JPEG", quality=95, subsampling=0, progressive=True)
        plain = save(self.image, "JPEG", quality=95, subsampling=0)
        self.same(body, "image/jpeg", self.predicted(plain, "image/jpeg")[0])
        (result,) = self.predicted(save(self.image.convert("L"), "JPEG"), "image/jpeg")
        self.assertEqual(result["input"]["format"], "jpeg")

    def test_a_large_photo(self):
        big = self.image.resize((1500, 1500), Image.Resampling.NEAREST)
        for kind, body in (("image/png", save(big, "PNG")), ("image/jpeg", save(big, "JPEG", quality=90))):
            (result,) = self.predicted(body, kind)
            self.assertEqual(values(result)["hair_colour"], "blue")
            self.assertEqual((result["input"]["width"], result["input"]["resized"]), (1500, True))
            self.assertEqual(len(result["warnings"]), 1)

    def test_one_pixel(self):
        (result,) = self.predicted(png(1, 1, b"\0\1\2\3"))
        self.assertEqual((result["input"]["width"], result["ood"]["decision"]), (1, "out"))


class Resize(jemd_test.Case):
    def test_an_image_of_the_models_size_is_the_same_in_every_mode(self):
        results = [self.predicted(sample(), query="?resize=" + mode)
                   for mode in ("fit", "fill", "center_crop", "reject")]
        for other in results[1:]:
            self.assertEqual(other, results[0])

    def test_what_each_mode_does_with_a_wide_image(self):
        """The sample between two grey bars: center_crop cuts the bars off, fill squeezes it."""
        image = pixels()
        wide = np.hstack([np.full_like(image, 128), image, np.full_like(image, 128)])
        (want,) = self.predicted(as_png(image))
        (cropped,) = self.predicted(as_png(wide), query="?resize=center_crop")
        self.assertEqual(without_id(cropped), without_id(want))
        (fit,) = self.predicted(as_png(wide), query="?resize=fit")
        (default,) = self.predicted(as_png(wide))
        (filled,) = self.predicted(as_png(wide), query="?resize=fill")
        self.assertEqual(fit, default)
        self.assertNotEqual(fit["energy"], filled["energy"])
        self.assertNotEqual(filled["energy"], cropped["energy"])

    def test_reject_refuses_another_size(self):
        answer = self.predict(as_png(pixels()[:, :31]), query="?resize=reject")
        found = self.problem(answer, 422, "image_size_mismatch")
        self.assertIn("32", found["detail"])


class Numbers(jemd_test.Case):
    """The answer's numbers follow from the logits, by the formulas."""

    def setUp(self):
        query = "?include=probabilities,logits,approximate_mass"
        (self.result,) = self.predicted(sample(NAMES[3]), query=query)
        self.model = self.get("/v1/models/sprites").json()
        self.logits = {a["name"]: list(a["logits"].values()) for a in self.result["attributes"]}

    def test_attributes_and_values_come_in_the_models_order(self):
        for said, a in zip(self.result["attributes"], self.model["attributes"]):
            self.assertEqual((said["name"], list(said["logits"]), list(said["probabilities"])),
                             (a["name"], a["values"], a["values"]))

    def test_the_energy_is_minus_the_sum_of_log_sum_exp(self):
        log_px = sum(log_sum_exp(v) for v in self.logits.values())
        self.assertAlmostEqual(self.result["energy"], -log_px, delta=1e-4)
        self.assertEqual(self.result["ood"]["scores"]["log_px"], -self.result["energy"])

    def test_probabilities_are_the_softmax_at_the_temperature(self):
        for said, a in zip(self.result["attributes"], self.model["attributes"]):
            v = np.array(self.logits[a["name"]]) / a["temperature"]
            want = np.exp(v - log_sum_exp(v))
            np.testing.assert_allclose(list(said["probabilities"].values()), want, rtol=1e-3, atol=1e-7)
            self.assertEqual(said["value"], a["values"][int(want.argmax())])
            self.assertEqual(said["probability"], max(said["probabilities"].values()))

    def test_the_p_value_is_the_rank_among_the_calibration_energies(self):
        energies = model_tensor("calibration.energies")
        n, ood = len(energies), self.result["ood"]
        above = int((energies >= np.float32(self.result["energy"])).sum())
        self.assertAlmostEqual(ood["p_value"], (1 + above) / (n + 1), delta=1e-9)
        self.assertAlmostEqual(ood["p_value_floor"], 1 / (n + 1), delta=1e-9)
        self.assertAlmostEqual(ood["log_px_percentile"], 100 * above / n, delta=0.5)

    def test_known_values_give_the_joint_density(self):
        (result,) = self.predicted(sample(NAMES[3]), query="?given=sex=male,hair_colour=white&include=logits")
        want = sum(v[1] if k == "sex" else v[5] if k == "hair_colour" else log_sum_exp(v)
                   for k, v in self.logits.items())
        self.assertAlmostEqual(result["log_px_given"], want, delta=1e-4)
        self.assertEqual(result["energy"], self.result["energy"])
        self.assertIn("given", result["warnings"][0])

    def test_the_approximate_mass_is_the_negative_length_of_a_gradient(self):
        self.assertLess(self.result["ood"]["scores"]["approximate_mass"], 0)
        noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        (far,) = self.predicted(as_png(noise), query="?include=approximate_mass")
        self.assertLess(far["ood"]["scores"]["approximate_mass"],
                        self.result["ood"]["scores"]["approximate_mass"])


def model_tensor(name):
    with open(jemd_test.MODEL, "rb") as f:
        data = f.read()
    length = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:8 + length])[name]
    first, end = entry["data_offsets"]
    return np.frombuffer(data[8 + length + first:8 + length + end], "<f4")


class Options(jemd_test.Case):
    def test_include_says_what_is_added(self):
        (default,) = self.predicted(sample())
        (bare,) = self.predicted(sample(), query="?include=")
        (logits,) = self.predicted(sample(), query="?include=logits")
        self.assertEqual(set(default["attributes"][0]) - set(bare["attributes"][0]), {"probabilities"})
        self.assertEqual(set(logits["attributes"][0]) - set(bare["attributes"][0]), {"logits"})
        (mass,) = self.predicted(sample(), query="?include=approximate_mass")
        self.assertEqual(set(mass["ood"]["scores"]) - set(bare["ood"]["scores"]), {"approximate_mass"})

    def test_attributes_chooses_some(self):
        (result,) = self.predicted(sample(), query="?attributes=shirt,sex")
        self.assertEqual([a["name"] for a in result["attributes"]], ["sex", "shirt"])
        (again,) = self.predicted(sample(), query="?attributes=shirt&attributes=sex")
        self.assertEqual(again, result)
        (escaped,) = self.predicted(sample(), query="?attributes=shirt%2Cs%65x")
        self.assertEqual(escaped, result)

    def test_alpha_moves_the_decision(self):
        (result,) = self.predicted(sample())
        p = result["ood"]["p_value"]
        for alpha, decision in ((p - 0.01, "in"), (p + 0.01, "out")):
            (moved,) = self.predicted(sample(), query=f"?alpha={alpha:.6f}")
            self.assertEqual((moved["ood"]["decision"], moved["abstain"]), (decision, decision == "out"))

    def test_score_has_the_evidence_only(self):
        (score,) = self.good(self.post("/v1/score", sample(), "image/png"))["results"]
        (result,) = self.predicted(sample())
        self.assertNotIn("attributes", score)
        del result["attributes"]
        self.assertEqual(score, result)

    def test_a_generous_timeout_changes_nothing(self):
        self.assertEqual(self.predicted(sample(), query="?timeout_ms=600000"), self.predicted(sample()))

    def test_refinement_is_not_offered(self):
        self.problem(self.predict(sample(), query="?refine=5"), 422, "unsupported")
        self.good(self.predict(sample(), query="?refine=0"))


class Batches(jemd_test.Case):
    QUERY = "?include=probabilities,logits,approximate_mass"

    def images(self, n):
        rng = np.random.default_rng(7)
        noise = rng.integers(-9, 10, (n, 32, 32, 3))
        return [as_png(np.clip(pixels(NAMES[i % len(NAMES)]) + noise[i], 0, 255).astype(np.uint8))
                for i in range(n)]

    def test_a_batch_equals_its_images_one_by_one_exactly(self):
        images = self.images(23)
        body = {"images": [{"b64": b64(image)} for image in images]}
        together = self.predicted(body, "application/json", self.QUERY)
        apart = [self.predicted(image, query=self.QUERY)[0] for image in images]
        self.assertEqual(together, apart)
        self.assertGreater(len({json.dumps(r) for r in apart}), 20)

    def test_strangers_in_the_batch_change_nothing(self):
        images = self.images(12)
        apart = [self.predicted(image, query=self.QUERY) for image in images]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                crowd = pool.map(lambda image: self.predicted(image, query=self.QUERY, check=False), images * 4)
                self.assertEqual(list(crowd), apart * 4)

    def test_as_many_images_as_the_limit_and_not_one_more(self):
        limit = self.get("/v1/capabilities").json()["limits"]["images_per_request"]
        raw = pixels().tobytes()
        many = self.predicted(raw * limit, "application/octet-stream", "?include=",
                              headers={"X-Image-Shape": f"{limit},32,32,3"})
        self.assertEqual(len(many), limit)
        answer = self.predict(raw * (limit + 1), "application/octet-stream",
                              headers={"X-Image-Shape": f"{limit + 1},32,32,3"})
        found = self.problem(answer, 422, "out_of_range")
        self.assertEqual(found["errors"][0]["limit"], limit)
        listed = {"images": [{"b64": ""}] * (limit + 1)}
        found = self.problem(self.predict(listed, "application/json"), 422, "out_of_range")
        self.assertEqual(found["errors"][0]["limit"], limit)
        body, kind = form([("f", None, "image/png", b"x")] * (limit + 1))
        found = self.problem(self.predict(body, kind), 422, "out_of_range")
        self.assertEqual(found["errors"][0]["limit"], limit)


if __name__ == "__main__":
    unittest.main()
