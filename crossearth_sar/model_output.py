"""What a forward pass of the model and its loss give, and the temperature that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossearth_sar.decoder import DecoderOutput
from crossearth_sar.errors import InputError
from crossearth_sar.moe import RoutingInfo

MAX_TEMPERATURE = 1e6
"""Beyond, all classes are as likely."""


class ModelOutput(NamedTuple):
    """decoder: its logits; routing: one RoutingInfo per block, empty for a dense model."""

    decoder: DecoderOutput
    routing: tuple[RoutingInfo, ...]


def checked_temperature(value: Any, where: Path) -> float | None:
    """The number that divides log probabilities (evaluation/calibration.py), as a model folder says it."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_TEMPERATURE:
        raise InputError(
            f"«temperature» in {where} is none",
            got=repr(value),
            expected=f"a number above 0, {MAX_TEMPERATURE:g} at most",
            fix="remove it: then probabilities are as they are computed",
        )
    return float(value)


@dataclass(frozen=True)
class LossTerms:
    """total = segmentation + balance; parts: the segmentation loss by kind (class, mask, dice;
    of classes per pixel class and dice, and auxiliary where there is such a head)."""

    total: Tensor
    segmentation: Tensor
    balance: Tensor
    parts: Mapping[str, Tensor]


def reaching_all(feature_maps: Sequence[Tensor], tokens: Tensor | None) -> list[Tensor]:
    """The feature maps, where gradients are enabled with a path to the last norm, which serves `tokens`
    alone: its gradient is then 0, not missing, for DDP waits for the gradient of every trained parameter."""
    *maps, last = feature_maps
    if tokens is not None and torch.is_grad_enabled():
        # Image by image: what is NaN in one is no other's.
        last = last + 0 * tokens[:, 0].sum(1).to(last.dtype)[:, None, None, None]
    return [*maps, last]
