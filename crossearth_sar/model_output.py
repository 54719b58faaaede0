"""What a forward pass of the model and its loss give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from crossearth_sar.decoder import DecoderOutput
from crossearth_sar.moe import RoutingInfo


@dataclass(frozen=True)
class ModelOutput:
    """decoder: its logits; routing: one RoutingInfo per block, empty for a dense model."""

    decoder: DecoderOutput
    routing: tuple[RoutingInfo, ...]


@dataclass(frozen=True)
class LossTerms:
    """total = segmentation + balance; parts: the segmentation loss by kind (class, mask, dice;
    of an FPN class and dice)."""

    total: Tensor
    segmentation: Tensor
    balance: Tensor
    parts: Mapping[str, Tensor]
