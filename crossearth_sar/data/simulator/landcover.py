"""Land-cover label maps: rivers, coasts, parcels, forests, roads and settlements, drawn per pixel.

What: `draw_landcover` turns a random generator and a `RegionLayout` into the ground truth that the radar
simulator illuminates: class per pixel, parcel number, height above ground. Every shape is measured in
metres and evaluated per pixel from small random tables (no loop over objects), so that a scene costs the
same few milliseconds whether it shows ten buildings or a thousand.
Not here: anything a radar does; that is scattering.py. Not a generator of real cities either: shapes have
the sizes, neighbourhoods and proportions that segmentation needs, not a cadastre.

H W pixels; x, the column, is ground range (the sensor is on the left), y, the row, is azimuth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.special import ndtri

from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.simulator.lattice import (
    TABLE,
    coordinates,
    number_of,
    pivots,
    rotate,
    split_cells,
    strips,
    voronoi,
)
from crossearth_sar.data.simulator.noise import Floats, Integers, smooth_noise
from crossearth_sar.data.simulator.regions import RegionLayout

BUILDING, ROAD, WATER, BARREN, FOREST, AGRICULTURAL, BACKGROUND = range(len(SEVEN_CLASSES))
"""Indices into SEVEN_CLASSES."""

STOREY_M = 3.0


@dataclass(frozen=True)
class Landcover:
    """What lies on the ground of one scene.

    labels: (H, W) int64, index into SEVEN_CLASSES.
    parcel: (H, W) int64 in 0..TABLE**2-1, number of the agricultural parcel a pixel lies in, drawn or not.
    height_m: (H, W) float32, height of the scattering surface above ground: roof, or middle of the canopy.
    wall_angle_deg: 0..45, angle between the walls' normals and the direction of range.
    state_db: (H, W) float32, what wet, smooth or flooded ground adds to its class's sigma0; None: 0.
    terrain: (H, W) float32, relief in pixels, of rms slope 1 in range: see terrain.py; None: flat.
    """

    labels: Integers
    parcel: Integers
    height_m: Floats
    wall_angle_deg: float
    state_db: Floats | None = None
    terrain: Floats | None = None


def draw_landcover(rng: Generator, layout: RegionLayout, *, size: int, resolution_m: float) -> Landcover:
    """One label map of `size` x `size` pixels of `resolution_m` metres, drawn from `rng` alone."""
    x, y = coordinates(size, resolution_m)
    labels, parcel = _draw_fields(rng, layout, x, y, resolution_m)
    _draw_natural_cover(rng, layout, labels, resolution_m)
    depth, kind = _draw_water(rng, layout, labels, x, y, resolution_m)
    heights = np.zeros_like(x)
    along, across, turn = _bend(rng, x, y, layout.road_bend_m)
    if rng.random() < layout.settled:
        _draw_settlement(rng, layout, labels, heights, along, across, depth, size * resolution_m)
    _draw_roads(rng, layout, labels, heights, x, y, across, depth, kind, resolution_m)
    heights[labels == FOREST] = layout.canopy_m
    angle = abs((np.degrees(turn) + 45.0) % 90.0 - 45.0)
    return Landcover(labels, parcel, heights, float(angle))


def _bend(rng: Generator, x: Floats, y: Floats, bend_m: float) -> tuple[Floats, Floats, float]:
    """Coordinates along and across a random winding line near the scene's middle, and its direction.

    The line is v = offset + two sines of u; `across` is divided by the local slope, so it is the true
    distance to the line to first order and a band |across| < w/2 has the same width everywhere.
    """
    extent = float(x[0, -1] - x[0, 0])
    turn = float(rng.uniform(0, np.pi))
    u, v = rotate(x, y, turn)
    line, slope = np.float32(rng.uniform(-0.25, 0.25) * extent), np.float32(0)
    for amplitude, waves in ((bend_m, rng.uniform(0.5, 1.2)), (bend_m / 4, rng.uniform(1.5, 3.0))):
        wavenumber = 2 * np.pi * waves / max(extent, 16 * bend_m)
        phase = np.float32(wavenumber) * u + np.float32(rng.uniform(0, 2 * np.pi))
        line = line + np.float32(amplitude) * np.sin(phase)
        slope = slope + np.float32(amplitude * wavenumber) * np.cos(phase)
    return u, (v - line) / np.sqrt(1 + slope * slope), turn


def _draw_fields(
    rng: Generator, layout: RegionLayout, x: Floats, y: Floats, resolution_m: float
) -> tuple[Integers, Integers]:
    """Background with agricultural parcels: whole parcels are farmed where a slow random field is high."""
    size = len(x)
    u, v = rotate(x, y, rng.uniform(0, np.pi))
    scale = rng.uniform(0.8, 1.25)
    length, width = layout.parcel_m[0] * scale, layout.parcel_m[1] * scale
    if layout.parcels == "strips":
        parcel, inside = strips(rng, u, v, length, width, layout.hedge_m)
    elif layout.parcels == "pivots":
        parcel, inside = pivots(rng, u, v, length)
    else:
        parcel, inside = voronoi(rng, u, v, length, resolution_m)
    zone = smooth_noise(rng, size, 2.5 * layout.parcel_m[0] / resolution_m)
    count = np.bincount(parcel.ravel(), minlength=TABLE**2)
    total = np.bincount(parcel.ravel(), weights=zone.ravel(), minlength=TABLE**2)
    own = rng.standard_normal(TABLE**2)
    farmed = 0.8 * total / np.maximum(count, 1) + 0.6 * own > ndtri(1 - layout.farmland)
    labels = np.full((size, size), BACKGROUND, np.int64)
    labels[farmed[parcel] & inside] = AGRICULTURAL
    if layout.hedge_m:  # hedgerows are trees, on some of the borders only
        hedged = farmed & (own > -0.3)
        labels[hedged[parcel] & ~inside] = FOREST
    return labels, parcel


def _draw_natural_cover(rng: Generator, layout: RegionLayout, labels: Integers, resolution_m: float) -> None:
    """Barren land and forest as blobs: where smooth noise exceeds the quantile of the class's share."""
    shapes: Sequence[tuple[int, float, float]] = (
        (BARREN, layout.barren, layout.barren_m),
        (FOREST, layout.forest, layout.forest_m),
    )
    for label, share, length_m in shapes:
        level = rng.normal(0, 0.35)  # scenes differ in how much of it they hold
        noise = smooth_noise(rng, len(labels), length_m / resolution_m, octaves=3)
        labels[noise > ndtri(1 - share) + level] = label


