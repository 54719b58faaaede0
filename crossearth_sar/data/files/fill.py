"""What stands where nothing was measured: nodata margins, NaN, pixels a reader left out.

The descriptors of an image count every pixel. Zeros in 5 % of a Sentinel-1 chip's rows halve its ENL and make
it six times as rough, so that the routers would see how much is missing in place of what the sensor is. The
nearest measured amplitude is no better: its streaks have two directions of gradient, which the entropy sees.

C bands, H W pixels.
"""

from __future__ import annotations

import numpy as np


def fill_unmeasured(amplitude: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The image with measured pixels of its own, drawn at random, where `valid` is False: no edge, no streak.

    Mean, variance and speckle of the image stay what they are. The draw depends on `valid` alone.

    Args:
        amplitude: (C, H, W); a pixel's bands are drawn together.
        valid: (H, W) bool. Where no pixel is, the image is given back as it is.
    """
    if valid.all():
        return amplitude
    measured, missing = np.flatnonzero(valid), np.flatnonzero(~valid)
    if not measured.size:
        return amplitude
    drawn = np.random.default_rng(valid.size).choice(measured, missing.size)
    filled = amplitude.reshape(len(amplitude), -1).copy()
    filled[:, missing] = filled[:, drawn]
    return filled.reshape(amplitude.shape)
