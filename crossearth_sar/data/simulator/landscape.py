"""Landscapes: ground whose shapes are drawn on the scales of the scene, for pixels of 1 to 40 metres.

What: `draw_landscape` is to a medium-resolution sensor what landcover.draw_landcover is to a fine one.
Fields, woods and waters have sizes between the scene's extent and a few pixels; towns are clusters of
buildings along bent streets; the terrain decides where water stands; and within a class the ground differs:
wet, smooth and ploughed parcels, flooded forest, dry sand, runways, none of them with a label of its own.
Labels say what a pixel of that size can show: roads and streams narrower than one are left out.

H W pixels; x, the column, is ground range, y, the row, is azimuth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.special import ndtri

from crossearth_sar.data.simulator.landcover import (
    AGRICULTURAL,
    BACKGROUND,
    BARREN,
    BUILDING,
    FOREST,
    ROAD,
    STOREY_M,
    WATER,
    Landcover,
)
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
from crossearth_sar.data.simulator.noise import Booleans, Floats, Integers, fractal
from crossearth_sar.data.simulator.regions import LAYOUTS, RegionLayout
from crossearth_sar.data.simulator.terrain import fractal_terrain
from crossearth_sar.data.simulator.water import distance_to_level, draw_waters

OBJECTS_BELOW_M = 5.0
"""Pixels at least so fine show buildings and trees standing, with their layover and shadow."""

CLASS_SPREAD_DB = 1.0
"""Standard deviation of a class's level from scene to scene: season, moisture, species, materials."""


SETTLED = 0.6
"""Of the scenes that a region's layout settles, so many are: a town is rarer than a hamlet."""


class Grid(NamedTuple):
    """Pixel centres: x_m, y_m (H, W) metres, size pixels on a side, resolution_m metres a pixel."""

    x_m: Floats
    y_m: Floats
    size: int
    resolution_m: float

    @property
    def extent_m(self) -> float:
        """Metres on a side."""
        return self.size * self.resolution_m


def draw_landscape(rng: Generator, region: str, *, size: int, resolution_m: float) -> Landcover:
    """One label map of `size` x `size` pixels of `resolution_m` metres, drawn from `rng` alone."""
    grid, layout = Grid(*coordinates(size, resolution_m), size, resolution_m), LAYOUTS[region]
    terrain = fractal_terrain(rng, size, size * rng.uniform(0.15, 0.7))
    labels, parcel = _draw_cover(rng, layout, grid, terrain)
    depth = draw_waters(rng, region, terrain)
    water = depth > 0
    if rng.random() < 0.5:
        labels[(depth > -rng.uniform(1, 3)) & ~water] = rng.choice([BARREN, BACKGROUND, FOREST])
    along, across = _winding_line(rng, grid)
    heights, state_db = np.zeros_like(terrain), _class_levels(rng, labels, parcel, grid)
    _draw_towns(rng, layout, grid, labels, heights, state_db, water, along, across)
    _draw_roads(rng, grid, labels, across, depth)
    labels[water] = WATER
    _flood(rng, labels, state_db, depth)
    heights[labels == FOREST] = 2 * layout.canopy_m
    heights[(labels != FOREST) & (labels != BUILDING)] = 0
    if resolution_m >= OBJECTS_BELOW_M:
        heights[:] = 0
    state_db[water] = 0
    terrain[water] = terrain[water].mean() if water.any() else 0
    return Landcover(labels, parcel, heights, float(rng.uniform(0, 45)), state_db, terrain)


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(max(high, low)))))


