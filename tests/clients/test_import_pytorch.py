# SPDX-License-Identifier: Apache-2.0
"""The checkpoint importer against PyTorch itself: what torch.save wrote, computed by both."""
import os
import subprocess
import sys
import unittest

import numpy as np

from checkpoints import Case, evaluate, gibbs_arrays, read_model, relative, safetensors

try:
    import torch
    from torch import nn
except ImportError:
    torch = None

JEMD = os.environ.get("JEMD_BIN", "")

if torch is not None:
    class Block(nn.Module):
        """MODELS.md's wide ResNet block, with JEM's names."""

        def __init__(self, inputs, outputs, stride, norm):
            super().__init__()
            self.bn1 = nn.BatchNorm2d(inputs) if norm else nn.Identity()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.bn2 = nn.BatchNorm2d(outputs) if norm else nn.Identity()
            self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1)
            same = stride == 1 and inputs == outputs
            self.shortcut = nn.Sequential(
                *[] if same else [nn.Conv2d(inputs, outputs, 1, stride=stride)])

        def forward(self, x):
            h = self.conv1(nn.functional.leaky_relu(self.bn1(x), 0.2))
            h = self.conv2(nn.functional.leaky_relu(self.bn2(h), 0.2))
            return h + self.shortcut(x)

    class Features(nn.Module):
        def __init__(self, depth, width, norm):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
            inputs = 16
            for group in (1, 2, 3):
                outputs, blocks = 16 * width * 2 ** (group - 1), []
                for i in range((depth - 4) // 6):
                    blocks.append(Block(inputs, outputs, 2 if i == 0 and group > 1 else 1, norm))
                    inputs = outputs
                setattr(self, f"layer{group}", nn.Sequential(*blocks))
            self.bn1 = nn.BatchNorm2d(inputs) if norm else nn.Identity()
            self.linear = nn.Linear(inputs, 10)

        def forward(self, x):
            h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
            h = nn.functional.leaky_relu(self.bn1(h), 0.2)
            return nn.functional.avg_pool2d(h, 8).flatten(1)

    class Jem(nn.Module):
        def __init__(self, depth, width, norm=False):
            super().__init__()
            self.f = Features(depth, width, norm)
            features = 64 * width
            self.energy_output = nn.Linear(features, 1)
            self.class_output = nn.Linear(features, 10)

        def forward(self, x):
            return self.class_output(self.f(x))

    class ReplayBuffer:
        def __init__(self, storage):
            self._storage, self.buffer_len, self.max_size = storage, len(storage), len(storage)


@unittest.skipIf(torch is None, "no PyTorch for this Python")
class TorchCheckpoints(Case):
    def save(self, value, legacy):
        path = os.path.join(self.folder, "saved.pt")
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        return path

    def imported(self, path, *arguments):
        code, out, err = self.run_main(path, "-o", self.output, *arguments)
        self.assertEqual((code, err), (0, ""))
        return (*read_model(self.output)[:2], out)

    def test_both_containers_round_trip_to_equal_tensors(self):
        torch.manual_seed(1)
        model = Jem(10, 2)
        images = torch.rand(5, 3, 32, 32) * 2 - 1
        for legacy in (False, True):
            path = self.save(
                {"model_state_dict": model.state_dict(), "replay_buffer": images}, legacy)
            _, arrays, _ = self.imported(path, "--buffer-float")
            for name, value in model.state_dict().items():
                if not name.startswith(("f.linear", "energy_output")):
                    np.testing.assert_array_equal(arrays[name], value.numpy())
            np.testing.assert_array_equal(arrays["buffer.x"], images.numpy())

    def test_views_halves_and_parameters_of_torch_are_read(self):
        wanted = gibbs_arrays()
        state = {name: torch.from_numpy(a) for name, a in wanted.items()}
        whole = torch.arange(64 * 4, dtype=torch.float32).reshape(64, 4)
        state["mlp.0.weight"] = whole.t()[1:3].expand(2, 64).repeat(4, 1)
        state["mlp.2.weight"] = whole[:8].t().repeat(2, 1)
        state["mlp.2.bias"] = nn.Parameter(whole[0:8, 2])
        state["cnn.2.weight"] = state["cnn.2.weight"].half()
        state["cnn.4.weight"] = state["cnn.4.weight"].bfloat16()
        swapped = state["cnn.6.weight"].permute(1, 0, 2, 3).contiguous()
        state["cnn.6.weight"] = swapped.permute(1, 0, 2, 3)
        for legacy in (False, True):
            _, arrays, _ = self.imported(self.save(state, legacy))
            for name, value in state.items():
                np.testing.assert_array_equal(
                    arrays[name], value.detach().float().numpy(), err_msg=name)

    def test_a_whole_gibbs_checkpoint_is_read(self):
        net = nn.Sequential()
        net.add_module("cnn", nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1), nn.SiLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(8, 16, 4, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(32, 4, 1), nn.Flatten()))
        net.add_module("mlp", nn.Sequential(
            nn.Linear(64, 9), nn.SiLU(), nn.Linear(9, 9), nn.SiLU(), nn.Linear(9, 6)))
        optimiser = torch.optim.Adam(net.parameters())
        x = torch.rand(3, 3, 32, 32)
        net(x).sum().backward()
        optimiser.step()
        ReplayBuffer.__module__ = "__main__"
        main = sys.modules["__main__"]
        missing = not hasattr(main, "ReplayBuffer")
        if missing:
            main.ReplayBuffer = ReplayBuffer
            self.addCleanup(delattr, main, "ReplayBuffer")
        state = nn.DataParallel(net).state_dict()
        root = {"models": {"logp_net": {k: v * 0 for k, v in state.items()}, "ema_logp_net": state},
                "optimizer": {"logp_net": optimiser.state_dict()}, "itr": 5, "tst_accs": {5: 0.25},
                "replay_buffer": ReplayBuffer(x.clone()),
                "y_replay_buffer": ReplayBuffer(torch.ones(3, 3))}
        with torch.no_grad():
            logits = net(x).numpy()
        for legacy in (False, True):
            description, arrays, out = self.imported(self.save(root, legacy))
            self.assertIn("models.ema_logp_net", out)
            self.assertLess(relative(evaluate(description, arrays, x.numpy()), logits), 1e-5)
            self.assertEqual(arrays["buffer.y"].tolist(), [[1, 1, 1]] * 3)
            self.assertEqual(arrays["buffer.x"].shape, (3, 3, 32, 32))

    def test_the_layer_list_computes_what_the_network_computes(self):
        torch.manual_seed(2)
        x = torch.rand(2, 3, 32, 32) * 2 - 1
        for depth, width in ((10, 2), (16, 1)):
            model = Jem(depth, width).eval()
            description, arrays, _ = self.imported(
                self.save({"model_state_dict": model.state_dict()}, False))
            with torch.no_grad():
                logits = model(x).numpy()
                energy = model.energy_output(model.f(x)).numpy()
            self.assertLess(relative(evaluate(description, arrays, x.numpy()), logits), 1e-5)
            path = os.path.join(self.folder, "saved.pt")
            description, arrays, _ = self.imported(path, "--uncond")
            both = evaluate(description, arrays, x.numpy())
            self.assertLess(relative(both, np.concatenate([logits, energy], axis=1)), 1e-5)

    def test_a_batch_normalised_wide_resnet_keeps_its_function(self):
        torch.manual_seed(3)
        model, x = Jem(10, 2, norm=True), torch.rand(8, 3, 32, 32) * 2 - 1
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))  # moves the running statistics
        model.eval()
        path = self.save({"model_state_dict": model.state_dict()}, False)
        self.assertEqual(self.run_main(path, "-o", self.output)[0], 1)
        description, arrays, out = self.imported(path, "--norm-as-conv")
        self.assertIn("3 batch normalisations folded", out)
        self.assertIn("4 batch normalisations became", out)
        with torch.no_grad():
            logits = model(x).numpy()
        self.assertLess(relative(evaluate(description, arrays, x.numpy()), logits), 1e-5)

    def test_a_hostile_object_saved_by_torch_is_refused(self):
        marker = os.path.join(self.folder, "ran")

        class Evil:
            def __reduce__(self):
                return os.system, ("touch " + marker,)
        for legacy in (False, True):
            state = {"f.conv1.weight": torch.ones(1)}
            path = self.save({"model_state_dict": state, "x": Evil()}, legacy)
            code, _, err = self.run_main(path, "-o", self.output)
            self.assertEqual(code, 2)
            self.assertIn("posix.system", err)
            self.assertFalse(os.path.exists(marker))

    def test_a_pickled_module_is_refused_with_advice(self):
        for legacy in (False, True):
            path = self.save(nn.Linear(2, 2), legacy)
            code, _, err = self.run_main(path, "-o", self.output)
            self.assertEqual(code, 1)
            self.assertIn("save its state_dict()", err)

    @unittest.skipUnless(os.access(JEMD, os.X_OK), "no JEMD_BIN")
    def test_jemd_computes_wide_resnet_28_10_as_pytorch_does(self):
        torch.manual_seed(4)
        model, x = Jem(28, 10).eval(), torch.rand(2, 3, 32, 32) * 2 - 1
        with torch.no_grad():
            logits = model(x).numpy()
        source = self.put(safetensors({"in.x": x.numpy()}), "in.safetensors")
        result = os.path.join(self.folder, "result.safetensors")
        for legacy in (False, True):
            path = self.save({"model_state_dict": model.state_dict()}, legacy)
            self.imported(path)
            done = subprocess.run(
                [JEMD, "predict", "--tensors", source, "--out", result, self.output],
                capture_output=True, text=True, timeout=300)
            self.assertEqual(done.returncode, 0, done.stderr)
            found = read_model(result)[1]
            self.assertLess(relative(found["out.logits"], logits), 1e-4)
            self.assertLess(relative(found["out.logp_x"],
                                     np.log(np.exp(logits.astype("f8")).sum(axis=1))), 1e-4)


if __name__ == "__main__":
    if torch is None:
        print("skipped: the tests against PyTorch (python3-torch is not installed)")
    elif not os.access(JEMD, os.X_OK):
        print("skipped: jemd against PyTorch (no JEMD_BIN)")
    unittest.main()
