"""ResNet weights in the forms they come in, as state dicts of a `ResNet`.

One table of names: torchvision's, which timm's (and so torchgeo's) are too, ImageNet's files and the query
encoders of MoCo and DI3CL checkpoints with them. transformers' own names are read as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.resnet.config import ResNetConfig
from crossearth_sar.resnet.resnet import ResNet
from crossearth_sar.state_files import below, for_three_channels, read_state_file, require_fit

FIRST_KERNEL = "embedder.embedder.convolution.weight"

ENCODERS = ("encoder_q.encoder.", "encoder_q.", "resnet.", "backbone.", "encoder.", "")
"""What stands before the encoder's names, «module.» taken off: of DI3CL's checkpoints, MoCo's, transformers'
classifiers, mmsegmentation's, and of files of the encoder alone. With a prefix, what does not have it is
another part (key network, queue, heads of the loss) and left out."""

_NAMES = (  # of torchvision -> of transformers' modules here
    (r"conv1\.", "embedder.embedder.convolution."),
    (r"bn1\.", "embedder.embedder.normalization."),
    (r"layer([1-4])\.(\d+)\.conv(\d)\.", "stages.{0}.layers.{1}.layer.{2}.convolution."),
    (r"layer([1-4])\.(\d+)\.bn(\d)\.", "stages.{0}.layers.{1}.layer.{2}.normalization."),
    (r"layer([1-4])\.(\d+)\.downsample\.0\.", "stages.{0}.layers.{1}.shortcut.convolution."),
    (r"layer([1-4])\.(\d+)\.downsample\.1\.", "stages.{0}.layers.{1}.shortcut.normalization."),
    (r"encoder\.stages\.", "stages."),
)
_HEADS = ("fc.", "classifier.")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def read_resnet(path: str | Path, config: ResNetConfig) -> dict[str, Tensor]:
    """Reads ResNet weights as the state dict of a `ResNet(config)`.

    Args:
        path: a .pth, .pt or .safetensors file; the first convolution may have 1 to 3 channels.

    Raises:
        InputError: the file cannot be read, or has unknown, missing or misshaped keys, all of which one
            message lists; or the weights want batch statistics and config.norm is group.
    """
    state = from_torchvision(read_state_file(Path(path)))
    if FIRST_KERNEL in state:
        state[FIRST_KERNEL] = for_three_channels(state[FIRST_KERNEL], f"weights {path}")
    if config.norm == "group" and any(key.endswith(_STATISTICS) for key in state):
        raise InputError(
            f"weights {path} were trained with batch normalisation",
            got="resnet.norm group",
            expected="batch or frozen: with another norm they compute something else",
            fix="--set model.resnet.norm=frozen for passes of few images",
        )
    with torch.device("meta"):
        expected = ResNet(config).state_dict()
    counter = {key for key in expected if key.endswith("num_batches_tracked")}
    state |= {key: torch.zeros((), dtype=torch.int64) for key in counter if key not in state}
    require_fit(state, expected, f"weights {path}")
    return state


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any of the names that are read here -> those of `ResNet`; a name in no table stays, for
    `require_fit` to list."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    prefix = next(p for p in ENCODERS if not p or any(_is_first(key, p) for key in plain))
    return {_renamed(key): value for key, value in below(prefix, plain).items() if not key.startswith(_HEADS)}


def _is_first(key: str, prefix: str) -> bool:
    return key in (f"{prefix}conv1.weight", f"{prefix}{FIRST_KERNEL}")


def _renamed(key: str) -> str:
    for pattern, name in _NAMES:
        found = re.match(pattern, key)
        if found is not None:
            stage, block, part = (*found.groups(), None, None, None)[:3]
            numbers = (int(stage or 1) - 1, block, int(part or 1) - 1)
            return name.format(*numbers) + key[found.end() :]
    return key
