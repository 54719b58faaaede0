"""The convolution of which the stem of a small model and its decoder are made."""

from __future__ import annotations

from torch import nn


def conv_gelu(in_channels: int, width: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """A 3x3 convolution that keeps the variance of what it is given (He et al. 2015), and GELU.

    Without a norm: over an image's own pixels one takes away its level, and how dark a window is beside its
    image is what tells water; over a batch one makes a step depend on how ranks share it. A handful of
    convolutions trains without.
    """
    convolution = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution, nn.GELU()
