"""Boxes of two views: large enough in both, apart from each other, inside what was measured."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossearth_sar.selfsup.boxes import iou, sample_boxes
from crossearth_sar.selfsup.views import View, draw_view, overlap_of

WHOLE = View(0, 0, 100, 80, False, False, 64)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    width=st.integers(20, 500),
    height=st.integers(20, 500),
    smallest=st.floats(4, 64),
    max_iou=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_sides_overlaps_and_place(
    seed: int, width: int, height: int, smallest: float, max_iou: float
) -> None:
    random = np.random.default_rng(seed)
    views = [draw_view(random, width, height, size=96) for _ in range(2)]
    boxes = sample_boxes(views[0], views[1], random, smallest=smallest, max_iou=max_iou)
    assert boxes.dtype == np.float64
    assert boxes.shape[1] == 4
    assert len(boxes) <= 10
    for view in views:
        there = view.to_view(boxes)
        assert (there >= -1e-9).all()
        assert (there <= 96 + 1e-9).all()
        assert ((there[:, 2:] - there[:, :2]) >= smallest - 1e-9).all()
        # the overlap of two boxes is the same in either view
        assert all(iou(one, other) < max_iou for one, other in combinations(there.tolist(), 2))


def test_boxes_of_every_size_and_place() -> None:
    random = np.random.default_rng(0)
    boxes = np.concatenate([sample_boxes(WHOLE, WHOLE, random, smallest=16, max_iou=1) for _ in range(500)])
    assert len(boxes) == 5000
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert across.min() < 26 < 95 < across.max()
    assert down.min() < 21 < 76 < down.max()
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert np.abs(middle.mean(0) - [50, 40]).max() < 1.5


def test_the_least_side_is_that_of_the_coarser_view() -> None:
    coarse = View(0, 0, 400, 80, False, False, 64)
    near = View(0, 0, 100, 80, False, False, 64)
    assert len(sample_boxes(near, coarse, np.random.default_rng(0), smallest=16)) > 0
    assert len(sample_boxes(near, coarse, np.random.default_rng(0), smallest=16.01)) == 0, "100 / 400 * 64"


def test_no_overlap_no_box() -> None:
    aside = View(200, 0, 50, 50, False, False, 64)
    assert sample_boxes(WHOLE, aside, np.random.default_rng(0), smallest=4).shape == (0, 4)
    x0, _, x1, _ = overlap_of(WHOLE, aside)
    assert x1 <= x0


def test_an_overlap_of_just_one_box_gives_one() -> None:
    view = View(0, 0, 64, 64, False, False, 64)
    boxes = sample_boxes(view, view, np.random.default_rng(0), smallest=64)
    assert boxes.tolist() == [[0, 0, 64, 64]], "a second one would lie on the first"


@pytest.mark.parametrize("hole", [(slice(30, 33), slice(0, 100)), (slice(0, 80), slice(99, 100))])
def test_nothing_unmeasured_inside(hole: tuple[slice, slice]) -> None:
    valid = np.ones((80, 100), dtype=bool)
    valid[hole] = False
    random = np.random.default_rng(0)
    boxes = np.concatenate([sample_boxes(WHOLE, WHOLE, random, smallest=8, valid=valid) for _ in range(40)])
    assert len(boxes) > 200
    for x0, y0, x1, y1 in boxes:
        assert valid[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].all()


def test_views_beyond_the_image_have_boxes_inside_it() -> None:
    beyond = View(-20, -20, 140, 120, True, False, 64)
    valid = np.ones((80, 100), dtype=bool)
    boxes = sample_boxes(beyond, beyond, np.random.default_rng(0), smallest=8, valid=valid)
    assert len(boxes)
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [100, 80]).all()


def test_nothing_measured_no_box() -> None:
    valid = np.zeros((80, 100), dtype=bool)
    assert len(sample_boxes(WHOLE, WHOLE, np.random.default_rng(0), smallest=8, valid=valid)) == 0


def test_the_same_generator_the_same_boxes() -> None:
    one, other = (sample_boxes(WHOLE, WHOLE, np.random.default_rng(5), smallest=8) for _ in range(2))
    assert np.array_equal(one, other)