def _draw_water(
    rng: Generator, layout: RegionLayout, labels: Integers, x: Floats, y: Floats, resolution_m: float
) -> tuple[Floats, str]:
    """River, lake or sea as a level set, with a barren bank; returns metres into the water and its kind."""
    kinds, chances = zip(*layout.water, strict=True)
    kind = kinds[int(np.searchsorted(np.cumsum(chances), rng.random()))]
    if kind == "none":
        return np.full_like(x, -np.inf), kind
    size, extent = len(x), len(x) * resolution_m
    if kind == "river":
        width = rng.uniform(26, 46) + 6 * smooth_noise(rng, size, 60 / resolution_m)
        depth = width / 2 - np.abs(_bend(rng, x, y, 0.09 * extent)[1])
    elif kind == "lake":
        centre = rng.uniform(-0.4, 0.4, 2).astype(np.float32) * np.float32(extent)
        radius = rng.uniform(0.12, 0.28) * extent
        u, v = rotate(x - centre[0], y - centre[1], rng.uniform(0, np.pi))
        shore = smooth_noise(rng, size, 0.5 * radius / resolution_m, octaves=3)
        depth = radius * (1 + 0.22 * shore) - np.hypot(u, 1.5 * v)
    else:
        shore = smooth_noise(rng, size, 0.25 * extent / resolution_m, octaves=4)
        depth = rotate(x, y, rng.uniform(0, 2 * np.pi))[0] + extent * (
            0.08 * shore + np.float32(rng.uniform(-0.3, 0.05))
        )
    bank_m = {"river": 3.0, "lake": 4.0, "coast": 14.0}[kind]
    labels[depth > -bank_m] = BARREN
    labels[depth > 0] = WATER
    return depth.astype(np.float32), kind


