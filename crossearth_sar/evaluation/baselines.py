"""What a score must beat to mean anything: the majority class, and a backscatter threshold for water.

Neither learns from images. `majority_class` knows only which class is commonest in the training masks;
`otsu_water_scores` knows only that calm water is dark in SAR, and looks at no label. Both give a
`ConfusionMatrix`, so their IoU is counted exactly as the model's is and can stand beside it.

Shapes: C classes (and image bands, where a Sample is meant), H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crossearth_sar.data.sample import IGNORE_INDEX, Sample, SegmentationDataset
from crossearth_sar.decibels import to_db
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.spacing import evenly_spaced

OTSU_BINS = 256
OTSU_TAIL = 0.005
"""Share of the values left out at either end when the range of the histogram is chosen."""


def class_histogram(dataset: SegmentationDataset, max_samples: int | None = None) -> Tensor:
    """Number of labelled pixels per class over the masks of `dataset`: (C,) int64, ignored ones left out.

    Args:
        dataset: read by index; only the masks are looked at.
        max_samples: read only so many samples, evenly spaced over the dataset (its order is often by place
            or date, so the first ones would not stand for the rest). None reads all.

    Raises:
        InputError: for a mask value that is neither a class nor IGNORE_INDEX, or `max_samples` below 1.
    """
    num_classes = len(dataset.classes)
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for sample in _samples(dataset, max_samples):
        labelled = sample["mask"][sample["mask"] != IGNORE_INDEX]
        _check_mask(labelled, num_classes, sample["name"])
        counts += torch.bincount(labelled, minlength=num_classes)
    return counts


def majority_class(counts: Tensor) -> int:
    """The commonest class of (C,) pixel counts; the lowest index among equals.

    Raises:
        InputError: when no pixel was counted.
    """
    if counts.ndim != 1 or int(counts.sum()) == 0:
        raise InputError(
            "no majority class without labelled pixels",
            got=counts.tolist(),
            expected="(C,) counts with a positive sum, as class_histogram gives them",
        )
    return int((counts == counts.max()).nonzero()[0])


def majority_scores(
    dataset: SegmentationDataset, class_index: int, max_samples: int | None = None
) -> ConfusionMatrix:
    """The counts of predicting `class_index` for every pixel of `dataset`.

    Args:
        dataset: the evaluation set; only the masks are looked at.
        class_index: `majority_class(class_histogram(training_set))`: taken from the training set, the
            commonest class of the evaluation set is not something a predictor may know.
        max_samples: as for `class_histogram`.

    Raises:
        InputError: for an index outside the classes, or a mask that does not fit them.
    """
    num_classes = len(dataset.classes)
    _check_index("class_index", class_index, num_classes)
    matrix = ConfusionMatrix(num_classes)
    matrix.counts[:, class_index] = class_histogram(dataset, max_samples)
    return matrix


def otsu_threshold_db(values_db: Tensor) -> float:
    """Otsu's threshold: the split of the histogram with the largest between-class variance, in dB.

    The histogram has 256 equal bins over the 0.5 to 99.5 percentile; values beyond go to the end bins, so
    that an outlier counts without stretching the range (over the full range if the percentiles coincide). A
    split lies on an edge between two bins. Where splits tie, as all those in an empty valley between two
    modes do, the answer is the middle of the lowest run of equals, so the threshold does not cling to one
    mode. Values that are all the same cannot be split: the answer is that value, and nothing is below it.

    Args:
        values_db: (N,) finite real values, N >= 1.

    Raises:
        InputError: for another shape or dtype, no values, or values that are not finite.
    """
    if values_db.ndim != 1 or values_db.numel() == 0 or not values_db.is_floating_point():
        raise InputError(
            "values_db does not fit",
            got=f"{tuple(values_db.shape)} {values_db.dtype}",
            expected="(N,) of a float dtype, N >= 1",
        )
    if not bool(values_db.isfinite().all()):
        raise InputError(
            "values_db is not finite",
            got=f"{int((~values_db.isfinite()).sum())} NaN or inf",
            expected="finite values",
            fix="leave out pixels of amplitude 0, their dB is -inf",
        )
    values = values_db.detach().double()
    low, high = _histogram_range(values)
    if low == high:
        return low
    width = (high - low) / OTSU_BINS
    bins = ((values - low) / width).floor().clamp(0, OTSU_BINS - 1).long()
    histogram = torch.bincount(bins, minlength=OTSU_BINS).double()
    # Split s puts bins 0..s below. An empty bin leaves both sums as they are, so ties in a valley are exact.
    below = histogram.cumsum(0)[:-1]
    moment = (histogram * torch.arange(OTSU_BINS, dtype=torch.float64, device=values.device)).cumsum(0)
    total = float(values.numel())
    numerator = (total * moment[:-1] - below * moment[-1]) ** 2
    variance = numerator / (below * (total - below)).clamp(min=1.0)  # an empty side has numerator 0
    best = (variance == variance.max()).nonzero().flatten()
    run = int((best - best[0] == torch.arange(len(best), device=best.device)).sum())
    return low + width * (float(best[0]) + (run - 1) / 2 + 1)


def otsu_water_scores(
    dataset: SegmentationDataset,
    water_index: int,
    other_index: int,
    band: int = 0,
    num_classes: int | None = None,
    max_samples: int | None = None,
) -> ConfusionMatrix:
    """The counts of calling water what is darker than each image's own Otsu threshold.

    The threshold is taken per image on 20*log10(amplitude) of one band, over pixels of amplitude above 0
    (nodata is 0 in a Sample), labelled or not: no label is looked at. Below it is water, all else is
    `other_index`. A labelled pixel of amplitude 0 is darker than any threshold, thus water; an image with no
    amplitude above 0 has no threshold and is `other_index` throughout.

    Otsu always splits: an image without water has water predicted in its darker half. This is how the method
    fares in practice, and part of what the number says.

    Args:
        dataset: images in linear amplitude, as Sample says.
        water_index: class predicted below the threshold.
        other_index: class predicted elsewhere (of a task with more classes, the commonest other one).
        band: which band of the image.
        num_classes: C of the result; None takes `len(dataset.classes)`.
        max_samples: as for `class_histogram`.

    Raises:
        InputError: for indices or a band that the dataset does not have.
    """
    num_classes = len(dataset.classes) if num_classes is None else num_classes
    _check_index("water_index", water_index, num_classes)
    _check_index("other_index", other_index, num_classes)
    if water_index == other_index:
        raise InputError("water_index and other_index are the same", got=water_index, expected="two classes")
    matrix = ConfusionMatrix(num_classes)
    for sample in _samples(dataset, max_samples):
        water = _water_map(sample, band)
        matrix.update(torch.where(water, water_index, other_index), sample["mask"])
    return matrix


def _water_map(sample: Sample, band: int) -> Tensor:
    image = sample["image"]
    if not 0 <= band < len(image):
        raise InputError(
            f"image {sample['name']!r} has no band {band}",
            got=f"{len(image)} bands",
            expected=f"a band in 0..{len(image) - 1}",
        )
    amplitude_db = to_db(image[band].double())  # amplitude 0 is at its floor, under any threshold
    valid = image[band] > 0
    if not bool(valid.any()):
        return torch.zeros_like(valid)
    return amplitude_db < otsu_threshold_db(amplitude_db[valid])


def _histogram_range(values: Tensor) -> tuple[float, float]:
    # Order statistics, not torch.quantile: that one refuses more than 2**24 values.
    last = values.numel() - 1
    low = float(values.kthvalue(1 + int(OTSU_TAIL * last)).values)
    high = float(values.kthvalue(1 + last - int(OTSU_TAIL * last)).values)
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def _samples(dataset: SegmentationDataset, max_samples: int | None) -> Iterator[Sample]:
    if max_samples is not None and max_samples < 1:
        raise InputError("max_samples does not fit", got=max_samples, expected="1 or more, or None for all")
    count = len(dataset) if max_samples is None else min(max_samples, len(dataset))
    for i in evenly_spaced(len(dataset), count):
        yield dataset[i]


def _check_mask(labelled: Tensor, num_classes: int, name: str) -> None:
    wrong = labelled[(labelled < 0) | (labelled >= num_classes)]
    if wrong.numel():
        raise InputError(
            f"mask of {name!r} has values that are no class",
            got=wrong.unique()[:8].tolist(),
            expected=f"0..{num_classes - 1} or {IGNORE_INDEX} to ignore",
        )


def _check_index(name: str, index: int, num_classes: int) -> None:
    if not 0 <= index < num_classes:
        raise InputError(f"{name} is no class of the task", got=index, expected=f"0..{num_classes - 1}")
