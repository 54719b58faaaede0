"""Images of every sort that the descriptors meet, and how far rounding may move their entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from crossearth_sar.descriptors.reference import log_magnitude, sobel


def fuzz_images(rounds: int = 40) -> Iterator[tuple[str, Tensor]]:
    """13 images (1, H, W) a round, in sizes from 3 to 150."""
    generator = np.random.default_rng(7)
    for number in range(rounds):
        height, width = (int(n) for n in generator.integers(3, 150, 2))
        speckle = generator.gamma(looks := float(generator.integers(1, 65)), 1 / looks, (height, width))
        rows, columns = np.mgrid[:height, :width].astype(float)
        scene = np.repeat(generator.gamma(1, 1, (height, (width + 7) // 8)), 8, axis=1)[:, :width]
        kinds = {
            "speckle": speckle,
            "dark": speckle * 1e-4,
            "bright": speckle * 6e4,
            "decibel": 10 * np.log10(speckle * 0.05 + 1e-6),
            "quantised": np.floor(np.clip(speckle * 90, 0, 255)),
            "coarse": np.floor(speckle * 2),
            "scene": scene * speckle,
            "constant": np.full((height, width), generator.uniform(0, 300)),
            "ramp": rows * generator.uniform(-3, 3) + columns * generator.uniform(-3, 3),
            "checkerboard": (rows + columns) % 2 * generator.uniform(0, 50),
            "stripes": np.sin(columns * generator.uniform(0.05, 1) + rows * generator.uniform(-1, 1)) + 1,
            "border": np.where(columns < width // 3, 0, speckle * 300),
            "offset": 1e6 + generator.normal(size=(height, width)),
        }
        for kind, values in kinds.items():
            yield f"{kind}-{number}", torch.from_numpy(np.ascontiguousarray(values)).float()[None]


def pixels_where_the_edge_decides(image_BHW: Tensor, tolerance: float = 2e-6) -> Tensor:
    """Which pixels' gradients lie so near a bin edge, or so near zero, that rounding chooses their bin.

    The rule where both forms are exact (on the axes) is in test_rule_on_the_edges.
    """
    x = log_magnitude(image_BHW.double())
    g_x, g_y = sobel(x)
    length = torch.hypot(g_x, g_y)
    turn = (torch.atan2(g_y, g_x) + math.pi) / (2 * math.pi) * 36
    off_edge = (turn - turn.round()).abs() * (2 * math.pi / 36) * length
    return (off_edge < tolerance * (1 + x.abs().amax())) & (length > 0)


def edge_share_allows(share: Tensor) -> Tensor:
    """By how many nats the entropy may be off where a share of the pixels may be in the neighbouring bin."""
    share = share.double()
    return 1e-4 + 2 * share * (1 + math.log(36)) - 2 * torch.special.xlogy(share, share)