def _draw_cover(
    rng: Generator, layout: RegionLayout, grid: Grid, terrain: Floats
) -> tuple[Integers, Integers]:
    """Fields, forest, barren land and the rest, in shares that one or two of them may dominate."""
    size = grid.size
    rest = max(0.1, 1 - layout.forest - layout.barren)
    wanted = np.array([layout.farmland * rest, layout.forest, layout.barren, (1 - layout.farmland) * rest])
    farm, forest, barren, _ = rng.dirichlet(3.0 * wanted / wanted.sum() + 0.15)
    parcel, inside = _draw_parcels(rng, layout, grid)
    if rng.random() < 0.7:  # most fields touch
        inside = np.ones_like(inside)
    zone = fractal(rng, size, size * _log_uniform(rng, 0.1, 0.8), 2)
    count = np.maximum(np.bincount(parcel.ravel(), minlength=TABLE**2), 1)
    mean = np.bincount(parcel.ravel(), weights=zone.ravel(), minlength=TABLE**2) / count
    own = rng.standard_normal(TABLE**2)
    score = 0.85 * mean + 0.5 * own
    labels = np.full((size, size), BACKGROUND, np.int64)
    among = farm / max(1 - forest - barren, 1e-3)
    farmed = (score > ndtri(np.clip(1 - among, 1e-3, 1 - 1e-3)))[parcel]
    labels[farmed & inside] = AGRICULTURAL
    if rng.random() < 0.4:  # plantations and woods with straight edges
        labels[(rng.random(TABLE**2) < 0.6 * forest)[parcel] & inside] = FOREST
    height = terrain / max(float(terrain.std()), 1e-6)
    for label, share in ((BARREN, barren), (FOREST, forest)):
        noise = fractal(rng, size, size * _log_uniform(rng, 0.05, 0.6), 5)
        uphill = rng.uniform(0, 0.8)
        field = (noise + uphill * height) / np.sqrt(1 + uphill**2)
        labels[field > ndtri(np.clip(1 - share, 1e-3, 1 - 1e-3))] = label
    return labels, parcel


def _draw_parcels(rng: Generator, layout: RegionLayout, grid: Grid) -> tuple[Integers, Booleans]:
    """Parcels of one of three shapes, 60 m to a kilometre long, never below a few pixels."""
    u, v = rotate(grid.x_m, grid.y_m, rng.uniform(0, np.pi))
    bend = fractal(rng, grid.size, grid.size * 0.5) * np.float32(0.03 * grid.extent_m * rng.random())
    u, v = u + bend, v - bend
    least = 7 * grid.resolution_m
    length = _log_uniform(rng, max(90.0, least), max(1000.0, 2 * least))
    length = min(length, max(least, 0.5 * grid.extent_m))
    shape = layout.parcels if rng.random() < 0.6 else str(rng.choice(["strips", "cells"]))
    if shape == "pivots":
        return pivots(rng, u, v, length)
    if shape == "cells":
        return voronoi(rng, u, v, length, 0.5 * grid.resolution_m)
    width = max(length * rng.uniform(0.25, 0.8), 4 * grid.resolution_m)
    return strips(rng, u, v, length, width, grid.resolution_m if rng.random() < 0.4 else 0.0)


def _class_levels(rng: Generator, labels: Integers, parcel: Integers, grid: Grid) -> Floats:
    """(H, W) dB on sigma0: each class's level in this scene, wet and smooth ground, variation within."""
    size = grid.size
    state = (CLASS_SPREAD_DB * rng.standard_normal(8)).astype(np.float32)[labels]
    state += np.float32(rng.uniform(0.2, 1.5)) * fractal(rng, size, size * _log_uniform(rng, 0.1, 0.6), 4)
    open_ground = (labels != FOREST) & (labels != BUILDING)
    if rng.random() < 0.5:  # dark parcels: smooth, dry or ponded soil, stubble under dew
        dark = (rng.random(TABLE**2) < rng.uniform(0.03, 0.3))[parcel] & (labels == AGRICULTURAL)
        state[dark] -= np.float32(rng.uniform(2, 8))
    if rng.random() < 0.5:  # dark patches: sand sheets, salt flats, marsh, burnt ground
        patch = fractal(rng, size, size * _log_uniform(rng, 0.05, 0.4), 4)
        depth_db = rng.uniform(2, 8) * np.clip((patch - rng.uniform(0.8, 2.0)) * 3, 0, 1)
        state -= (depth_db * open_ground).astype(np.float32)
    if rng.random() < 0.12:  # a runway, a landing strip, a parade ground
        u, v = rotate(grid.x_m, grid.y_m, rng.uniform(0, np.pi))
        half = max(1.2 * grid.resolution_m, rng.uniform(20, 60))
        strip = (np.abs(v - rng.uniform(-0.3, 0.3) * grid.extent_m) < half) & (
            np.abs(u) < rng.uniform(0.1, 0.35) * grid.extent_m
        )
        labels[strip] = BARREN
        state[strip] = -np.float32(rng.uniform(2, 6))
    return state


