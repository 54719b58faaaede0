"""Pairs of views: fixed shapes, the same ground in both, nothing unmeasured in a box, always the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossearth_sar import InputError
from crossearth_sar.data.sample import ClassTable, Sample
from crossearth_sar.data.stream import TrainStream
from crossearth_sar.data.views import View as SampleView
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.pairs import Pair, PairConfig, PairTransform, join_pairs
from crossearth_sar.selfsup.radiometry import RadiometryConfig
from crossearth_sar.selfsup.render import render
from crossearth_sar.selfsup.views import View

PLAIN = RadiometryConfig(
    gain_probability=0, contrast_probability=0, speckle_probability=0, multilook_probability=0
)
SIZE, SMALLEST = 48, 8.0


def transform(pixel_m: float | None = None, **changes: Any) -> PairTransform:
    config = PairConfig(**{"radiometry": PLAIN, **changes})
    return PairTransform(config, DI3CLConfig(), size=SIZE, smallest=SMALLEST, pixel_m=pixel_m)


def sample_of(image: Tensor, valid: Tensor | None = None, **more: Any) -> Sample:
    bands = len(image)
    sample = Sample(
        image=image,
        mask=torch.full(image.shape[1:], 255),
        name="place",
        db_mean=torch.zeros(bands),
        db_std=torch.ones(bands),
    )
    if valid is not None:
        sample["valid"] = valid
    return {**sample, **more}  # type: ignore[typeddict-item]


def ground(height: int, width: int, axis: int) -> Tensor:
    """(1, H, W) whose power is the distance of the pixel's middle from the left, or from the top."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return (x, y)[axis].sqrt()[None]


def seen(image: Tensor, box: Tensor) -> float:
    """The mean power that a box of a view shows."""
    x0, y0, x1, y1 = box.double().tolist()
    return float(render(image, View(x0, y0, x1 - x0, y1 - y0, False, False, 1))[0].square())


def pairs_of(sample: Sample, count: int, **changes: Any) -> list[Pair]:
    draw = transform(**changes)
    return [draw(sample, torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.mark.parametrize("size", [(200, 300), (40, 90), (60, 31)])
def test_a_box_shows_the_same_ground_in_both_views(size: tuple[int, int]) -> None:
    boxes, mirrored = 0, set()
    for axis in (0, 1):
        for pair in pairs_of(sample_of(ground(*size, axis)), 25):
            for query, key in zip(
                pair["query_boxes"][pair["valid"]], pair["key_boxes"][pair["valid"]], strict=True
            ):
                there, here = seen(pair["query_image"], query), seen(pair["key_image"], key)
                assert abs(there - here) < 0.1, "pixels of the source"
                sides = torch.cat([query[2:] - query[:2], key[2:] - key[:2]])
                assert float(sides.min()) >= SMALLEST - 1e-3
                boxes += 1
            mirrored.add(tuple(pair["mirrored"].tolist()))
    assert boxes > 100
    assert len(mirrored) == 4


def test_shapes_are_fixed_whatever_the_image() -> None:
    many = pairs_of(sample_of(torch.rand(1, 300, 200)), 2)
    none = pairs_of(sample_of(torch.rand(1, 3, 200)), 2)  # a strip: boxes have no room in most
    two = pairs_of(sample_of(torch.rand(2, 50, 50)), 1)
    batch = join_pairs([*many, *none, *two])
    assert batch["query_image"].shape == batch["key_image"].shape == (5, 2, SIZE, SIZE)
    assert batch["query_boxes"].shape == batch["key_boxes"].shape == (5, 10, 4)
    assert batch["valid"].shape == (5, 10)
    assert batch["mirrored"].shape == (5, 2)
    assert batch["query_mean"].shape == batch["key_std"].shape == (5, 2)
    assert torch.equal(batch["query_image"][0, 0], batch["query_image"][0, 1]), "one band stands for two"
    assert not batch["query_boxes"][~batch["valid"]].any()


def test_nothing_unmeasured_is_in_a_box_nor_in_a_view() -> None:
    image, valid = ground(90, 120, 0), torch.ones(90, 120, dtype=torch.bool)
    valid[:, 50:58] = False
    image[:, ~valid] = 1e4
    boxes = 0
    for pair in pairs_of(sample_of(image, valid), 60, window=4.0):
        assert float(pair["query_image"].max()) <= 120**0.5
        for box in pair["query_boxes"][pair["valid"]].double():
            ends = [box[0], box[0] + 0.01], [box[2] - 0.01, box[2]]
            places = [seen(pair["query_image"], torch.tensor([e[0], box[1], e[1], box[3]])) for e in ends]
            low, high = sorted(places)
            assert high < 52 or low > 56, f"a box over columns {low:.1f} to {high:.1f}"
            boxes += 1
    assert boxes > 100


def test_of_a_large_scene_the_window_alone_is_read_where_it_was_measured() -> None:
    read = []

    def part(rows: slice, columns: slice) -> Sample:
        read.append((rows, columns))
        height, width = rows.stop - rows.start, columns.stop - columns.start
        valid = torch.full((height, width), rows.start >= 2000)
        return sample_of(torch.rand(1, height, width) + 0.1, valid, pixel_m=2.0)

    scene = SampleView(
        name="scene", size=(4000, 5000), read=part, mask=lambda r, c: torch.empty(0), pixel_m=2.0
    )
    for seed in range(10):
        read.clear()
        transform(pixel_m=4.0)(scene, torch.Generator().manual_seed(seed))
        assert read[-1][0].start >= 2000
        for rows, columns in read:
            assert rows.stop - rows.start == columns.stop - columns.start == round(1.5 * SIZE * 2)
    nothing = SampleView(
        name="margin", size=(900, 900), mask=lambda r, c: torch.empty(0),
        read=lambda r, c: sample_of(torch.zeros(1, 72, 72), torch.zeros(72, 72, dtype=torch.bool)),
    )  # fmt: skip
    with pytest.raises(InputError, match="margin shows nothing that was measured"):
        transform()(nothing, torch.Generator())


class _Images:
    classes = ClassTable(names=(), palette=())

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:
        return sample_of(torch.rand(1, 60, 60, generator=torch.Generator().manual_seed(index)))


def test_a_pair_depends_on_seed_and_draw_alone() -> None:
    draw = transform(radiometry=RadiometryConfig())
    first, again = (TrainStream(_Images(), draw, seed=3) for _ in range(2))
    forwards = [first[n] for n in range(12)]
    backwards = [again[n] for n in reversed(range(12))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]  # type: ignore[literal-required]
    other_seed = TrainStream(_Images(), draw, seed=4)
    assert not torch.equal(other_seed[0]["query_image"], forwards[0]["query_image"])


@pytest.mark.parametrize("wrong", [{"area_min": 0.0}, {"area_max": 1.5}, {"aspect": 0.5}, {"window": 0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        PairConfig(**wrong)  # type: ignore[arg-type]
