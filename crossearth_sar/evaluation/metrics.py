"""Confusion matrix and the scores read from it: IoU per class, mIoU, pixel accuracy.

Counts are summed over the whole benchmark before any ratio is taken, as every published mIoU is; the mean
of per-image IoUs is another number and is not made here. Nothing is accumulated but the (C, C) counts, so a
data-parallel evaluation is one all-reduce of `ConfusionMatrix.counts`.

Shapes: C classes, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationScores:
    """Scores of one evaluation, as fractions in 0..1 (not percent).

    iou: (C,) float64 on the CPU. Intersection over union per class; NaN for a class absent from both target
        and prediction.
    miou: mean of the entries of `iou` that are not NaN. So a class that is predicted somewhere but nowhere
        in the target counts with IoU 0. This is what mmsegmentation (nanmean over classes whose union is not
        empty) and torchmetrics (`MulticlassJaccardIndex`, macro) report. NaN where of several classes fewer
        than two occur: a class alone is always right.
    pixel_accuracy: share of counted pixels that are right; NaN when no pixel counts.
    target_share: (C,) float64 on the CPU. Share of the counted pixels that belong to each class by the
        target; NaN when no pixel counts.
    pixels: number of counted pixels, the ignored ones left out.
    """

    iou: Tensor
    miou: float
    pixel_accuracy: float
    target_share: Tensor
    pixels: int

    def to_mapping(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON, per-class values keyed by name; NaN becomes None, JSON knows no NaN.

        Raises:
            InputError: when the names are not as many as the classes, or not distinct.
        """
        if len(class_names) != len(self.iou) or len(set(class_names)) != len(class_names):
            raise InputError(
                "class names do not fit the scores",
                got=list(class_names),
                expected=f"{len(self.iou)} distinct names",
            )
        return {
            "miou": _none_if_nan(self.miou),
            "pixel_accuracy": _none_if_nan(self.pixel_accuracy),
            "pixels": self.pixels,
            "iou": _by_name(class_names, self.iou),
            "target_share": _by_name(class_names, self.target_share),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassRates:
    """(C,) float64 each, fractions: precision, recall, and F1, their harmonic mean.

    NaN where nothing is divided by: precision of a class that is never predicted, recall of one that never
    occurs, F1 of one that does neither.
    """

    precision: Tensor
    recall: Tensor
    f1: Tensor


class ConfusionMatrix:
    """Counts of (target class, predicted class) pairs over any number of batches.

    Args:
        num_classes: C.
        ignore_index: target value of a pixel that does not count, whatever is predicted there.
        device: where `counts` lives; batches may come from any device.

    Attributes:
        counts: (C, C) int64, rows target, columns prediction. An ordinary tensor: sum it over ranks in
            place (`torch.distributed.all_reduce(matrix.counts)`) before asking for scores.

    Raises:
        InputError: for fewer than one class, or an `ignore_index` that is one of the classes.

    Example:
        >>> matrix = ConfusionMatrix(num_classes=2)
        >>> matrix.update(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [1, 255]]))
        >>> matrix.counts.tolist()
        [[1, 1], [0, 1]]
        >>> matrix.scores().miou
        0.5
    """

    def __init__(
        self, num_classes: int, ignore_index: int = IGNORE_INDEX, *, device: torch.device | str = "cpu"
    ) -> None:
        if num_classes < 1:
            raise InputError("num_classes does not fit", got=num_classes, expected="1 or more")
        if 0 <= ignore_index < num_classes:
            raise InputError(
                "ignore_index is one of the classes",
                got=ignore_index,
                expected=f"a value outside 0..{num_classes - 1}",
                fix=f"to leave a class out of the score, set its target pixels to {IGNORE_INDEX}",
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch. Nothing is added when the input is refused.

        Args:
            prediction: (..., H, W), any integer dtype, class indices. Where the target is ignored, any value.
            target: same shape and device, any integer dtype, class indices or `ignore_index`.

        Raises:
            InputError: for another dtype, shape or device, or a class outside 0..C-1 in a counted pixel.
        """
        self._check_tensors(prediction, target)
        target, prediction = target.long(), prediction.long()  # first: in uint8 -1 and 255 would be one value
        counted = target != self.ignore_index
        rows, columns = target[counted], prediction[counted]
        self._check_range("target", rows)
        self._check_range("prediction", columns)
        size = self.num_classes**2
        batch = torch.bincount(rows * self.num_classes + columns, minlength=size)
        self.counts += batch.view_as(self.counts).to(self.counts.device)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """A new matrix with the counts of both, on the device of the left one."""
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        mine, theirs = (self.num_classes, self.ignore_index), (other.num_classes, other.ignore_index)
        if mine != theirs:
            raise InputError(
                "confusion matrices of different tasks cannot be added",
                got=f"(num_classes, ignore_index) {theirs}",
                expected=f"{mine}",
            )
        total = ConfusionMatrix(self.num_classes, self.ignore_index, device=self.counts.device)
        total.counts = self.counts + other.counts.to(self.counts.device)
        return total

    def scores(self) -> SegmentationScores:
        """The scores of all that was counted so far."""
        counts = self.counts.cpu()
        intersection, per_target = counts.diagonal(), counts.sum(1)
        union = per_target + counts.sum(0) - intersection
        iou = intersection.double() / union.double()  # 0 / 0 is the NaN that is wanted
        pixels = int(per_target.sum())
        occurring = int((union > 0).sum())
        return SegmentationScores(
            iou=iou,
            miou=math.nan if occurring < min(2, self.num_classes) else float(iou.nanmean()),
            pixel_accuracy=int(intersection.sum()) / pixels if pixels else math.nan,
            target_share=per_target.double() / pixels,
            pixels=pixels,
        )

    def rates(self) -> ClassRates:
        """Precision, recall and F1 of each class over all that was counted so far."""
        counts = self.counts.cpu().double()
        right, predicted, target = counts.diagonal(), counts.sum(0), counts.sum(1)
        return ClassRates(
            precision=right / predicted, recall=right / target, f1=2 * right / (predicted + target)
        )

    def __repr__(self) -> str:
        return (
            f"ConfusionMatrix(num_classes={self.num_classes}, ignore_index={self.ignore_index}, "
            f"pixels={int(self.counts.sum())})"
        )

    def _check_tensors(self, prediction: Tensor, target: Tensor) -> None:
        for name, tensor in (("prediction", prediction), ("target", target)):
            if tensor.is_floating_point() or tensor.is_complex():
                raise InputError(
                    f"{name} holds no class indices",
                    got=tensor.dtype,
                    expected="an integer dtype",
                    fix="logits become classes by argmax over the class dimension",
                )
        if prediction.shape != target.shape:
            raise InputError(
                "prediction and target differ in shape",
                got=f"prediction {tuple(prediction.shape)}",
                expected=f"the target's {tuple(target.shape)}",
                fix="resize the logits, not the target, to the size of the label map",
            )
        if prediction.device != target.device:
            raise InputError(
                "prediction and target are on different devices",
                got=f"{prediction.device} and {target.device}",
                expected="one device",
            )

    def _check_range(self, name: str, values: Tensor) -> None:
        if values.numel() == 0:
            return
        low, high = (int(bound) for bound in torch.aminmax(values))
        if low < 0 or high >= self.num_classes:
            ignored = f" or {self.ignore_index} to ignore" if name == "target" else ""
            raise InputError(
                f"{name} has class indices outside the task",
                got=f"values {low}..{high}",
                expected=f"0..{self.num_classes - 1}{ignored}",
            )


def absent_words(scores: Mapping[str, Any]) -> list[str]:
    """Lines of a report on classes that the labels lack, of `SegmentationScores.to_mapping`; none without."""
    absent = [name for name, share in scores["target_share"].items() if not share]
    if not absent:
        return []
    alone = "one class alone has no mIoU" if scores["miou"] is None else "the mIoU says nothing of finding it"
    return [f"- No pixel of the labels is {' or '.join(absent)}: {alone}.", ""]


def _by_name(names: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return {name: _none_if_nan(value) for name, value in zip(names, values.tolist(), strict=True)}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
