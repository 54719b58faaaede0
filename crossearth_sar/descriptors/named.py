"""The descriptors a model's router is told, by their names; only the sets that are named are computed.

B batch, H W pixels, P descriptors, T tokens: one for the image (CLS), then a patch each, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from crossearth_sar.descriptors.ops import sar_descriptors
from crossearth_sar.descriptors.scale_free_ops import scale_free_descriptors, scale_free_descriptors_and_map

DescriptorName = Literal[
    "entropy", "enl", "roughness", "direction_entropy", "looks", "correlation", "variation"
]
PAPER_DESCRIPTORS: tuple[DescriptorName, ...] = ("entropy", "enl", "roughness")
"""Column order of `sar_descriptors`."""
SCALE_FREE_DESCRIPTORS: tuple[DescriptorName, ...] = (
    "direction_entropy",
    "looks",
    "correlation",
    "variation",
)
"""Column order of `scale_free_descriptors`."""


def named_descriptors(
    image_B1HW: Tensor, names: Sequence[str], *, patch_size: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """(B, P) raw values in the order of `names`, and of each token, (B, T, 4), where there is a patch size.

    What stands for a token is the scale-free descriptors of its patch; for CLS, those of the image. Pixels
    are not checked: an image with a bad one has NaN.
    """
    columns: dict[str, Tensor] = {}
    tokens_BT4 = None
    if set(names) & set(PAPER_DESCRIPTORS):
        columns.update(_by_name(PAPER_DESCRIPTORS, sar_descriptors(image_B1HW, check_finite=False)))
    if patch_size is not None:
        image_B4, map_B4hw = scale_free_descriptors_and_map(image_B1HW, patch_size, check_finite=False)
        columns.update(_by_name(SCALE_FREE_DESCRIPTORS, image_B4))
        tokens_BT4 = torch.cat([image_B4[:, None], map_B4hw.flatten(2).mT], dim=1)
    elif set(names) & set(SCALE_FREE_DESCRIPTORS):
        image_B4 = scale_free_descriptors(image_B1HW, check_finite=False)
        columns.update(_by_name(SCALE_FREE_DESCRIPTORS, image_B4))
    if not names:
        return image_B1HW.new_zeros(len(image_B1HW), 0, dtype=torch.float32), tokens_BT4
    return torch.stack([columns[name] for name in names], dim=1), tokens_BT4


def join_tokens(image_BP: Tensor, tokens_BT4: Tensor) -> Tensor:
    """(B, T, P + 4): the image's standardised descriptors beside each token's own."""
    return torch.cat([image_BP[:, None].expand(-1, tokens_BT4.shape[1], -1), tokens_BT4], dim=2)


def _by_name(names: Sequence[str], values_BP: Tensor) -> dict[str, Tensor]:
    return dict(zip(names, values_BP.unbind(1), strict=True))
