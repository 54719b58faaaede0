"""The convolution of which the stem of a small model and its decoder are made."""

from __future__ import annotations

from torch import nn

NORM_GROUPS = 4
"""Of the convolutions' norms."""


def conv_norm_gelu(in_channels: int, width: int, stride: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A 3x3 convolution, a norm over groups of the image's own channels, which knows no batch, and GELU.

    So a step on a part of a batch is a part of the step on the batch, however ranks share it.
    """
    convolution = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.GroupNorm(NORM_GROUPS, width), nn.GELU()
