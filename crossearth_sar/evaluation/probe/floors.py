"""What features must beat to be worth anything: statistics that nobody had to learn.

The other floor, the same network with random weights, is `encoder.random_twin`.

B batch, C bands, h w cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.decibels import to_db
from crossearth_sar.descriptors.scale_free_ops import scale_free_descriptor_map
from crossearth_sar.evaluation.probe.encoder import Encoder

CELL = 8
"""Side of a cell, pixels."""

SURROUNDINGS = 5
"""Side of the square of cells around one, of which mean and deviation are told too."""


def statistics_encoder(cell: int = CELL, pixel_m: float | None = None) -> Encoder:
    """Image statistics as features: 4 C + 4 of each cell.

    Of each band mean and standard deviation of the dB, standardised as every encoder's input is, of the
    cell's pixels and of the means of SURROUNDINGS x SURROUNDINGS cells around; and the four scale-free
    descriptors of the cell in the first band.
    """

    def maps(image_BCHW: Tensor, db_mean: Tensor, db_std: Tensor) -> list[Tensor]:
        decibels = (to_db(image_BCHW) - db_mean[..., None, None]) / db_std[..., None, None].clamp(min=1e-6)
        mean = F.avg_pool2d(decibels, cell)
        spread = _deviation(F.avg_pool2d(decibels.square(), cell), mean)
        far = _around(mean)
        spread_far = _deviation(_around(mean.square()), far)
        described = scale_free_descriptor_map(image_BCHW[:, 0], cell)
        return [torch.cat([mean, spread, far, spread_far, described], 1)]

    return Encoder(maps=maps, multiple=cell, window=64 * cell, stride=48 * cell, pixel_m=pixel_m)


def _around(map_BChw: Tensor) -> Tensor:
    return F.avg_pool2d(map_BChw, SURROUNDINGS, stride=1, padding=SURROUNDINGS // 2, count_include_pad=False)


def _deviation(mean_of_squares: Tensor, mean: Tensor) -> Tensor:
    return (mean_of_squares - mean.square()).clamp(min=0).sqrt()
