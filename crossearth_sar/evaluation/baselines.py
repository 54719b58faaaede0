"""What a score must beat to mean anything: the majority class, and backscatter thresholds for water.

Neither learns from images. `majority_class` knows only which class is commonest in the training masks;
`otsu_water_scores` knows only that calm water is dark in SAR, and looks at no label: at single pixels image
by image, or at multilooked ones, with one threshold for a whole set. Both give a `ConfusionMatrix`, so their
IoU is counted exactly as the model's is and can stand beside it.

Shapes: C classes (and image bands, where a Sample is meant), H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.sample import IGNORE_INDEX, Sample, SegmentationDataset
from crossearth_sar.data.working_scale import at_working_scale
from crossearth_sar.decibels import to_db
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.ground_scale import centre_pixels, require_pixel_m
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


def multilook(amplitude: Tensor, window: int) -> Tensor:
    """Amplitude (H, W) as the root of the mean intensity over `window` x `window` pixels about each.

    Pixels of amplitude 0 were not measured and are in no mean; where a window holds nothing else, so is the
    result. At the border the window is what lies within the image.

    Raises:
        InputError: an even window, or none.
    """
    require(window >= 1 and window % 2 == 1, "window", window, "an odd number of pixels")
    if window == 1:
        return amplitude
    power, lit = amplitude.square(), (amplitude > 0).to(amplitude.dtype)
    for size in ((window, 1), (1, window)):
        padding = (size[0] // 2, size[1] // 2)
        power, lit = (
            F.avg_pool2d(values[None], size, stride=1, padding=padding, divisor_override=1)[0]
            for values in (power, lit)
        )
    return (power / lit.clamp(min=1)).clamp(min=0).sqrt()


@dataclass(frozen=True, kw_only=True)
class OtsuWater:
    """Water is what is darker than Otsu's threshold, in dB of one band.

    The threshold is over pixels of amplitude above 0 (nodata is 0 in a Sample), labelled or not: no label is
    looked at. A pixel of amplitude 0 is darker than any threshold, thus water; an image with no amplitude
    above 0 has no threshold and no water.
    """

    window: int = 1
    """Side of the multilook before it, pixels."""
    pooled: bool = False
    """One threshold for all images of the set together; false: each image has its own."""
    pixel_m: float | None = None
    """Ground spacing that images are averaged to first, in power, metres; null: as they are."""

    def __post_init__(self) -> None:
        require(self.window >= 1 and self.window % 2 == 1, "window", self.window, "an odd number of pixels")
        require_pixel_m(self.pixel_m)

    def shared_threshold(
        self, dataset: SegmentationDataset, band: int = 0, max_samples: int | None = None
    ) -> float | None:
        """dB, of all images together; None where each has its own, or none has a pixel above 0."""
        if not self.pooled:
            return None
        seen = (self._seen(sample, band) for sample in _samples(dataset, max_samples))
        values = torch.cat([to_db(image[image > 0]).float() for image in seen])
        return otsu_threshold_db(values) if len(values) else None

    def water_map(self, sample: Sample, threshold_db: float | None = None, band: int = 0) -> Tensor:
        """(H, W) bool of a sample; the threshold not given is its own."""
        image = self._seen(sample, band)
        amplitude_db = to_db(image.double())  # amplitude 0 is at its floor, under any threshold
        valid = image > 0
        if not bool(valid.any()):
            return torch.zeros_like(sample["mask"], dtype=torch.bool)
        own = otsu_threshold_db(amplitude_db[valid]) if threshold_db is None else threshold_db
        return centre_pixels(amplitude_db < own, (sample["mask"].shape[0], sample["mask"].shape[1]))

    def _seen(self, sample: Sample, band: int) -> Tensor:
        if not 0 <= band < len(sample["image"]):
            raise InputError(
                f"image {sample['name']!r} has no band {band}",
                got=f"{len(sample['image'])} bands",
                expected=f"a band in 0..{len(sample['image']) - 1}",
            )
        working = sample if self.pixel_m is None else at_working_scale(sample, self.pixel_m)
        return multilook(working["image"][band], self.window)


def otsu_water_scores(
    dataset: SegmentationDataset,
    water_index: int,
    other_index: int,
    band: int = 0,
    num_classes: int | None = None,
    max_samples: int | None = None,
    *,
    method: OtsuWater | None = None,
) -> ConfusionMatrix:
    """The counts of calling water what is darker than Otsu's threshold, see `OtsuWater`.

    Otsu always splits: an image without water has water predicted in its darker half. This is how the method
    fares in practice, and part of what the number says.

    Args:
        dataset: images in linear amplitude, as Sample says.
        water_index: class predicted below the threshold.
        other_index: class predicted elsewhere (of a task with more classes, the commonest other one).
        band: which band of the image.
        num_classes: C of the result; None takes `len(dataset.classes)`.
        max_samples: as for `class_histogram`.
        method: how; None is the plainest, each image's own threshold on its single pixels.

    Raises:
        InputError: for indices or a band that the dataset does not have.
    """
    num_classes = len(dataset.classes) if num_classes is None else num_classes
    _check_index("water_index", water_index, num_classes)
    _check_index("other_index", other_index, num_classes)
    if water_index == other_index:
        raise InputError("water_index and other_index are the same", got=water_index, expected="two classes")
    method = method or OtsuWater()
    shared = method.shared_threshold(dataset, band, max_samples)
    matrix = ConfusionMatrix(num_classes)
    for sample in _samples(dataset, max_samples):
        water = method.water_map(sample, shared, band)
        matrix.update(torch.where(water, water_index, other_index), sample["mask"])
    return matrix


OTSU_VARIANTS = tuple(
    OtsuWater(window=window, pooled=pooled) for pooled in (False, True) for window in (1, 5, 9)
)
"""What `best_otsu_water_scores` tries, the plainest first."""


def best_otsu_water_scores(
    dataset: SegmentationDataset, water_index: int, other_index: int, max_samples: int | None = None
) -> tuple[OtsuWater, ConfusionMatrix]:
    """Of OTSU_VARIANTS the one with the best water IoU, and its counts; arguments as `otsu_water_scores`.

    The choice is made with the labels that it is scored on: a bar that lies above any one of them.
    """
    found = [
        (method, otsu_water_scores(dataset, water_index, other_index, max_samples=max_samples, method=method))
        for method in OTSU_VARIANTS
    ]
    return max(found, key=lambda pair: float(pair[1].scores().iou[water_index].nan_to_num(-1.0)))


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
