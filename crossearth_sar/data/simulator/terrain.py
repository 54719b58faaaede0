"""Relief: how slopes change what a radar sees, in an image brought onto the map (terrain-corrected).

What: `slope_gain` is the factor that a height field puts on sigma0: slopes facing the sensor are brighter, up
to the crowded echoes of layover, slopes turned away darker, and what lies behind a crest as seen from the
sensor is in shadow and returns nothing. Positions are the map's, as those of the labels are.
Not here: layover's displacement; buildings and trees have theirs in scattering.radar_geometry.

H W pixels; the sensor is beyond column 0.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from crossearth_sar.data.simulator.noise import Floats, fractal

LAYOVER_DB = 7.0
"""The most that foreshortening adds."""


def fractal_terrain(rng: Generator, size: int, spacing_px: float) -> Floats:
    """(H, W) height of rms slope 1 along range, in pixels: facets between crests, or between valleys.

    The absolute value of noise has creases along its zero levels; a little of more noise roughens the facets.
    """
    creased = np.abs(fractal(rng, size, spacing_px, octaves=3))
    sign = np.float32(rng.choice([-1.0, 1.0]))
    height = sign * creased + np.float32(0.15) * fractal(rng, size, 0.3 * spacing_px, octaves=2)
    return np.asarray(height / max(float(np.diff(height, axis=1).std()), 1e-6), np.float32)


def slope_gain(terrain: Floats, *, slope_deg: float, incidence_deg: float) -> Floats:
    """(H, W) factor on sigma0 of `terrain` (rms slope 1) steepened to an rms slope of `slope_deg` degrees.

    On a slope a towards the sensor the local incidence is t - a: the same ground range holds
    sin t / sin(t - a) of the flat area, and the surface itself is brighter by cos(t - a) / cos t.
    """
    steepness = np.tan(np.radians(slope_deg))
    towards = np.empty_like(terrain)
    towards[:, :-1] = np.diff(terrain, axis=1) * np.float32(steepness)
    towards[:, -1] = towards[:, -2]
    angle = np.float32(np.radians(incidence_deg))
    local = angle - np.arctan(towards)
    gain = np.sin(angle) / np.sin(np.clip(local, 0.05, np.pi / 2))
    gain *= np.clip(np.cos(local), 0, 1) / np.cos(angle)
    gain = np.where(local < 0.05, np.float32(np.inf), gain)
    np.minimum(gain, np.float32(10 ** (LAYOVER_DB / 10)), out=gain)
    ray = terrain * np.float32(steepness) + np.arange(terrain.shape[1], dtype=np.float32) / np.tan(angle)
    crest = np.maximum.accumulate(ray, axis=1)
    return np.where(ray < crest - 1e-3, 0, gain).astype(np.float32)
