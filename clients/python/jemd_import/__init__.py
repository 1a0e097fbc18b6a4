# SPDX-License-Identifier: Apache-2.0
"""Converts PyTorch checkpoints to jemd's model file. The command is ../import_torch.py.

pickles        reads a pickle as data: no code of it runs
containers     the files around it (zip, legacy, safetensors), tensors read on demand
architectures  state dict -> layer list and weights
description    defaults, the user's overrides, and the check that everything fits
buffers        the replay buffer
writer         the safetensors file
"""


class Unusable(Exception):
    """The checkpoint cannot be converted: exit code 1."""


class Refused(Exception):
    """Refused as dangerous, or asked for wrongly: exit code 2."""
