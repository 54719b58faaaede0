"""The losses between the vectors of two views.

N images, K boxes of an image, Q keys of a queue, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrast(NamedTuple):
    """loss: mean over images. top1: share of images whose own key is nearer than all others.
    positive, negative: mean cosines with the own key and with the queue."""

    loss: Tensor
    top1: Tensor
    positive: Tensor
    negative: Tensor


def info_nce(query_ND: Tensor, key_ND: Tensor, queue_QD: Tensor, temperature: float) -> Contrast:
    """InfoNCE of unit vectors: the own key among those of the queue, at cosines over the temperature."""
    with torch.autocast(query_ND.device.type, enabled=False):
        own_N = (query_ND * key_ND).sum(1)
        others_NQ = query_ND @ queue_QD.T
        logits = torch.cat([own_N[:, None], others_NQ], dim=1) / temperature
        loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
    with torch.no_grad():
        top1 = (own_N > others_NQ.amax(1)).float().mean()
        return Contrast(loss, top1, own_N.mean(), others_NQ.mean())


def agreement(predicted_NKD: Tensor, key_NKD: Tensor) -> Tensor:
    """(N, K): 2 - 2 cos of each box's unit vectors in the two views, 0 to 4."""
    return 2 - 2 * (predicted_NKD * key_NKD).sum(-1)


def mean_over_boxes(losses_NK: Tensor, valid_NK: Tensor, mean_boxes: Tensor) -> Tensor:
    """This pass's part of a mean over the boxes of all passes and ranks: the sum over its own valid boxes,
    over the number of boxes that a pass has in the mean. Without any box 0, with the same graph."""
    total = (losses_NK * valid_NK).sum()
    return total / torch.where(mean_boxes > 0, mean_boxes, 1)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1, float32 at least."""
    return F.normalize(at_least_float32(x), dim=-1)


def at_least_float32(x: Tensor) -> Tensor:
    """Cosines, means over a few cells and ratios are taken in float32, also of a network in bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
