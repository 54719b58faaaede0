"""Views and boxes hold on to the ground: an image that holds its own coordinates, seen through both.

A view's pixels are what `render` makes of them, a box's value the mean over it by area.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from crossearth_sar import InputError
from crossearth_sar.selfsup.boxes import sample_boxes
from crossearth_sar.selfsup.regions import region_means
from crossearth_sar.selfsup.render import render
from crossearth_sar.selfsup.views import Boxes, View, draw_view, overlap_of

SMALLEST = 32.0
CASES = [(301, 207, 224), (120, 400, 96), (260, 260, 256), (150, 90, 128), (640, 480, 224)]
"""Width, height and size: non-square images, views that shrink and that enlarge. (The ramp is seen in steps,
of the source's pixels and of the view's: a box of L pixels of either may be off by 1 / (4 L) of them.)"""

ToView = Callable[[View, Boxes], Boxes]


def coordinates(width: int, height: int) -> torch.Tensor:
    """(2, H, W) amplitudes whose power is the x, and the y, of the pixel's middle."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y]).sqrt()


def centres(boxes: Boxes) -> NDArray[np.float64]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def drawn_pairs(number: int) -> list[tuple[torch.Tensor, tuple[View, View], Boxes]]:
    """Images, two views each, boxes; some windows lie over the border as far as views can: on it."""
    random, found, boxes = np.random.default_rng(1), [], 0
    images = {case: coordinates(*case[:2]) for case in CASES}
    while boxes < number:
        for (width, height, size), image in images.items():
            query, key = (draw_view(random, width, height, size=size) for _ in range(2))
            if random.random() < 0.3:
                key = replace(key, x0=0.0, y0=height - key.height)
            sampled = sample_boxes(query, key, random, count=40, smallest=SMALLEST, max_iou=1.0)
            boxes += len(sampled)
            found.append((image, (query, key), sampled))
    return found


def errors(
    pairs: list[tuple[torch.Tensor, tuple[View, View], Boxes]], to_view: ToView
) -> NDArray[np.float64]:
    """Source pixels between each box's centre and what is seen of it, worst of both axes and views."""
    worst = []
    for image, views, boxes in pairs:
        if not len(boxes):
            continue
        off = np.zeros(len(boxes))
        for view in views:
            power = render(image, view)[0].square()[None]
            there = torch.from_numpy(to_view(view, boxes))[None]
            seen = region_means(power, there, view.size)[0].double().numpy()
            off = np.maximum(off, np.abs(seen - centres(boxes)).max(axis=1))
        worst.extend(off)
    return np.array(worst)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[torch.Tensor, tuple[View, View], Boxes]]:
    return drawn_pairs(3000)


def test_three_thousand_boxes_show_their_own_ground_in_both_views(
    pairs: list[tuple[torch.Tensor, tuple[View, View], Boxes]],
) -> None:
    off = errors(pairs, View.to_view)
    assert len(off) >= 3000
    assert off.max() <= 0.02
    flips = {(view.flip_x, view.flip_y) for _, views, _ in pairs for view in views}
    assert len(flips) == 4


def half_aside(view: View, boxes: Boxes) -> Boxes:
    return view.to_view(boxes) + 0.5


def half_a_source_pixel_aside(view: View, boxes: Boxes) -> Boxes:
    return view.to_view(boxes + 0.5)


def other_flip(view: View, boxes: Boxes) -> Boxes:
    return replace(view, flip_x=not view.flip_x).to_view(boxes)


def flip_about_the_last_pixel(view: View, boxes: Boxes) -> Boxes:
    """u -> S - 1 - u, right for the middles of pixels and wrong for edges."""
    shift = np.array([view.flip_x, view.flip_y, view.flip_x, view.flip_y], float)
    return view.to_view(boxes) - shift


def swapped_axes(view: View, boxes: Boxes) -> Boxes:
    return view.to_view(boxes)[:, [1, 0, 3, 2]]


def swapped_flips(view: View, boxes: Boxes) -> Boxes:
    return replace(view, flip_x=view.flip_y, flip_y=view.flip_x).to_view(boxes)


def one_scale_for_both_axes(view: View, boxes: Boxes) -> Boxes:
    return replace(view, height=view.width).to_view(boxes)


@pytest.mark.parametrize(
    "wrong",
    [
        half_aside,
        half_a_source_pixel_aside,
        other_flip,
        flip_about_the_last_pixel,
        swapped_axes,
        swapped_flips,
        one_scale_for_both_axes,
    ],
)
def test_a_wrong_map_would_be_seen(
    pairs: list[tuple[torch.Tensor, tuple[View, View], Boxes]], wrong: ToView
) -> None:
    assert errors(pairs[:20], wrong).max() > 0.1