def _winding_line(rng: Generator, grid: Grid) -> tuple[Floats, Floats]:
    """Coordinates along and across (metres, signed) a winding line through the scene."""
    size = grid.size
    u, v = rotate(grid.x_m, grid.y_m, rng.uniform(0, np.pi))
    bend = np.float32(rng.uniform(0.01, 0.08) * grid.extent_m)
    line = np.float32(rng.uniform(-0.35, 0.35) * grid.extent_m) + bend * fractal(rng, size, size * 0.25)
    return u, distance_to_level(v - line) * np.float32(grid.resolution_m)


def _draw_towns(
    rng: Generator,
    layout: RegionLayout,
    grid: Grid,
    labels: Integers,
    heights: Floats,
    state_db: Floats,
    water: Booleans,
    along: Floats,
    across: Floats,
) -> None:
    """Clusters of buildings, dense in the middle and loose at the rim, and rows of houses along the road."""
    if rng.random() > SETTLED * layout.settled:
        return
    size = grid.size
    density = np.full_like(across, -9.0)
    for _ in range(rng.geometric(0.5)):
        centre = rng.uniform(-0.5, 0.5) * grid.extent_m
        off = rng.normal(0, 0.15) * grid.extent_m
        radius = min(_log_uniform(rng, max(60.0, 3 * grid.resolution_m), 1200.0), 0.3 * grid.extent_m)
        density = np.maximum(density, 1 - np.hypot(along - centre, across - off) / np.float32(radius))
    density += 0.35 * fractal(rng, size, size * 0.08, 3)
    if rng.random() < 0.5:  # houses along the road
        density = np.maximum(density, 0.25 - np.abs(across) / (5 * max(20.0, grid.resolution_m)))
    pitch = max(rng.uniform(26, 60), 2.6 * grid.resolution_m)
    warp = fractal(rng, size, max(4.0, 3 * pitch / grid.resolution_m)) * np.float32(0.6 * pitch)
    pitch_m = np.float32(pitch)
    (row, dv), (column, du) = split_cells((across + warp) / pitch_m), split_cells((along - warp) / pitch_m)
    number = number_of(row, column)
    draws = rng.random((4, TABLE**2)).astype(np.float32)
    half = 0.22 + 0.26 * draws[:2]
    chosen = [half[i][number] for i in range(2)]
    shift = (draws[2] - 0.5)[number]
    inside = (np.abs(du - 0.5 - shift * (0.5 - chosen[0])) < chosen[0]) & (np.abs(dv - 0.5) < chosen[1])
    settled = (density > 0.05) & ~water
    built = (
        settled & inside & (draws[3][number] < rng.uniform(0.7, 1.0) * np.clip(0.35 + 1.5 * density, 0, 1))
    )
    every = int(rng.integers(2, 5))
    street = max(9.0, 0.7 * grid.resolution_m) / pitch
    streets = (
        settled & ~built & (((row % every == 0) & (dv < street)) | ((column % every == 0) & (du < street)))
    )
    labels[settled & (density > 0.2)] = BACKGROUND
    labels[streets & (density > 0.2)] = ROAD
    labels[built] = BUILDING
    spread = rng.standard_normal(TABLE**2).astype(np.float32)
    state_db[built] = np.float32(rng.normal(0, 1)) + np.float32(rng.uniform(2, 4)) * spread[number[built]]
    storeys = rng.integers(layout.storeys[0], layout.storeys[1] + 1, TABLE**2)[number]
    heights[built] = STOREY_M * storeys[built] + 1.5


def _draw_roads(rng: Generator, grid: Grid, labels: Integers, across: Floats, depth: Floats) -> None:
    """Roads of a pixel and more: the towns' own, motorways and runways; they bridge only narrow water."""
    for number in range(rng.integers(0, 4)):
        line = across if number == 0 else _winding_line(rng, grid)[1]
        width_m = _log_uniform(rng, 8.0, 26.0)
        if width_m < 0.8 * grid.resolution_m:
            continue
        road = np.abs(line) < max(width_m, 1.1 * grid.resolution_m) / 2
        labels[road & (depth < -1)] = ROAD


def _flood(rng: Generator, labels: Integers, state_db: Floats, depth: Floats) -> None:
    """Trees standing in water beside open water: brighter, from trunk and surface, and still forest."""
    if rng.random() < 0.25:
        reach = rng.uniform(2, 12)
        state_db[(labels == FOREST) & (depth > -reach) & (depth <= 0)] += np.float32(rng.uniform(2, 5))
