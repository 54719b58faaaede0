"""Intervals over images: what they must hold, and that models are compared on the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crossearth_sar.evaluation.bootstrap import difference_interval, miou_interval
from crossearth_sar.evaluation.metrics import ConfusionMatrix


def images(count: int, seed: int = 0) -> np.ndarray:
    """Confusion matrices of images of which some are much harder than others; class 2 is in few."""
    rng = np.random.default_rng(seed)
    right = rng.uniform(0.3, 0.95, size=count)
    counts = np.zeros((count, 3, 3), np.int64)
    for i, share in enumerate(right):
        for label in (0, 1, 2)[: 3 if i % 5 == 0 else 2]:
            counts[i, label, label] = round(1000 * share)
            counts[i, label, (label + 1) % 2] += 1000 - round(1000 * share)
    return counts


def miou(counts: np.ndarray) -> float:
    matrix = ConfusionMatrix(3)
    matrix.counts += torch.from_numpy(counts.sum(0))
    return matrix.scores().miou


def test_draws_are_those_of_a_loop() -> None:
    counts = images(12)
    rng = np.random.default_rng(7)
    drawn = [miou(counts[rng.integers(0, 12, 12)]) for _ in range(3000)]
    found = miou_interval(counts, draws=3000)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.012)
    assert found.low < miou(counts) < found.high
    assert miou_interval(counts, draws=3000) == found, "the same draws again"


def test_like_images_leave_no_doubt_and_one_image_no_interval() -> None:
    one = images(1)
    found = miou_interval(np.repeat(one, 5, axis=0))
    assert found is not None
    assert found.low == pytest.approx(found.high) == pytest.approx(miou(one))
    assert miou_interval(one) is None
    assert difference_interval(one, one) is None


def test_a_difference_is_taken_on_the_same_images() -> None:
    """A model a little better on every image: each interval alone is wide, that of the difference is not."""
    counts = images(30)
    better = counts.copy()
    for label in range(3):
        wrong = better[:, label].sum(-1) - better[:, label, label]
        moved = wrong // 10
        better[:, label, label] += moved
        better[:, label, (label + 1) % 2] -= moved
    alone, difference = miou_interval(counts), difference_interval(better, counts)
    assert alone is not None
    assert difference is not None
    assert 0 < difference.low < miou(better) - miou(counts) < difference.high
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
