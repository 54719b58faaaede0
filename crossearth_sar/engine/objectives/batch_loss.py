"""The loss of a whole batch, however the batch is cut into passes and ranks.

A batch of N images is cut into P = ranks * accumulation parts; part p holds the draws n with n % P == p.
A decoder's losses divide by the targets of the images they are given, so the mean over parts weighs a target
in a sparse part more than one in a crowded part. The weights here turn the mean over parts into the loss of
all images at once: part p counts by its share of all targets.

B images of a part, H W pixels, P parts, K kinds of loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.decoder import DecoderConfig
from crossearth_sar.engine.distributed import Ranks, mean_over_ranks, sum_over_ranks
from crossearth_sar.model import LossTerms, ModelOutput


def part_weights(masks: Sequence[Tensor], config: DecoderConfig, ranks: Ranks) -> list[Tensor]:
    """For each part of this rank, what its losses count; a collective call.

    Args:
        masks: (B, H, W) labels of each part, on the host.

    Returns:
        (K,) weights in the order of the decoder's losses, with mean 1 over all parts of all ranks when
        weighed by the targets; on the ranks' device, and the host waits for nobody.
    """
    own_PK = torch.tensor([_normalizers(mask_BHW, config) for mask_BHW in masks], dtype=torch.float64)
    own_PK = own_PK.to(ranks.device, non_blocking=True)
    total = sum_over_ranks(own_PK.sum(0))
    mean = total / (len(masks) * ranks.size)
    weights_PK = torch.where(mean > 0, own_PK / mean, 1.0).float()  # without a target its losses are 0 anyway
    return list(weights_PK.unbind())


def weigh(terms: LossTerms, weights_K: Tensor) -> LossTerms:
    """The terms of a part, weighed; `total` and `segmentation` follow."""
    weighed = zip(terms.parts.items(), weights_K.unbind(), strict=True)
    parts = {name: value * weight for (name, value), weight in weighed}
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
    routing = [r._replace(expert_fraction=f) for r, f in zip(output.routing, share_LE, strict=True)]
    return output._replace(routing=tuple(routing))


def _normalizers(mask_BHW: Tensor, config: DecoderConfig) -> tuple[float, ...]:
    """What the decoder's losses of these images are divided by, in their order.

    Of Mask2Former class, mask, dice: queries, counted as its loss does, and targets twice. Of classes per
    pixel class, dice, auxiliary: labelled pixels, classes of images, labelled pixels.
    """
    targets = [_classes_present(mask_HW) for mask_HW in mask_BHW]
    if config.kind != "mask2former":
        labelled = float((mask_BHW != IGNORE_INDEX).sum())
        beside = (labelled,) if config.kind == "upernet" and config.auxiliary_weight else ()
        return labelled, float(sum(targets)), *beside
    each = [min(count, config.num_queries) for count in targets]
    labelled_B = (mask_BHW != IGNORE_INDEX).flatten(1).double().mean(1).tolist()
    unmatched = sum(share * (config.num_queries - n) for share, n in zip(labelled_B, each, strict=True))
    matched = sum(each)
    return matched + config.no_object_weight * unmatched, float(sum(targets)), float(sum(targets))


def _classes_present(mask_HW: Tensor) -> int:
    """How many classes a mask on the host has; counting pixels takes a fraction of what `unique` takes."""
    pixels = torch.bincount(mask_HW.flatten(), minlength=IGNORE_INDEX + 1)
    pixels[IGNORE_INDEX] = 0
    return int(pixels.count_nonzero())
