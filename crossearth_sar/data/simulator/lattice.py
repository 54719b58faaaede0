"""Shapes evaluated per pixel from small random tables: lattice cells, and the parcels of the three regions.

No loop over objects: a pixel computes which cell it lies in and looks the cell's properties up.

H W pixels; x, the column, is ground range, y, the row, is azimuth. Lengths in metres.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from crossearth_sar.data.simulator.noise import Booleans, Floats, Integers

_TABLE_BITS = 6
TABLE = 1 << _TABLE_BITS
"""Side of the random per-cell tables; cell numbers wrap around in them, beyond any one scene's repeat."""


@lru_cache(maxsize=16)
def coordinates(size: int, resolution_m: float) -> tuple[Floats, Floats]:
    """x, y of pixel centres in metres, (H, W) each, 0 in the middle of the scene."""
    axis = ((np.arange(size) - (size - 1) / 2) * resolution_m).astype(np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def rotate(x: Floats, y: Floats, turn: float) -> tuple[Floats, Floats]:
    """Coordinates along and across a direction `turn` radians from x."""
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return c * x + s * y, c * y - s * x


def number_of(row: Integers, column: Integers) -> Integers:
    """Number in 0..TABLE**2-1 of a lattice cell, to look its random properties up by."""
    return ((row & TABLE - 1) << _TABLE_BITS) | (column & TABLE - 1)


def strips(
    rng: Generator, u: Floats, v: Floats, length: float, width: float, hedge_m: float
) -> tuple[Integers, Booleans]:
    """Rows of rectangular fields; each row has its own offset and field length. inside: not in a hedge."""
    row, across = split_cells(v / width)
    stretch = rng.uniform(0.7, 1.3, TABLE).astype(np.float32)[row % TABLE]
    shift = rng.uniform(0, 1, TABLE).astype(np.float32)[row % TABLE]
    column, along = split_cells(u / length * stretch + shift)
    inside = (across * width > hedge_m) & (along * length / stretch > hedge_m)
    return number_of(row, column), inside


def pivots(rng: Generator, u: Floats, v: Floats, pitch: float) -> tuple[Integers, Booleans]:
    """Centre-pivot circles on a lattice, some with a sector left out, among some whole rectangles."""
    (row, dv), (column, du) = split_cells(v / pitch), split_cells(u / pitch)
    number = number_of(row, column)
    radius = rng.uniform(0.38, 0.49, TABLE**2).astype(np.float32)[number]
    start = rng.uniform(-np.pi, np.pi, TABLE**2).astype(np.float32)[number]
    sector = rng.choice(np.array([0, 0, 0, 0.5, 1.5], np.float32), TABLE**2)[number]
    du, dv = du - 0.5, dv - 0.5
    circle = (du * du + dv * dv < radius * radius) & (np.abs(np.arctan2(dv, du) - start) >= sector)
    rectangle = np.maximum(np.abs(du), np.abs(dv)) < 0.46
    return number, np.where((rng.random(TABLE**2) < 0.25)[number], rectangle, circle)


def voronoi(
    rng: Generator, u: Floats, v: Floats, pitch: float, resolution_m: float
) -> tuple[Integers, Booleans]:
    """Voronoi cells of a jittered lattice, a narrow margin between them (inside: not in the margin)."""
    (row, dv), (column, du) = split_cells(v / pitch), split_cells(u / pitch)
    jitter = rng.uniform(0.15, 0.85, (2, TABLE**2)).astype(np.float32)
    first = np.full_like(u, np.inf)
    second, parcel = first.copy(), np.zeros(u.shape, np.int64)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            number = number_of(row + i, column + j)
            distance = (jitter[0][number] + j - du) ** 2 + (jitter[1][number] + i - dv) ** 2
            np.minimum(second, np.maximum(first, distance), out=second)
            np.copyto(parcel, number, where=distance < first)
            np.minimum(first, distance, out=first)
    margin_m = (np.sqrt(second) - np.sqrt(first)) * np.float32(pitch)
    return parcel, margin_m > max(4.0, 0.9 * resolution_m)


def split_cells(position: NDArray[np.floating]) -> tuple[Integers, Floats]:
    """Whole and fractional part."""
    whole = np.floor(position)
    return whole.astype(np.int64), position - whole
