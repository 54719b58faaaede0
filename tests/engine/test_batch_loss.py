"""What a part of a batch counts, against the formula on masks of every kind. That parts add up to the whole
batch's loss is in test_layouts.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossearth_sar.decoder import DecoderConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.objectives import batch_loss
from crossearth_sar.engine.objectives.batch_loss import part_weights

QUERIES = DecoderConfig(num_queries=5, no_object_weight=0.1)


def masks() -> list[Tensor]:
    """Parts of two images: many classes, more classes than queries, ignored pixels, nothing but ignored."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randint(0, 4, (2, 9, 7), generator=generator)
    crowded = torch.randint(0, 8, (2, 9, 7), generator=generator)
    crowded[0, :3] = 255
    empty = torch.full((2, 9, 7), 255)
    one = torch.zeros(2, 9, 7, dtype=torch.int64)
    one[1] = 254
    return [mixed, crowded, empty, one]


def normalizers_by_definition(mask_BHW: Tensor) -> tuple[float, float, float]:
    """Class losses: a query with a target counts 1, another no_object_weight times the labelled share of its
    image. Mask losses: the targets."""
    targets = [len(set(mask_HW.flatten().tolist()) - {255}) for mask_HW in mask_BHW]
    matched = sum(min(count, 5) for count in targets)
    shares = [float((mask_HW != 255).float().mean()) for mask_HW in mask_BHW]
    empty = sum(share * (5 - min(count, 5)) for share, count in zip(shares, targets, strict=True))
    return matched + 0.1 * empty, sum(targets), sum(targets)


def alone(
    monkeypatch: pytest.MonkeyPatch, others: tuple[float, ...] = (0.0, 0.0, 0.0), size: int = 1
) -> Ranks:
    """One of `size` ranks, the rest of which add `others` to every sum."""

    def add(total: Tensor) -> Tensor:
        return total + torch.tensor(others, dtype=total.dtype)

    monkeypatch.setattr(batch_loss, "sum_over_ranks", add)
    return Ranks(rank=0, size=size, device=torch.device("cpu"))


def test_weights_are_shares_of_all_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = (7.0, 3.0, 3.0)
    ranks = alone(monkeypatch, elsewhere, size=2)
    own = [normalizers_by_definition(mask_BHW) for mask_BHW in masks()]
    mean = [(sum(values) + rest) / 8 for values, rest in zip(zip(*own, strict=True), elsewhere, strict=True)]
    for got, wanted in zip(part_weights(masks(), QUERIES, ranks), own, strict=True):
        assert got.tolist() == pytest.approx([w / m for w, m in zip(wanted, mean, strict=True)])


def test_a_batch_without_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = part_weights([masks()[2]] * 2, QUERIES, alone(monkeypatch))
    assert [weight.tolist() for weight in weights] == [[1.0, 1.0, 1.0]] * 2


def test_an_fpn_counts_labelled_pixels_and_classes_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = part_weights(masks(), DecoderConfig(kind="fpn"), alone(monkeypatch, (0.0, 0.0)))
    pixels = [int((mask != 255).sum()) for mask in masks()]
    classes = [sum(len(set(image.flatten().tolist()) - {255}) for image in mask) for mask in masks()]
    wanted = [[4 * p / sum(pixels), 4 * c / sum(classes)] for p, c in zip(pixels, classes, strict=True)]
    assert [weight.tolist() for weight in weights] == [pytest.approx(row) for row in wanted]


def test_an_auxiliary_head_counts_pixels_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DecoderConfig(kind="upernet", auxiliary_weight=0.4)
    weights = part_weights(masks(), config, alone(monkeypatch))
    fewer = part_weights(masks(), DecoderConfig(kind="linear"), alone(monkeypatch, (0.0, 0.0)))
    for three, two in zip(weights, fewer, strict=True):
        assert three.tolist() == [*two.tolist(), two[0].item()]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_classes_of_a_mask(dtype: torch.dtype) -> None:
    for mask_BHW in masks():
        for mask_HW in mask_BHW.to(dtype):
            assert batch_loss._classes_present(mask_HW) == int((mask_HW.unique() != 255).sum())
