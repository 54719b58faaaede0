"""The loss of a whole batch, however the batch is cut into passes and ranks.

A batch of N images is cut into P = ranks * accumulation parts; part p holds the draws n with n % P == p.
Mask2Former's loss divides by the targets of the images it is given, so the mean over parts weighs a target
in a sparse part more than one in a crowded part. The weights here turn the mean over parts into the loss of
all images at once: part p counts by its share of all targets.

B images of a part, H W pixels, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.decoder import DecoderConfig
from crossearth_sar.engine.distributed import Ranks, mean_over_ranks, sum_over_ranks
from crossearth_sar.model import LossTerms, ModelOutput


def part_weights(masks: Sequence[Tensor], config: DecoderConfig, ranks: Ranks) -> list[tuple[Any, Any]]:
    """For each part of this rank, what its class loss and its mask and dice losses count; a collective call.

    Args:
        masks: (B, H, W) labels of each part, on the host.

    Returns:
        (weight of the class loss, weight of mask and dice), both with mean 1 over all parts of all ranks
        when weighed by the targets. Tensors of one element on the ranks' device: the host waits for nobody.
    """
    own_P2 = torch.tensor([_normalizers(mask_BHW, config) for mask_BHW in masks], dtype=torch.float64)
    own_P2 = own_P2.to(ranks.device, non_blocking=True)
    total = sum_over_ranks(own_P2.sum(0))
    mean = total / (len(masks) * ranks.size)
    weights_P2 = torch.where(mean > 0, own_P2 / mean, 1.0).float()  # without a target its losses are 0 anyway
    return [(class_weight, mask_weight) for class_weight, mask_weight in weights_P2.unbind()]


def weigh(terms: LossTerms, class_weight: float | Tensor, mask_weight: float | Tensor) -> LossTerms:
    """The terms of a part, weighed; `total` and `segmentation` follow."""
    weights = {"class": class_weight, "mask": mask_weight, "dice": mask_weight}
    parts = {name: value * weights[name] for name, value in terms.parts.items()}
    segmentation = torch.stack(list(parts.values())).sum()
    return LossTerms(segmentation + terms.balance, segmentation, terms.balance, parts)


def with_global_shares(output: ModelOutput, ranks: Ranks) -> ModelOutput:
    """The output with every layer's shares f taken over the tokens of all ranks, which hold equally many.

    The balance loss with them, averaged over ranks, is that of all ranks' tokens; f carries no gradient. A
    collective call.
    """
    if not output.routing:
        return output
    share_LE = torch.stack([routing.expert_fraction for routing in output.routing])
    share_LE = mean_over_ranks(share_LE)
    routing = [replace(r, expert_fraction=f) for r, f in zip(output.routing, share_LE, strict=True)]
    return replace(output, routing=tuple(routing))


def _normalizers(mask_BHW: Tensor, config: DecoderConfig) -> tuple[float, float]:
    """What transformers' loss divides the class losses and the mask losses of these images by."""
    targets = [_classes_present(mask_HW) for mask_HW in mask_BHW]
    matched = sum(min(count, config.num_queries) for count in targets)
    unmatched = len(targets) * config.num_queries - matched
    return matched + config.no_object_weight * unmatched, float(sum(targets))


def _classes_present(mask_HW: Tensor) -> int:
    """How many classes a mask on the host has; counting pixels takes a fraction of what `unique` takes."""
    pixels = torch.bincount(mask_HW.flatten(), minlength=IGNORE_INDEX + 1)
    pixels[IGNORE_INDEX] = 0
    return int(pixels.count_nonzero())