def test_whole_pixel_bins_would_be_seen(
    pairs: list[tuple[torch.Tensor, tuple[View, View], Boxes]],
) -> None:
    """Why views are not made by the bins of `ground_scale`."""
    from crossearth_sar.ground_scale import average_power

    image, size, random = coordinates(301, 207), 96, np.random.default_rng(0)
    view = View(0, 0, 301, 207, False, False, size)
    boxes = sample_boxes(view, view, random, smallest=SMALLEST)
    there = torch.from_numpy(view.to_view(boxes))[None]
    for shown, fits in ((render(image, view)[0], True), (average_power(image, (size, size)), False)):
        seen = region_means(shown.square()[None], there, size)[0].double().numpy()
        assert (np.abs(seen - centres(boxes)).max() <= 0.02) == fits


def test_a_worked_example() -> None:
    view = View(4, 0, 8, 8, True, False, 16)
    assert view.to_view(np.array([[4.0, 0, 6, 2]])).tolist() == [[12, 0, 16, 4]]
    assert replace(view, flip_y=True).to_view(np.array([[4.0, 0, 6, 2]])).tolist() == [[12, 12, 16, 16]]
    assert view.to_view(np.empty((0, 4))).shape == (0, 4)


def test_views_are_drawn_as_promised() -> None:
    random = np.random.default_rng(0)
    views = [draw_view(random, 240, 200, size=64, flip_y=0.0) for _ in range(2000)]
    for view in views:
        x0, y0, x1, y1 = view.window
        assert 0 <= x0 < x1 <= 240 + 1e-9
        assert 0 <= y0 < y1 <= 200 + 1e-9
    shares = np.array([view.width * view.height / (240 * 200) for view in views])
    aspects = np.array([view.width / view.height for view in views])
    assert 0.2 <= shares.min() < 0.25
    assert 0.9 < shares.max() <= 1
    assert 3 / 4 - 1e-9 <= aspects.min() < 0.8
    assert 1.3 < aspects.max() <= 4 / 3 + 1e-9
    assert not any(view.flip_y for view in views)
    assert abs(np.mean([view.flip_x for view in views]) - 0.5) < 0.05


def test_an_image_that_no_draw_fits_is_seen_in_its_middle() -> None:
    view = draw_view(np.random.default_rng(0), 1000, 30, size=32, area=(0.9, 1.0))
    assert (view.width, view.height) == (40, 30)
    assert (view.x0, view.y0) == (480, 0)


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"area": (0.0, 1.0)}, {"area": (0.5, 0.2)}, {"aspect": (0.0, 1.0)}, {"size": 0}]
)
def test_no_view_of_nothing(wrong: dict[str, object]) -> None:
    arguments = {"width": 20, "height": 20, "size": 8, **wrong}
    with pytest.raises(InputError, match="no view"):
        draw_view(np.random.default_rng(0), **arguments)  # type: ignore[arg-type]


def test_overlap() -> None:
    one, other = View(0, 0, 10, 10, False, False, 8), View(4.5, -2, 10, 6, True, False, 8)
    assert overlap_of(one, other) == (4.5, 0, 10, 4)


def test_render_averages_power_by_area() -> None:
    image = torch.tensor([[[1.0, 2, 3], [4, 5, 6]]])
    shown, share = render(image, View(0.5, 0, 2, 2, False, False, 1))
    by_hand = (0.5 * 1 + 4 + 0.5 * 9 + 0.5 * 16 + 25 + 0.5 * 36) / 4
    assert float(shown.square()) == pytest.approx(by_hand)
    assert float(share) == 1
    whole, _ = render(image, View(0, 0, 3, 2, True, True, 6))
    assert torch.allclose(whole, image.flip(1, 2).repeat_interleave(3, 1).repeat_interleave(2, 2))


def test_render_leaves_out_what_was_not_measured() -> None:
    image, valid = torch.full((1, 4, 4), 2.0), torch.ones(4, 4, dtype=torch.bool)
    image[:, 0, :2], valid[0, :2] = torch.inf, False
    valid[:2, 2:] = False
    shown, share = render(image, View(0, 0, 4, 4, False, False, 2), valid)
    assert torch.allclose(shown, torch.tensor([[[2.0, 0], [2, 2]]]))
    assert torch.allclose(share, torch.tensor([[0.5, 0], [1, 1]]))


def test_render_refuses_what_lies_outside() -> None:
    with pytest.raises(InputError, match="beyond the image"):
        render(torch.ones(1, 8, 8), View(-1, 0, 4, 4, False, False, 4))
