"""ConfusionMatrix against torchmetrics, against counting by hand, and at its edges."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.metrics import ConfusionMatrix, absent_words


def counted(prediction: Tensor, target: Tensor, num_classes: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes)
    matrix.update(prediction, target)
    return matrix


def random_pair(
    seed: int, num_classes: int, shape: tuple[int, ...], classes: int | None = None, ignored: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Prediction and target that agree on about half of the pixels; `classes` limits those in the target."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes or num_classes, shape, generator=generator)
    other = torch.randint(num_classes, shape, generator=generator)
    prediction = torch.where(torch.rand(shape, generator=generator) < 0.5, target, other)
    target[torch.rand(shape, generator=generator) < ignored] = 255
    return prediction, target


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    num_classes=st.integers(2, 12),
    shape=st.sampled_from([(1, 1), (7, 5), (2, 9, 4), (2, 1, 3, 6), (0, 4, 4)]),
    present=st.integers(1, 12),
    ignored=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
)
def test_agrees_with_torchmetrics(
    seed: int, num_classes: int, shape: tuple[int, ...], present: int, ignored: float
) -> None:
    prediction, target = random_pair(seed, num_classes, shape, min(present, num_classes), ignored)
    ours = counted(prediction, target, num_classes)
    scores = ours.scores()
    peer = MulticlassConfusionMatrix(num_classes, ignore_index=255)
    peer.update(prediction.flatten(), target.flatten())
    assert torch.equal(ours.counts, peer.confmat.long())

    if scores.pixels == 0:  # torchmetrics answers 0 here; a score of nothing is not 0
        assert math.isnan(scores.miou)
        return
    per_class = MulticlassJaccardIndex(num_classes, average="none", ignore_index=255, zero_division=math.nan)
    per_class.update(prediction.flatten(), target.flatten())
    torch.testing.assert_close(scores.iou.float(), per_class.compute(), rtol=1e-6, atol=0, equal_nan=True)
    if int((~scores.iou.isnan()).sum()) < 2:  # torchmetrics answers 1 here; a class alone is always right
        assert math.isnan(scores.miou)
        return
    macro = MulticlassJaccardIndex(num_classes, average="macro", ignore_index=255)
    macro.update(prediction.flatten(), target.flatten())
    assert scores.miou == pytest.approx(float(macro.compute()), rel=1e-5)


def test_counts_by_hand() -> None:
    prediction = torch.tensor([[0, 1, 1], [2, 0, 0]])
    target = torch.tensor([[0, 0, 1], [1, 255, 0]])
    matrix = counted(prediction, target, 4)
    assert matrix.counts.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = matrix.scores()
    assert scores.iou[:3].tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert math.isnan(scores.iou[3])
    assert scores.miou == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert scores.pixel_accuracy == pytest.approx(3 / 5)
    assert scores.target_share.tolist() == pytest.approx([3 / 5, 2 / 5, 0, 0])
    assert scores.pixels == 5


def test_a_class_predicted_but_absent_from_the_target_counts_as_zero() -> None:
    target = torch.zeros(2, 2, dtype=torch.int64)
    (words, _) = absent_words(counted(target.clone(), target, 3).scores().to_mapping("abc"))
    assert words == "- No pixel of the labels is b or c: one class alone has no mIoU."
    prediction = torch.tensor([[0, 0], [0, 1]])
    scores = counted(prediction, target, 3).scores()
    assert scores.iou[:2].tolist() == [0.75, 0.0]
    assert math.isnan(scores.iou[2])
    assert scores.miou == 0.375
    assert "is b or c: the mIoU says nothing of finding it" in absent_words(scores.to_mapping("abc"))[0]
    both = torch.tensor([[0, 1]])
    assert absent_words(counted(both, both, 2).scores().to_mapping("ab")) == []


def test_all_ignored_has_no_score() -> None:
    matrix = counted(torch.full((3, 3), 77), torch.full((3, 3), 255), 2)
    scores = matrix.scores()
    assert int(matrix.counts.sum()) == scores.pixels == 0
    assert math.isnan(scores.miou)
    assert math.isnan(scores.pixel_accuracy)
    assert bool(scores.iou.isnan().all())
    assert bool(scores.target_share.isnan().all())


def test_a_class_alone_is_never_scored_100() -> None:
    alone = counted(torch.ones(3, 3).long(), torch.ones(3, 3).long(), 2).scores()
    assert math.isnan(alone.miou)
    assert (alone.iou[1], alone.pixel_accuracy) == (1, 1)
    zeros = torch.zeros(3, 3).long()
    assert counted(zeros, zeros, 1).scores().miou == 1, "no other is there"


def test_one_pixel() -> None:
    assert counted(torch.tensor([[0]]), torch.tensor([[1]]), 5).scores().miou == 0


def test_batches_and_sums_give_what_one_update_gives() -> None:
    prediction, target = random_pair(0, 6, (4, 16, 16))
    whole = counted(prediction, target, 6)
    parts = [counted(p, t, 6) for p, t in zip(prediction, target, strict=True)]
    before = parts[0].counts.clone()
    total = parts[0] + parts[1] + parts[2] + parts[3]
    assert torch.equal(total.counts, whole.counts)
    assert torch.equal(parts[0].counts, before)
    streamed = ConfusionMatrix(6)
    for p, t in zip(prediction, target, strict=True):
        streamed.update(p, t)
    assert torch.equal(streamed.counts, whole.counts)
    reduced = ConfusionMatrix(6)  # as an all-reduce does it: in place, on the counts
    for part in parts:
        reduced.counts += part.counts
    assert reduced.scores().miou == whole.scores().miou


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
)
def test_every_integer_dtype_gives_the_same_counts(dtype: torch.dtype) -> None:
    prediction, target = random_pair(1, 5, (8, 8), ignored=0.0 if dtype == torch.int8 else 0.2)
    expected = counted(prediction, target, 5).counts
    assert torch.equal(counted(prediction.to(dtype), target.to(dtype), 5).counts, expected)


def test_views_are_read_as_they_are_and_left_unchanged() -> None:
    prediction, target = random_pair(2, 4, (6, 10))
    kept = prediction.clone(), target.clone()
    assert torch.equal(counted(prediction.T, target.T, 4).counts, counted(prediction, target, 4).counts)
    assert torch.equal(prediction, kept[0])
    assert torch.equal(target, kept[1])


def test_no_count_is_lost_beyond_float32() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts += torch.tensor([[2**40, 1], [0, 2**40]])
    scores = matrix.scores()
    assert scores.pixels == 2**41 + 1
    assert 0 < 1 - scores.pixel_accuracy < 1e-12


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), "prediction holds no class indices"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2), "target holds no class indices"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64), "differ in shape"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64), "differ in shape"),
        (torch.tensor([[0, 3]]), torch.tensor([[0, 0]]), "prediction has class indices outside"),
        (torch.tensor([[0, -1]]), torch.tensor([[0, 0]]), "prediction has class indices outside"),
        (torch.tensor([[0, 0]]), torch.tensor([[0, 3]]), "target has class indices outside"),
        (torch.tensor([[0, 0]]), torch.tensor([[0, -1]]), "target has class indices outside"),
        (torch.tensor([[0, 0]], dtype=torch.int8), torch.tensor([[0, -1]], dtype=torch.int8), "outside"),
    ],
)
def test_bad_input_is_refused_and_nothing_added(prediction: Tensor, target: Tensor, says: str) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(InputError, match=says):
        matrix.update(prediction, target)
    assert int(matrix.counts.sum()) == 0


def test_bad_construction_and_bad_sums_are_refused() -> None:
    with pytest.raises(InputError, match="num_classes"):
        ConfusionMatrix(0)
    with pytest.raises(InputError, match="ignore_index is one of the classes"):
        ConfusionMatrix(3, ignore_index=2)
    with pytest.raises(InputError, match="different tasks"):
        ConfusionMatrix(3) + ConfusionMatrix(4)
    with pytest.raises(InputError, match="different tasks"):
        ConfusionMatrix(3) + ConfusionMatrix(3, ignore_index=-1)


def test_another_ignore_index() -> None:
    matrix = ConfusionMatrix(2, ignore_index=-1)
    matrix.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, -1, 1]]))
    assert matrix.counts.tolist() == [[1, 0], [0, 1]]


def test_mapping_is_json_with_none_for_nan() -> None:
    scores = counted(torch.tensor([[0, 0]]), torch.tensor([[0, 1]]), 3).scores()
    mapping = json.loads(json.dumps(scores.to_mapping(["land", "water", "ice"]), allow_nan=False))
    assert mapping == {
        "miou": 0.25,
        "pixel_accuracy": 0.5,
        "pixels": 2,
        "iou": {"land": 0.5, "water": 0.0, "ice": None},
        "target_share": {"land": 0.5, "water": 0.5, "ice": 0.0},
    }
    empty = ConfusionMatrix(1).scores().to_mapping(["land"])
    assert empty["miou"] is None
    assert empty["target_share"] == {"land": None}
    for names in (["land", "water"], ["a", "a", "b"]):
        with pytest.raises(InputError, match="class names"):
            scores.to_mapping(names)


@pytest.mark.gpu
def test_counts_may_live_elsewhere_than_the_batches() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    prediction, target = random_pair(3, 7, (4, 64, 64))
    expected = counted(prediction, target, 7).counts
    for device in ("cpu", "cuda"):
        matrix = ConfusionMatrix(7, device=device)
        matrix.update(prediction.cuda(), target.cuda())
        assert matrix.counts.device.type == device
        assert torch.equal(matrix.counts.cpu(), expected)
    with pytest.raises(InputError, match="different devices"):
        matrix.update(prediction.cuda(), target)
