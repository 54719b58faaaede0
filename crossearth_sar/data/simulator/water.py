"""Water bodies of all sizes and kinds, as signed distances on a pixel grid.

What: `draw_water` draws ponds, lakes with islands, meandering, narrow and braided rivers, reservoirs that
fill the valleys of the terrain, coasts, and open water that leaves only a rim or an island of land. Sizes are
drawn as shares of the scene, so that a scene shows them whether it spans 300 m or 5 km.
What a pixel cannot show is not water: bodies narrower than a pixel are dropped, and so are specks.

H W pixels. Lengths in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy.ndimage import label

from crossearth_sar.data.simulator.lattice import TABLE, coordinates, number_of, rotate, split_cells
from crossearth_sar.data.simulator.noise import Floats, fractal

LEAST_PIXELS = 3
"""Of a body of water that is labelled."""


def draw_water(rng: Generator, kind: str, terrain: Floats) -> Floats:
    """(H, W) pixels into the water, negative on land: `kind` of KINDS, "none" for all land."""
    if kind == "none":
        return np.full_like(terrain, -np.inf)
    return KINDS[kind](rng, terrain)


def without_specks(depth: Floats) -> Floats:
    """The depth with bodies of one or two pixels made land: too small to be told from speckle."""
    bodies, _ = label(depth > 0, np.ones((3, 3)))
    small = np.bincount(bodies.ravel()) < LEAST_PIXELS
    small[0] = False
    return np.where(small[bodies], np.float32(-0.5), depth)


def distance_to_level(field: Floats) -> Floats:
    """Signed distance, pixels, to the zero level of a smooth field, to first order: field / |gradient|."""
    slope = np.empty_like(field)
    right = np.empty_like(field)
    np.subtract(field[2:], field[:-2], out=slope[1:-1])
    np.subtract(field[:, 2:], field[:, :-2], out=right[:, 1:-1])
    slope[[0, -1]], right[:, [0, -1]] = slope[[1, -2]], right[:, [1, -2]]
    np.sqrt(slope * slope + right * right, out=slope)
    return np.asarray(2 * field / np.maximum(slope, np.float32(1e-9)), np.float32)


def slicks(rng: Generator, size: int) -> Floats:
    """(size, size) in 0..1: how far a pixel lies in a slick: filaments, bundled, and drawn out one way."""
    stretch = rng.uniform(2.0, 6.0)
    spacing = size * rng.uniform(0.05, 0.2)
    across = fractal(rng, size, spacing, 3)
    drift = _tilted(rng, size, 0.0, spacing, 1) * np.float32(stretch)
    phase = across + np.float32(size / spacing / stretch) * drift
    lines = np.abs(np.mod(phase, 1.0) - 0.5)
    width = rng.uniform(0.05, 0.3) * np.exp(0.5 * fractal(rng, size, size * 0.3))
    bundle = 1 / (
        1 + np.exp(-4 * (fractal(rng, size, size * rng.uniform(0.2, 0.5)) - rng.uniform(-0.5, 1.0)))
    )
    return (bundle / (1 + np.exp((lines - width) / 0.03))).astype(np.float32)


def _tilted(rng: Generator, size: int, winding: float, spacing_px: float, octaves: int) -> Floats:
    """A plane through a random point, in scene sides, plus noise that bends its levels."""
    x, y = coordinates(size, 1.0 / size)
    across = rotate(x, y, rng.uniform(0, 2 * np.pi))[1]
    noise = fractal(rng, size, spacing_px, octaves)
    return across + np.float32(winding) * noise


def _river(rng: Generator, terrain: Floats, low: float = 2.5, high: float = 0.12) -> Floats:
    size = len(terrain)
    spacing = size * float(np.exp(rng.uniform(np.log(0.12), np.log(0.5))))
    field = _tilted(rng, size, rng.uniform(0.2, 0.65) * spacing / size, spacing, 2)
    width = float(np.exp(rng.uniform(np.log(low), np.log(max(low + 0.5, high * size)))))
    breadth = width * np.exp(0.3 * fractal(rng, size, size * 0.2))
    line = distance_to_level(field - np.float32(rng.uniform(-0.3, 0.3)))
    return np.maximum(breadth, 1.3) / 2 - np.abs(line)


def _stream(rng: Generator, terrain: Floats) -> Floats:
    return _river(rng, terrain, low=1.3, high=0.025)


def _braided(rng: Generator, terrain: Floats) -> Floats:
    size = len(terrain)
    bed = _river(rng, terrain, low=0.12 * size, high=0.3)
    bars = fractal(rng, size, size * rng.uniform(0.04, 0.1), 2)
    channel = rng.uniform(1.5, 4.0) - np.abs(distance_to_level(bars - np.float32(rng.uniform(-0.3, 0.3))))
    return np.minimum(bed, channel)


def _lake(rng: Generator, terrain: Floats) -> Floats:
    size = len(terrain)
    x, y = coordinates(size, 1.0)
    centre = rng.uniform(-0.45, 0.45, 2) * size
    radius = size * float(np.exp(rng.uniform(np.log(0.06), np.log(0.4))))
    u, v = rotate(x - np.float32(centre[0]), y - np.float32(centre[1]), rng.uniform(0, np.pi))
    shore = fractal(rng, size, radius * rng.uniform(0.4, 1.0), 4)
    ragged = rng.uniform(0.05, 0.45)
    return np.float32(radius) * (1 + np.float32(ragged) * shore) - np.hypot(u, v * rng.uniform(1.0, 2.2))


def _ponds(rng: Generator, terrain: Floats) -> Floats:
    size = len(terrain)
    pitch = size * float(np.exp(rng.uniform(np.log(0.09), np.log(0.4))))
    u, v = rotate(*coordinates(size, 1.0 / pitch), rng.uniform(0, np.pi))
    warp = fractal(rng, size, pitch * 0.35, 2) * np.float32(0.08)
    (row, dv), (column, du) = split_cells(v + warp), split_cells(u - warp)
    number = number_of(row, column)
    radius = rng.lognormal(np.log(0.16), 0.5, TABLE**2).clip(0.04, 0.36)
    radius[rng.random(TABLE**2) < rng.uniform(0.2, 0.85)] = -1.0
    shift = (rng.uniform(-0.5, 0.5, (2, TABLE**2)) * (0.98 - 2 * np.abs(radius).clip(0, 0.36))).astype(
        np.float32
    )
    away = np.hypot(du - 0.5 - shift[0][number], dv - 0.5 - shift[1][number])
    return (radius.astype(np.float32)[number] - away) * np.float32(pitch)


def _reservoir(rng: Generator, terrain: Floats) -> Floats:
    size = len(terrain)
    ground = terrain / max(float(terrain.std()), 1e-6) + 0.15 * fractal(rng, size, size * 0.08, 3)
    level = np.quantile(ground, rng.beta(1.2, 2.6) * 0.75)
    return distance_to_level(np.float32(level) - ground)


def _coast(rng: Generator, terrain: Floats, low: float = -0.35, high: float = 0.25) -> Floats:
    size = len(terrain)
    spacing = size * rng.uniform(0.2, 0.6)
    field = _tilted(rng, size, rng.uniform(0.03, 0.22), spacing, 4)
    return distance_to_level(field + np.float32(rng.uniform(low, high)))


def _open(rng: Generator, terrain: Floats) -> Floats:
    return _coast(rng, terrain, low=0.2, high=0.5)


def _sea(rng: Generator, terrain: Floats) -> Floats:
    """Nothing else, or hardly: a window within a lake or offshore."""
    if rng.random() < 0.5:
        return np.full_like(terrain, len(terrain))
    return -_ponds(rng, terrain)  # rocks and islets


KINDS: dict[str, Callable[[Generator, Floats], Floats]] = {
    "river": _river,
    "stream": _stream,
    "braided": _braided,
    "lake": _lake,
    "ponds": _ponds,
    "reservoir": _reservoir,
    "coast": _coast,
    "open": _open,
    "sea": _sea,
}
"""How each kind is drawn, from a generator and the terrain (H, W)."""

CHANCES: dict[str, dict[str, float]] = {
    "temperate_north": {
        "none": 0.33, "river": 0.16, "stream": 0.12, "braided": 0.02, "lake": 0.14, "ponds": 0.1,
        "reservoir": 0.09, "coast": 0.02, "open": 0.02, "sea": 0.02,
    },
    "arid_south": {
        "none": 0.4, "river": 0.14, "stream": 0.08, "braided": 0.08, "lake": 0.1, "ponds": 0.06,
        "reservoir": 0.1, "coast": 0.02, "open": 0.02, "sea": 0.02,
    },
    "coastal": {
        "none": 0.24, "river": 0.1, "stream": 0.06, "braided": 0.04, "lake": 0.06, "ponds": 0.1,
        "reservoir": 0.06, "coast": 0.22, "open": 0.12, "sea": 0.1,
    },
}  # fmt: skip
"""How often a region's scene shows which kind first."""

COMPANION = 0.3
"""How often a scene with water has a second kind: a river beside ponds, a coast with a stream."""


def draw_waters(rng: Generator, region: str, terrain: Floats) -> Floats:
    """(H, W) pixels into the water of a scene of `region`: one or two kinds, or none: -inf."""
    kinds, chances = zip(*CHANCES[region].items(), strict=True)
    share = np.array(chances) / sum(chances)
    kind = kinds[int(rng.choice(len(kinds), p=share))]
    depth = draw_water(rng, kind, terrain)
    if kind != "none" and rng.random() < COMPANION:
        depth = np.maximum(depth, draw_water(rng, str(rng.choice(["stream", "ponds", "lake"])), terrain))
    return without_specks(depth) if kind != "none" else depth
