"""The forms in which images come: 8-bit, stretched, clipped at the bright end, and with a swath's edge.

What: `delivered` turns an amplitude image into what a reader makes of such a product, still amplitude: values
are quantised, the brightest saturate, and of a display copy the grey values themselves are taken for
amplitude, as is done with a copy whose stretch nobody knows. `swath` is the ground beyond a slanted edge.

H W pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import Generator

from crossearth_sar.data.simulator.lattice import coordinates, rotate
from crossearth_sar.data.simulator.noise import Booleans, Floats

Form = Literal["float", "byte_amplitude", "byte_db", "byte_display"]

TAIL_PERCENT = (0.1, 1.0)
"""How much of an image a stretch clips at each end, from and to."""


def delivered(rng: Generator, amplitude: Floats, form: Form) -> Floats:
    """(H, W) amplitude >= 0, of the image's own scale, or grey values 0..255 for "byte_display".

    byte_amplitude: 0..255 in proportion, bright end clipped. byte_db: the same in dB between two levels, and
    read back as dB. byte_display: grey values of a dB stretch, read as if they were amplitude.
    """
    if form == "float":
        return amplitude
    low, high = (float(np.exp(rng.uniform(*np.log(TAIL_PERCENT)))) for _ in range(2))
    if form == "byte_amplitude":
        white = max(float(np.percentile(amplitude, 100 - high)), 1e-12)
        return np.clip(np.rint(amplitude * (255 / white)), 0, 255) * np.float32(white / 255)
    level_db = 20 * np.log10(np.maximum(amplitude, np.float32(1e-6)))
    black, bright = np.percentile(level_db, (low, 100 - high))
    scale = 255 / max(float(bright - black), 1e-3)
    grey = np.clip(np.rint((level_db - black) * scale), 0, 255).astype(np.float32)
    if form == "byte_display":
        return grey
    return (10 ** ((grey / scale + black) / 20)).astype(np.float32)


def swath(rng: Generator, size: int, share: float) -> Booleans:
    """(H, W) True where the sensor measured: all but `share` of the scene, beyond a straight slanted edge."""
    x, y = coordinates(size, 1.0)
    across = rotate(x, y, rng.uniform(0, 2 * np.pi))[0]
    return across >= np.quantile(across, share) if share else np.ones((size, size), bool)
