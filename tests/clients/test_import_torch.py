# SPDX-License-Identifier: Apache-2.0
"""The checkpoint importer: clients/python/import_torch.py, on checkpoints pickled by hand."""
import io
import json
import os
import struct
import subprocess
import sys
import unittest
import zipfile

import numpy as np

from checkpoints import (PROGRAM, SHARED, SOURCE, Call, Case, Name, Writer, convolve, dump,
                         evaluate, gibbs_arrays, jem_arrays, jem_shapes, read_model, relative,
                         safetensors)


class Containers(Case):
    def test_zip_legacy_and_safetensors_give_the_same_model(self):
        wanted = gibbs_arrays()
        files = []
        for kind in ("zip", "legacy"):
            writer = Writer()
            files.append(getattr(writer, kind)(writer.state(wanted)))
        files.append(safetensors(wanted))
        for data in files:
            description, arrays, _ = self.convert(data)
            self.assertEqual(list(arrays), list(wanted))
            self.assert_same(arrays, wanted)
            self.assertEqual(description["family"], "gibbs-jem")

    def test_big_endian_files_are_read(self):
        wanted = gibbs_arrays()
        for kind in ("zip", "legacy"):
            writer = Writer(">")
            _, arrays, _ = self.convert(getattr(writer, kind)(writer.state(wanted)))
            self.assert_same(arrays, wanted)

    def test_strided_and_offset_views_of_a_shared_storage_are_read(self):
        wanted, writer = gibbs_arrays(), Writer()
        weight = wanted["mlp.2.weight"]
        both = np.concatenate([np.float32([7, 7, 7]), weight.T.ravel(), wanted["mlp.2.bias"]])
        storage = writer.storage(both)
        n = weight.shape[0]
        state = {name: writer.tensor(a) for name, a in wanted.items()}
        state["mlp.2.weight"] = writer.view(storage, 3, (n, n), (1, n))
        state["mlp.2.bias"] = writer.view(storage, 3 + n * n, (n,), (1,))
        _, arrays, _ = self.convert(writer.zip(state))
        self.assert_same(arrays, wanted)

    def test_half_double_and_bfloat16_become_float32(self):
        wanted, writer = gibbs_arrays(), Writer()
        bits = (wanted["mlp.0.weight"].view(np.uint32) >> 16).astype(np.uint16)
        state = {name: writer.tensor(a) for name, a in wanted.items()}
        state["cnn.0.weight"] = writer.tensor(wanted["cnn.0.weight"].astype(np.float64))
        state["cnn.2.weight"] = writer.tensor(wanted["cnn.2.weight"].astype(np.float16))
        state["mlp.0.weight"] = writer.tensor(bits)
        _, arrays, _ = self.convert(writer.zip(state))
        wanted["cnn.2.weight"] = wanted["cnn.2.weight"].astype(np.float16).astype(np.float32)
        wanted["mlp.0.weight"] = (bits.astype(np.uint32) << 16).view(np.float32)
        self.assert_same(arrays, wanted)

    def test_a_file_cut_anywhere_is_refused(self):
        wanted = gibbs_arrays(n_f=1, hidden=2, logits=2)
        writer, other = Writer(), Writer()
        # the last storage is one that the conversion has no use for
        files = {"zip": writer.zip(writer.state(wanted)), "safetensors": safetensors(wanted),
                 "legacy": other.legacy({"model": other.state(wanted),
                                         "moments": {0: other.tensor(np.zeros(9, "f4"))}})}
        for kind, data in files.items():
            for cut in [*range(0, 40, 3), *range(40, len(data), len(data) // 60), len(data) - 1]:
                with self.subTest(kind=kind, cut=cut):
                    self.refuse(1, "import_torch.py: ", data[:cut])

    def test_storages_that_lie_about_their_size_are_refused(self):
        wanted = gibbs_arrays()
        for kind, claimed, message in (("zip", 40, "claims 160 bytes, its record holds"),
                                       ("zip", 1 << 40, "more than the file can hold"),
                                       ("legacy", 1 << 40, "more than the file can hold"),
                                       ("legacy", 40, "claims 40 elements, the file says 8"),
                                       ("zip", -1, "more than the file can hold"),
                                       ("zip", True, "more than the file can hold")):
            with self.subTest(kind=kind, claimed=claimed):
                writer = Writer()
                state = {n: writer.tensor(a) for n, a in wanted.items() if n != "mlp.2.bias"}
                lying = writer.storage(wanted["mlp.2.bias"], claimed)
                state["mlp.2.bias"] = writer.view(lying, 0, (1,), (1,))
                self.refuse(1, message, getattr(writer, kind)(state))

    def test_views_beyond_their_storage_are_refused(self):
        for offset, shape, strides in ((0, (9,), (1,)), (8, (1,), (1,)), (0, (2, 2), (7, 1)),
                                       (-1, (1,), (1,)), (0, (4,), (-1,)), (0, (1 << 40,), (0,)),
                                       (0, (1 << 30, 0, 1 << 30), (1, 1)), (0, "ab", (1,)),
                                       (1 << 70, (1,), (1,)), (0, (2.0,), (1,))):
            with self.subTest(offset=offset, shape=shape, strides=strides):
                writer = Writer()
                storage = writer.storage(np.zeros(8, np.float32))
                view = Call(Name("torch._utils", "_rebuild_tensor_v2"),
                            (storage, offset, shape, strides, False, {}))
                self.refuse(1, "tensor", writer.zip({"cnn.0.weight": view}))

    def test_compressed_and_foreign_archives_are_refused(self):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", dump({}) + b"\0" * 4000)
        self.refuse(1, "compressed", stream.getvalue())
        for names, message in ((["a/data.pkl", "a/constants.pkl"], "TorchScript"),
                               (["a/data.pkl", "b/data.pkl"], "no PyTorch checkpoint"),
                               (["readme.txt"], "no PyTorch checkpoint")):
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as archive:
                for name in names:
                    archive.writestr(name, dump({}))
            self.refuse(1, message, stream.getvalue())
        self.refuse(1, "none that torch.save wrote", dump({"cnn.0.weight": 1}))
        self.refuse(1, "is not a checkpoint", b"\x89PNG\r\n\x1a\n" + b"\0" * 64)

    def test_safetensors_that_lie_are_refused(self):
        good = safetensors(gibbs_arrays(n_f=1))
        length = struct.unpack("<Q", good[:8])[0]
        header, data = json.loads(good[8:8 + length]), good[8 + length:]

        def rebuilt(**changes):
            text = json.dumps(header | changes).encode()
            return struct.pack("<Q", len(text)) + text + data

        first = header["cnn.0.weight"]
        self.refuse(1, "longer than the file", struct.pack("<Q", 1 << 60) + good[8:])
        self.refuse(1, "do not agree", rebuilt(**{"cnn.0.weight": first | {"shape": [9, 9]}}))
        self.refuse(1, "not supported", rebuilt(**{"cnn.0.weight": first | {"dtype": "F8"}}))
        gap = first | {"data_offsets": [4, 108]}
        self.refuse(1, "does not begin", rebuilt(**{"cnn.0.weight": gap}))
        self.refuse(1, "damaged safetensors", rebuilt(**{"cnn.0.weight": 3}))
        self.refuse(1, "damaged safetensors", rebuilt(__metadata__=[]).replace(b"[]", b"{{", 1))
        self.refuse(1, "the file has", good + b"\0")


class Architectures(Case):
    def jem(self, arrays, *arguments, **more):
        writer = Writer()
        state = {"model_state_dict": writer.state(arrays)} | more.pop("also", lambda w: {})(writer)
        return self.convert(writer.zip(state), *arguments, **more)

    def test_wide_resnet_10_1_has_the_exact_layers(self):
        description, arrays, out = self.jem(jem_arrays())
        conv = {"kind": "conv", "kernel": 3, "pad": 1}
        lrelu = {"kind": "lrelu", "slope": 0.2}
        wanted = [conv | {"id": "stem", "weights": "f.conv1", "in": 3, "out": 16, "stride": 1}]
        source, inputs = "stem", 16
        for group, stride in ((1, 1), (2, 2), (3, 2)):
            name, outputs = f"layer{group}.0", 16 * 2 ** (group - 1)
            wanted += [
                lrelu | {"from": source},
                conv | {"weights": f"f.{name}.conv1", "in": inputs, "out": outputs, "stride": 1},
                lrelu,
                conv | {"id": name + ".residual", "weights": f"f.{name}.conv2", "in": outputs,
                        "out": outputs, "stride": stride}]
            straight = source
            if group > 1:  # 16 -> 16 at stride 1 in the first group: no shortcut
                straight = name + ".shortcut"
                wanted.append({"kind": "conv", "id": straight, "from": source, "kernel": 1,
                               "weights": f"f.{name}.shortcut.0", "in": inputs, "out": outputs,
                               "stride": stride, "pad": 0})
            wanted.append({"kind": "add", "id": name, "from": name + ".residual", "with": straight})
            source, inputs = name, outputs
        wanted += [lrelu, {"kind": "avgpool", "kernel": 8}, {"kind": "flatten"},
                   {"kind": "linear", "weights": "class_output", "in": 64, "out": 10}]
        self.assertEqual(description["layers"], wanted)
        self.assertEqual(description["attributes"], [
            {"name": "class", "values": [str(i) for i in range(10)], "temperature": 1.0}])
        self.assertEqual(description["energy"], {"kind": "logits"})
        self.assertEqual(description["family"], "jem")
        self.assertEqual(description["input"], {
            "channels": 3, "height": 32, "width": 32, "range": [-1, 1], "pixel_scale": 2 / 255,
            "pixel_offset": -1})
        self.assertIsNone(description["sampler"]["clamp"])
        for name in ("f.linear.weight", "energy_output.bias"):
            self.assertNotIn(name, arrays)
            self.assertIn(name, out)
        self.assertIn("wide ResNet 10-1, 10 classes", out)

    def test_wide_resnet_28_10_is_recognised_from_names_and_shapes(self):
        # all its tensors are views of one small storage, so that the file stays small
        writer = Writer()
        storage = writer.storage(np.zeros(640 * 640 * 9, np.float32))
        state, stored = {}, 0
        for name, shape in jem_shapes(28, 10).items():
            for suffix, s in ((".weight", shape), (".bias", shape[:1])):
                strides = tuple(int(np.prod(s[i + 1:])) for i in range(len(s)))
                state[name + suffix] = writer.view(storage, 0, s, strides)
                stored += int(np.prod(s))
        self.assertEqual((len(state), round(stored / 1e6, 2)), (62, 36.48))
        description, arrays, out = self.convert(writer.zip({"model_state_dict": state}))
        self.assertIn("wide ResNet 28-10", out)
        kinds = [layer["kind"] for layer in description["layers"]]
        self.assertEqual([kinds.count(k) for k in ("conv", "lrelu", "add", "linear")],
                         [28, 25, 12, 1])
        self.assertEqual(
            [layer["weights"] for layer in description["layers"] if layer.get("stride") == 2],
            ["f.layer2.0.conv2", "f.layer2.0.shortcut.0", "f.layer3.0.conv2",
             "f.layer3.0.shortcut.0"])
        self.assertEqual(len(arrays), 58)

    def test_uncond_stacks_both_heads(self):
        wanted = jem_arrays(classes=7)
        description, arrays, _ = self.jem(wanted, "--uncond")
        self.assertEqual(description["layers"][-1], {
            "kind": "linear", "weights": "head", "in": 64, "out": 8})
        self.assertEqual((description["energy"], description["family"]),
                         ({"kind": "head"}, "jem-uncond"))
        self.assertEqual(len(description["attributes"][0]["values"]), 7)
        np.testing.assert_array_equal(arrays["head.weight"][:7], wanted["class_output.weight"])
        np.testing.assert_array_equal(arrays["head.weight"][7:], wanted["energy_output.weight"])
        np.testing.assert_array_equal(arrays["head.bias"][7:], wanted["energy_output.bias"])
        self.assertNotIn("class_output.weight", arrays)
        writer = Writer()
        data = writer.zip(writer.state(gibbs_arrays()))
        self.refuse(2, "--uncond is about JEM", data, "--uncond")

    def test_gibbs_nets_of_both_sizes_are_recognised(self):
        for size in (32, 64):
            writer = Writer()
            description, _, _ = self.convert(writer.zip(writer.state(gibbs_arrays(size=size))))
            self.assertEqual([description["input"][k] for k in ("channels", "height", "width")],
                             [3, size, size])
            self.assertEqual(description["input"]["pixel_scale"], 1 / 256)
            self.assertEqual(description["input"]["pixel_offset"], 0.5 / 256)
            self.assertEqual(description["attributes"][2]["name"], "attribute_2")
            self.assertEqual(description["attributes"][2]["values"], ["absent", "present"])
            self.assertEqual(description["sampler"]["kind"], "gibbs")
            self.assertEqual(description["sampler"]["clamp"], [0, 1])
            kinds = [layer["kind"] for layer in description["layers"]]
            self.assertEqual(kinds[-8:], ["silu", "conv", "flatten", "linear", "silu", "linear",
                                          "silu", "linear"])

    def test_the_moving_average_is_preferred_and_wrappers_prefixes_fall(self):
        average, raw = gibbs_arrays(seed=2), gibbs_arrays(seed=3)

        def wrapped(arrays):
            return {"module." + name: a for name, a in arrays.items()}
        writer = Writer()
        root = {"models": {"logp_net": writer.state(wrapped(raw)),
                           "ema_logp_net": writer.state(wrapped(average))},
                "optimizer": {"logp_net": {
                    "state": {0: {"exp_avg": writer.tensor(raw["mlp.0.bias"])}}}},
                "itr": 7, "args": Call(Name("argparse", "Namespace"), (), {"seed": 0})}
        data = writer.zip(root)
        description, arrays, out = self.convert(data)
        self.assert_same(arrays, average)
        self.assertEqual(description["provenance"]["checkpoint_state"], "models.ema_logp_net")
        _, arrays, _ = self.convert(data, "--state", "models.logp_net")
        self.assert_same(arrays, raw)
        self.refuse(2, "'models.logp_net'", data, "--state", "models.nothing")
        writer = Writer()
        data = writer.zip({"a": writer.state(raw), "b": writer.state(average)})
        self.refuse(1, "choose with --state", data)

    def test_prefixes_choose_among_tensors(self):
        wanted = gibbs_arrays()
        prefixed = {"model." + name: a for name, a in wanted.items()}
        data = safetensors(prefixed | {"in.x": np.zeros(3, "f4")})
        _, arrays, _ = self.convert(data, "--prefix", "model.")
        self.assert_same(arrays, wanted)
        self.refuse(1, "neither JEM's", data)

    def test_batch_normalisation_behind_a_convolution_is_folded(self):
        rng, plain = np.random.default_rng(5), gibbs_arrays()
        normed, last = {}, 0
        for i, index in enumerate((0, 2, 4, 6)):
            for suffix in (".weight", ".bias"):
                normed[f"cnn.{3 * i}{suffix}"] = plain[f"cnn.{index}{suffix}"]
            channels = len(plain[f"cnn.{index}.bias"])
            name = f"cnn.{3 * i + 1}"
            normed[name + ".weight"] = rng.uniform(.5, 2, channels).astype("f4")
            normed[name + ".bias"] = rng.normal(size=channels).astype("f4")
            normed[name + ".running_mean"] = rng.normal(size=channels).astype("f4")
            normed[name + ".running_var"] = rng.uniform(.1, 3, channels).astype("f4")
            last = 3 * i + 3
        normed |= {f"cnn.{last}{s}": plain[f"cnn.8{s}"] for s in (".weight", ".bias")}
        normed |= {n: a for n, a in plain.items() if n.startswith("mlp")}
        writer = Writer()
        description, arrays, out = self.convert(writer.zip(writer.state(normed)))
        self.assertIn("4 batch normalisations folded", out)
        x = rng.uniform(size=(2, 3, 32, 32))
        h = x
        for i in range(4):
            h = convolve(h, normed[f"cnn.{3 * i}.weight"], normed[f"cnn.{3 * i}.bias"],
                         1 if i == 0 else 2, 1)
            n = {s: normed[f"cnn.{3 * i + 1}.{s}"][:, None, None]
                 for s in ("weight", "bias", "running_mean", "running_var")}
            h = (h - n["running_mean"]) / np.sqrt(n["running_var"] + 1e-5) * n["weight"] + n["bias"]
            h = h / (1 + np.exp(-h))
        h = convolve(h, plain["cnn.8.weight"], plain["cnn.8.bias"], 1, 0).reshape(2, -1)
        for i in (0, 2, 4):
            h = h if i == 0 else h / (1 + np.exp(-h))
            h = h @ plain[f"mlp.{i}.weight"].T + plain[f"mlp.{i}.bias"]
        self.assertLess(relative(evaluate(description, arrays, x), h), 1e-5)

    def test_batch_normalisation_of_the_residual_stream_is_refused_unless_asked_for(self):
        arrays = jem_arrays() | {f"f.layer1.0.bn1.{s}": np.ones(16, "f4") for s in
                                 ("weight", "bias", "running_mean", "running_var")}
        writer = Writer()
        data = writer.zip({"model_state_dict": writer.state(arrays)})
        self.refuse(1, "f.layer1.0.bn1 normalises the residual stream", data)
        description, written, _ = self.convert(data, "--norm-as-conv")
        layer = description["layers"][1]
        self.assertEqual([layer[k] for k in ("weights", "from", "kernel")],
                         ["f.layer1.0.bn1", "stem", 1])
        np.testing.assert_allclose(written["f.layer1.0.bn1.weight"][:, :, 0, 0],
                                   np.eye(16) / np.sqrt(1 + 1e-5), rtol=1e-6)

    def test_architectures_that_only_look_alike_are_refused(self):
        def jem(change):
            arrays = jem_arrays()
            change(arrays)
            writer = Writer()
            return writer.zip({"model_state_dict": writer.state(arrays)})

        def gibbs(change, **how):
            arrays = gibbs_arrays(**how)
            change(arrays)
            writer = Writer()
            return writer.zip(writer.state(arrays))

        zeros = lambda *shape: np.zeros(shape, "f4")  # noqa: E731
        self.refuse(1, "no tensor 'f.layer2.0.conv2.weight'",
                    jem(lambda a: a.pop("f.layer2.0.conv2.weight")))
        self.refuse(1, "has shape",
                    jem(lambda a: a.update({"f.layer2.0.conv1.weight": zeros(32, 9, 3, 3)})))
        self.refuse(1, "f.layer1.0.shortcut.0.bias has no place",
                    jem(lambda a: a.update({"f.layer1.0.shortcut.0.bias": zeros(16)})))
        self.refuse(1, "other than batch",
                    jem(lambda a: a.update({"f.layer1.0.bn1.weight": zeros(16)})))
        self.refuse(1, "not finite", jem(lambda a: a["f.conv1.bias"].__setitem__(3, np.nan)))
        self.refuse(1, "spectrally", jem(lambda a: a.update({"f.conv1.weight_orig": zeros(1)})))
        self.refuse(1, "blocks [0, 2]",
                    jem(lambda a: a.update({"f.layer2.2.conv1.weight": zeros(1)})))
        self.refuse(1, "no JEM classifier", jem(lambda a: a.pop("class_output.weight")))
        self.refuse(1, "floating point",
                    jem(lambda a: a.update({"f.conv1.bias": np.zeros(16, "i8")})))
        self.refuse(1, "one energy f(x, y)", gibbs(lambda a: None, logits=1))
        self.refuse(1, "no square", gibbs(lambda a: a.update({"mlp.0.weight": zeros(8, 9)})))
        self.refuse(1, "no pairs", gibbs(lambda a: None, logits=5))
        self.refuse(1, "kernel of 5x5",
                    gibbs(lambda a: a.update({"cnn.0.weight": zeros(4, 3, 5, 5)})))
        self.refuse(1, "cnn.3 should be", gibbs(lambda a: a.update({"cnn.1.running_mean": zeros(4),
                                                                  "cnn.1.running_var": zeros(4)})))
        self.refuse(1, "no tensor 'mlp.0.weight'", gibbs(lambda a: a.pop("mlp.0.weight")))
        self.refuse(1, "2 dimensions", gibbs(lambda a: a.update({"mlp.4.weight": zeros(8)})))
        self.refuse(1, "4 dimensions", gibbs(lambda a: a.update({"cnn.8.weight": zeros(0, 32, 1, 1)})))
        self.refuse(1, "without mlp", gibbs(lambda a: [a.pop(n) for n in list(a) if "mlp" in n]))
        self.refuse(1, "no state dict", Writer().zip({"itr": 3}))
        self.refuse(1, "no state dict", Writer().zip([1, 2]))

    def test_a_second_name_of_a_used_tensor_is_dropped(self):
        writer = Writer()
        arrays = jem_arrays()
        state = {name: writer.tensor(a) for name, a in arrays.items()}
        state["f.layer_one.weight"] = state["f.conv1.weight"]
        state["f.layer_one.bias"] = state["f.conv1.bias"]
        _, written, out = self.convert(writer.zip({"model_state_dict": state}))
        self.assertIn("f.layer_one.weight", out)
        self.assert_same(written, {"f.conv1.weight": arrays["f.conv1.weight"]})


class Buffers(Case):
    def test_jems_buffer_is_clipped_to_eight_bits_and_thinned_out(self):
        rng, writer = np.random.default_rng(3), Writer()
        images = rng.uniform(-1.1, 1.1, (40, 3, 32, 32)).astype("f4")
        images[4] = np.nan
        root = {"model_state_dict": writer.state(jem_arrays()),
                "replay_buffer": writer.tensor(images)}
        data = writer.zip(root)
        description, arrays, out = self.convert(data, "--buffer-max", "13")
        coding = description["replay_buffer"]
        self.assertEqual((coding["x"], coding["y"]), ("buffer.x", "buffer.y"))
        x = arrays["buffer.x"] * coding["scale"] + coding["offset"]
        self.assertEqual(arrays["buffer.x"].dtype, np.uint8)
        finite = np.delete(images, 4, axis=0)
        picked = finite[np.arange(13) * 39 // 13]
        self.assertLessEqual(np.abs(x - np.clip(picked, -1, 1)).max(), 1 / 255 + 1e-6)
        np.testing.assert_array_equal(arrays["buffer.y"], np.full((13, 1), 255))
        self.assertRegex(out, r"13 of 40 entries, 1 that were not finite left out, 8-bit, "
                              r"(8|9|10)\.\d+% of the values clipped to \[-1, 1\]")
        _, arrays, _ = self.convert(data, "--buffer-max", "13", "--buffer-float")
        np.testing.assert_array_equal(arrays["buffer.x"], picked)
        description, arrays, _ = self.convert(data, "--buffer-max", "0")
        self.assertNotIn("replay_buffer", description)
        self.assertNotIn("buffer.x", arrays)
        _, arrays, _ = self.convert(data, "--buffer-by-class")
        self.assertEqual(len(arrays["buffer.y"]), 39)
        self.assertEqual(arrays["buffer.y"][:4].ravel().tolist(), [0, 0, 0, 0])
        self.assertEqual(arrays["buffer.y"][4:7].ravel().tolist(), [1, 1, 1])

    def test_pickled_buffer_objects_are_looked_through(self):
        writer, rng = Writer(), np.random.default_rng(4)
        images = rng.uniform(size=(6, 3, 32, 32)).astype("f4")
        labels = rng.integers(0, 2, (6, 3)).astype("f4")
        labels[1, 2] = -1

        def pickled(array):
            state = {"_storage": writer.tensor(array), "buffer_len": 4, "max_size": 6, "_n": 9}
            return Call(Name("__main__", "ReservoirBuffer"), (), state)
        root = {"models": {"ema_logp_net": writer.state(gibbs_arrays())},
                "replay_buffer": pickled(images), "y_replay_buffer": pickled(labels)}
        description, arrays, out = self.convert(writer.zip(root))
        self.assertIn("4 of 4 entries", out)
        labels[1, 2] = 255
        np.testing.assert_array_equal(arrays["buffer.y"], labels[:4])
        x = arrays["buffer.x"] * description["replay_buffer"]["scale"]
        self.assertLessEqual(np.abs(x - images[:4]).max(), 0.5 / 255 + 1e-6)
        self.assertEqual([n for n in arrays if n.startswith("buffer")], ["buffer.x", "buffer.y"])

    def test_numpy_buffers_are_read(self):
        writer, rng = Writer(), np.random.default_rng(4)
        images = rng.uniform(-1, 1, (3, 3, 32, 32)).astype("f4")
        core = Name("numpy.core.multiarray", "_reconstruct")
        dtype = Call(Name("numpy", "dtype"), ("f4", False, True),
                     (3, "<", None, None, None, -1, -1, 0))
        raw = Call(Name("_codecs", "encode"), (images.tobytes().decode("latin1"), "latin1"))
        array = Call(core, (Name("numpy", "ndarray"), (0,), b"b"),
                     (1, images.shape, dtype, False, raw))
        root = {"model_state_dict": writer.state(jem_arrays()), "replay_buffer": array}
        _, arrays, _ = self.convert(writer.zip(root), "--buffer-float")
        np.testing.assert_array_equal(arrays["buffer.x"], images)

    def test_buffers_that_do_not_fit_are_refused(self):
        def checkpoint(images, labels=None):
            writer = Writer()
            root = {"models": {"ema_logp_net": writer.state(gibbs_arrays())},
                    "replay_buffer": writer.tensor(images)}
            if labels is not None:
                root["y_replay_buffer"] = writer.tensor(labels)
            return writer.zip(root)
        images = np.zeros((2, 3, 32, 32), "f4")
        self.refuse(1, "the replay buffer has shape", checkpoint(np.zeros((2, 3, 28, 28), "f4")))
        self.refuse(1, "labels have shape", checkpoint(images, np.zeros((2, 4), "f4")))
        self.refuse(1, "not all below 2", checkpoint(images, np.full((2, 3), 2, "f4")))
        self.refuse(1, "not all below 2", checkpoint(images, np.full((2, 3), np.nan, "f4")))
        self.refuse(1, "floats or bytes", checkpoint(images.astype("i8")))
        self.refuse(2, "--buffer-by-class is for", checkpoint(images), "--buffer-by-class")


class Descriptions(Case):
    def data(self, **how):
        writer = Writer()
        return writer.zip(writer.state(gibbs_arrays(**how)))

    def test_overrides_are_merged_member_by_member(self):
        describe = {
            "name": "shoes", "version": "3", "input": {"range": [-1, 1]},
            "attributes": [{"name": "colour", "values": ["red", "blue", "green"]},
                           {"name": "boot", "values": ["no", "yes"], "temperature": 1.5}],
            "sampler": {"steps": 7, "start": {"grid": 8}}, "provenance": {"licence": "CC0"}}
        description, _, out = self.convert(self.data(logits=5), describe=describe)
        self.assertEqual((description["name"], description["version"]), ("shoes", "3"))
        self.assertEqual(description["family"], "mixed")
        self.assertEqual(description["input"]["pixel_scale"], 2 / 255)
        self.assertEqual(description["sampler"]["steps"], 7)
        self.assertEqual(description["sampler"]["noise"], 0.001)
        self.assertEqual(description["sampler"]["clamp"], [-1, 1])
        self.assertEqual(description["sampler"]["start"],
                         {"kind": "noise", "grid": 8, "noise": 0.0})
        self.assertEqual(description["attributes"][1]["temperature"], 1.5)
        self.assertEqual(description["provenance"]["licence"], "CC0")
        self.assertEqual(len(description["provenance"]["checkpoint_sha256"]), 64)
        self.assertIn("colour (3), boot (2)", out)

    def test_the_case_of_a_safetensors_state_dict_is_used(self):
        case = {"attributes": [{"name": "a", "values": ["x", "y", "z"]}], "range": [-1, 1]}
        data = safetensors(gibbs_arrays(logits=3), {"case": json.dumps(case)})
        description, _, _ = self.convert(data)
        self.assertEqual(description["attributes"][0]["values"], ["x", "y", "z"])
        self.assertEqual(description["input"]["range"], [-1, 1])
        for case in ("{", "[1]", '{"attributes": 3}', "[" * 100000):
            self.refuse(1, "no pairs", safetensors(gibbs_arrays(logits=3), {"case": case}))

    def test_descriptions_that_do_not_fit_are_refused(self):
        two = [{"name": "a", "values": ["x", "y"]}, {"name": "b", "values": ["x", "y", "z"]}]
        for describe, message in (
                ([], "must be an object"),
                ({"sampler": {"stepz": 3}}, "/sampler/stepz is unknown"),
                ({"sampler": {"steps": "3"}}, "/sampler/steps must be an integer"),
                ({"sampler": {"steps": 0}}, "too small"),
                ({"sampler": {"kind": "sgdl"}}, "known are sgld"),
                ({"sampler": {"step_rule": "normalised"}}, "step_norm is missing"),
                ({"sampler": {"clamp": [1, 1]}}, "/sampler/clamp must be two numbers"),
                ({"input": {"range": [1, 0]}}, "/input/range must be two numbers"),
                ({"input": {"height": 64}}, "mlp.0 reads 64 numbers"),
                ({"input": {"channels": 1}}, "reads 3 channels but gets 1"),
                ({"attributes": two}, "6 outputs, the attributes need 5"),
                ({"attributes": two + two}, "two attributes are called"),
                ({"attributes": [{"name": "a", "values": ["x", "x"]}]}, "different values"),
                ({"attributes": [{"name": "a"}]}, "printable texts"),
                ({"attributes": [{"name": "a\n", "values": ["x", "y"]}]}, "printable texts"),
                ({"attributes": [{"name": "a", "values": ["x", "y"], "temperature": 0}]},
                 "in [0.01"),
                ({"attributes": [{"name": "\u00e9" * 32, "values": ["x", "y"]}]}, "63 bytes"),
                ({"sampler": {"start": {"kind": "image"}}}, "known are noise"),
                ({"layers": [{"kind": "flatten", "id": "i" * 32}]}, "too long or used twice"),
                ({"name": "a/b"}, "must be letters"), ({"version": ""}, "must be letters"),
                ({"layers": [{"kind": "flat"}]}, "known are"), ({"layers": [3]}, "incomplete"),
                ({"layers": [{"kind": "linear", "weights": "mlp.0", "in": 3, "out": 3}]},
                 "is wanted"),
                ({"energy": {"kind": "head"}}, "the attributes need 7"),
                ({"replay_buffer": {"scale": 1.0}}, "needs scale and offset")):
            with self.subTest(describe=describe):
                self.refuse(2, message, self.data(), describe=describe)
        bad = self.put(b'{"name": "a", "name": "b"}', "twice.json")
        self.refuse(2, "a member occurs twice", self.data(), "--describe", bad)
        bad = self.put(b'{"sampler": {"noise": NaN}}', "nan.json")
        self.refuse(2, "NaN is no JSON number", self.data(), "--describe", bad)
        self.refuse(2, "No such file", self.data(), "--describe", bad + "x")

    def test_the_file_is_laid_out_for_mapping(self):
        writer = Writer()
        root = {"models": {"ema": writer.state(gibbs_arrays())},
                "replay_buffer": writer.tensor(np.zeros((3, 3, 32, 32), "f4"))}
        _, arrays, start = (self.convert(writer.zip(root)), *read_model(self.output)[1:])
        self.assertEqual(start % 64, 0)
        kinds = [str(a.dtype) for a in arrays.values()]
        self.assertEqual(kinds, sorted(kinds, key=lambda k: k != "float32"))
        with open(self.output, "rb") as stream:
            first = stream.read()
        self.convert(writer.zip(root))
        with open(self.output, "rb") as stream:
            self.assertEqual(stream.read(), first)
        self.refuse(1, "a jemd model file already", first)

    def test_a_failure_leaves_the_old_model_alone(self):
        with open(self.output, "wb") as stream:
            stream.write(b"old")
        path = self.put(b"nothing")
        self.assertEqual(self.run_main(path, "-o", self.output)[0], 1)
        self.assertEqual(self.run_main(path, "-o", path)[0], 2)
        self.assertEqual(self.run_main(path + "x", "-o", self.output)[0], 1)
        good = self.put(self.data())
        code, _, err = self.run_main(good, "-o", os.path.join(self.folder, "none", "m.safetensors"))
        self.assertEqual(code, 1)
        self.assertIn("No such file", err)
        with open(self.output, "rb") as stream:
            self.assertEqual(stream.read(), b"old")
        os.mkdir(os.path.join(self.folder, "taken"))
        code, _, err = self.run_main(good, "-o", os.path.join(self.folder, "taken"))
        self.assertEqual(code, 1)
        self.assertIn("directory", err)
        self.assertEqual([f for f in os.listdir(self.folder) if f.startswith(".import-")], [])

    def test_the_program_says_what_it_wants(self):
        for arguments, code in (([], 2), (["a"], 2), (["a", "-o", "b", "--buffer-max", "-1"], 2),
                                (["--help"], 0)):
            done = subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True,
                                  text=True, timeout=60, cwd=self.folder)
            self.assertEqual(done.returncode, code)
            self.assertIn("usage: import_torch.py", done.stdout + done.stderr)
        self.assertIn("exit codes", done.stdout)


def golden(name):
    return os.path.join(SHARED, "golden", name + ".safetensors")


@unittest.skipUnless(os.path.isdir(os.path.join(SHARED, "golden")), "no shared golden files")
class Golden(Case):
    def test_converted_golden_models_give_the_golden_logits(self):
        for name in ("jem_wrn10_2", "gibbs_jem_32_nf8_k5", "gibbs_jem_64_nf8_k7"):
            with self.subTest(name=name):
                code, _, err = self.run_main(golden(name), "-o", self.output, "--prefix", "model.")
                self.assertEqual((code, err), (0, ""))
                description, arrays, _ = read_model(self.output)
                _, expected, _ = read_model(golden(name))
                logits = evaluate(description, arrays, expected["in.x"])
                self.assertLess(relative(logits, expected["out.logits"]), 1e-5)

    def test_the_converted_sprites_give_the_golden_logits(self):
        source = os.path.join(SHARED, "models", "sprites.safetensors")
        describe = os.path.join(SOURCE, "tests", "golden", "sprites.describe.json")
        code, _, err = self.run_main(source, "-o", self.output, "--describe", describe)
        self.assertEqual((code, err), (0, ""))
        description, arrays, _ = read_model(self.output)
        _, expected, _ = read_model(golden("sprites_test4"))
        logits = evaluate(description, arrays, expected["in.x"])
        self.assertLess(relative(logits, expected["out.logits"]), 1e-5)
        _, before, _ = read_model(source)
        self.assert_same(arrays, {n: before[n] for n in ("buffer.x", "buffer.y")})


if __name__ == "__main__":
    if not os.path.isdir(os.path.join(SHARED, "golden")):
        print("skipped: the golden files (no shared folder)")
    unittest.main()