def _draw_settlement(
    rng: Generator,
    layout: RegionLayout,
    labels: Integers,
    heights: Floats,
    along: Floats,
    across: Floats,
    depth: Floats,
    extent_m: float,
) -> None:
    """Blocks of building plots between streets that run along and across the road."""
    works = rng.random() < 0.2  # an industrial estate: larger plots, lower and larger buildings
    plot_u, plot_w = (p * rng.uniform(0.9, 1.15) * (1.7 if works else 1.0) for p in layout.plot_m)
    street = layout.road_width_m[0]
    pitch_w, pitch_u = street + 2 * plot_w, street + layout.plots_per_block * plot_u
    lane = np.round(across / pitch_w)
    side = across - lane * np.float32(pitch_w)  # from the middle of the nearest street
    block, u = split_cells((along + rng.uniform(0, pitch_u)) / pitch_u)
    u = u * pitch_u - street
    plot = np.floor(u / plot_u)
    number = number_of(
        lane.astype(np.int64) * 2 + (side > 0), block * layout.plots_per_block + plot.astype(np.int64)
    )
    du = u - (plot + 0.5) * plot_u  # from the middle of the plot
    dw = np.abs(side) - (street + plot_w) / 2

    radius = max(60.0, rng.uniform(0.22, 0.45) * extent_m)
    ragged = rng.uniform(0.75, 1.15, TABLE**2).astype(np.float32)[number] * radius
    centre_u = rng.uniform(-0.3, 0.3) * extent_m
    settled = np.hypot(along - du - centre_u, across - np.sign(side) * dw) < ragged
    settled &= (depth < -6.0) & (labels != WATER)
    streets = settled & ((u < 0) | (np.abs(side) < street / 2))

    low, high = layout.building_fill
    half_u, half_w = (
        rng.uniform(low, high, TABLE**2).astype(np.float32)[number] * p / 2 for p in (plot_u, plot_w)
    )
    skew = rng.uniform(-layout.building_skew, layout.building_skew, TABLE**2).astype(np.float32)[number]
    wall = np.maximum(np.abs(du + skew * dw) - half_u, np.abs(dw - skew * du) - half_w)
    built = settled & ~streets & (u >= 0) & (wall < 0) & (rng.random(TABLE**2) < 0.85)[number]
    storeys = rng.integers(layout.storeys[0], layout.storeys[1] + 1, TABLE**2)[number]
    labels[settled] = BACKGROUND  # yards and gardens
    labels[streets] = ROAD
    labels[built] = BUILDING
    heights[built] = STOREY_M * storeys[built] + 1.5


def _draw_roads(
    rng: Generator,
    layout: RegionLayout,
    labels: Integers,
    heights: Floats,
    x: Floats,
    y: Floats,
    across: Floats,
    depth: Floats,
    kind: str,
    resolution_m: float,
) -> None:
    """The main road, and often a second one; they bridge rivers and end at lakes and the sea."""
    lines = [across]
    if rng.random() < 0.6:
        lines.append(_bend(rng, x, y, layout.road_bend_m)[1])
    for line in lines:
        width = max(rng.uniform(*layout.road_width_m), 1.2 * resolution_m)
        road = np.abs(line) < width / 2
        if kind != "river":
            road &= depth < 0
        verge = (np.abs(line) < width / 2 + 6.0) & ((labels == BUILDING) | (labels == FOREST))
        labels[verge] = BACKGROUND
        labels[road] = ROAD
        heights[road | verge] = 0
