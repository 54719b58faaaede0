"""How far a score would move with other images: a percentile bootstrap over images, not over pixels.

Pixels of an image err together, so an interval over pixels would be far too narrow. What is drawn is whatever
was photographed as one: tiles of one image belong together and are handed in as one matrix. What this is not:
an interval over trainings, or over sensors.

S trainings, N images, C classes, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 1000
"""Enough for the ends of a 95 % interval to hold to a few hundredths of its width."""

LEVEL = 0.95
"""Share of the draws between the ends."""


@dataclass(frozen=True)
class Interval:
    """Ends of the middle 95 % of the draws, as fractions."""

    low: float
    high: float


def miou_interval(counts_NCC: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0) -> Interval | None:
    """Of the mIoU of images with these confusion matrices; None for fewer than two images."""
    if len(counts_NCC) < 2:
        return None
    return _ends(_drawn_miou(counts_NCC, draws, seed))


def difference_interval(
    counts_NCC: NDArray[np.int64], others_NCC: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Of the first model's mIoU minus the second's on the same images, drawn together; None as above."""
    assert len(counts_NCC) == len(others_NCC), "the same images"
    if len(counts_NCC) < 2:
        return None
    return _ends(_drawn_miou(counts_NCC, draws, seed) - _drawn_miou(others_NCC, draws, seed))


def seeds_interval(
    counts_SNCC: NDArray[np.int64],
    others_SNCC: NDArray[np.int64] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | None:
    """Of the mean mIoU of S trainings on the same N images, which are drawn together; None as above.

    Args:
        others_SNCC: of as many trainings of another model, whose mean is taken off.
    """
    if counts_SNCC.shape[1] < 2:
        return None
    values = np.mean([_drawn_miou(counts, draws, seed) for counts in counts_SNCC], axis=0)
    if others_SNCC is not None:
        values = values - np.mean([_drawn_miou(counts, draws, seed) for counts in others_SNCC], axis=0)
    return _ends(values)


def _drawn_miou(counts_NCC: NDArray[np.int64], draws: int, seed: int) -> Floats:
    """(R,) mIoU of N images drawn with replacement, each the mean of the classes that occur in the draw."""
    count, classes = len(counts_NCC), counts_NCC.shape[1]
    times_RN = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    flat = times_RN.astype(np.float64) @ counts_NCC.reshape(count, -1).astype(np.float64)
    drawn_RCC = flat.reshape(draws, classes, classes)
    intersection = np.einsum("rcc->rc", drawn_RCC)
    union = drawn_RCC.sum(1) + drawn_RCC.sum(2) - intersection
    occurs = union > 0
    iou = np.where(occurs, intersection / np.where(occurs, union, 1), 0)
    means: Floats = iou.sum(1) / np.maximum(occurs.sum(1), 1)
    return means


def _ends(values_R: Floats) -> Interval:
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
