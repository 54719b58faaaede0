"""Contours in the shallow map, as this project understands them: the edges that the other view sees are
predicted from the query's shallow map. Not of the published method, whose contour loss knows no edge.

Speckle is multiplicative, and differences of amplitude would be largest where the ground is brightest. So an
edge is a ratio of averages, as detectors for radar images take it (Touzi et al. 1988): each box is cut into
G x G equal parts, and between neighbours stands the logarithm of the ratio of their mean intensities. No
gain and no size of the box moves it. The other view has other speckle: only what is on the ground can be
predicted.

N images, K boxes, G parts of a box along an axis, C bands, D channels, S pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.decibels import to_db
from crossearth_sar.selfsup.losses import at_least_float32
from crossearth_sar.selfsup.regions import region_grids

NEPERS_PER_DB = math.log(10) / 10


def log_ratios(image_NCSS: Tensor, boxes_NK4: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Of an amplitude image: logarithms of the ratio of mean intensities of neighbours in each box.

    Returns:
        Those of right over left, (N, K, G, G - 1), and of lower over upper, (N, K, G - 1, G), the mean over
        bands.
    """
    power = region_grids(at_least_float32(image_NCSS).square(), boxes_NK4, image_NCSS.shape[-1], grid)
    level = (to_db(power.sqrt()) * NEPERS_PER_DB).mean(-1)
    return differences(level)


def differences(level_NKGG: Tensor) -> tuple[Tensor, Tensor]:
    """Right minus left, (N, K, G, G - 1), and lower minus upper, (N, K, G - 1, G)."""
    return level_NKGG.diff(dim=3), level_NKGG.diff(dim=2)


def edge_losses(level_NKGG: Tensor, ratios: tuple[Tensor, Tensor]) -> Tensor:
    """(N, K): how far the differences of what was predicted per part are from the log ratios that were seen.

    Huber's loss, the mean over a box's 2 G (G - 1) edges: beyond a ratio of e, speckle in a dark part is no
    reason for a large gradient.
    """
    losses = [
        F.smooth_l1_loss(predicted, target, reduction="none").flatten(2)
        for predicted, target in zip(differences(at_least_float32(level_NKGG)), ratios, strict=True)
    ]
    return torch.cat(losses, dim=2).mean(2)


def explained_share(level_NKGG: Tensor, ratios: tuple[Tensor, Tensor], valid_NK: Tensor) -> Tensor:
    """1 - (mean square of what is left of the log ratios) / (their mean square); 0 without boxes."""
    target = torch.cat([part.flatten(2) for part in ratios], dim=2)
    predicted = torch.cat([part.flatten(2) for part in differences(at_least_float32(level_NKGG))], dim=2)
    left, whole = ((part.square().sum(2) * valid_NK).sum() for part in (target - predicted, target))
    return torch.where(whole > 0, 1 - left / whole, 0)


def as_query_sees(key_ratios: tuple[Tensor, Tensor], mirrored_N2: Tensor) -> tuple[Tensor, Tensor]:
    """The key view's ratios at the places, and with the signs, that they have in the query's."""
    mirror_x, mirror_y = (mirrored_N2[:, axis, None, None, None] for axis in (0, 1))
    turned = []
    for axis, ratios in enumerate(key_ratios):
        ratios = torch.where(mirror_x, ratios.flip(3), ratios)
        ratios = torch.where(mirror_y, ratios.flip(2), ratios)
        turned.append(torch.where((mirror_x, mirror_y)[axis], -ratios, ratios))
    return turned[0], turned[1]
