"""A model on a domain, image by image: a confusion matrix each, and how far to believe its probabilities.

Sums over images are what reports show; images by themselves are what an interval is drawn from.

N images, K classes of the model, C classes of the domain, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossearth_sar.data.domain import Domain
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.evaluation.calibration import (
    Reliability,
    at_temperature,
    fit_temperature,
    grouped,
    log_probabilities,
)
from crossearth_sar.evaluation.class_mapping import ClassMapping
from crossearth_sar.evaluation.evaluate import sample_scores
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.ground_scale import interpolated, interpolated_at
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.spacing import evenly_spaced

PIXELS_AN_IMAGE = 4096
"""Labelled pixels of an image, evenly spaced, that a temperature is fitted on: neighbours tell little new."""

OnImage = Callable[[int, Sample, Tensor], object]
"""Called with index, sample and (H, W) classes of the domain."""


@dataclass
class ImageScores:
    """names: of the samples. units: the image that each is or was cut from. counts_CC: (C, C) int64 each.

    before, after: reliability at temperature 1 and at the model's; `after` is None where it has none.
    """

    names: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    counts_CC: list[NDArray[np.int64]] = field(default_factory=list)
    before: Reliability = field(default_factory=Reliability)
    after: Reliability | None = None

    def confusion(self) -> ConfusionMatrix:
        """Of all images together."""
        matrix = ConfusionMatrix(len(self.counts_CC[0]))
        matrix.counts += torch.from_numpy(np.sum(self.counts_CC, axis=0))
        return matrix

    def unit_counts(self) -> NDArray[np.int64]:
        """(N, C, C) of whole images, tiles of one added up."""
        sums: dict[str, NDArray[np.int64]] = {}
        for unit, counts in zip(self.units, self.counts_CC, strict=True):
            sums[unit] = sums[unit] + counts if unit in sums else counts
        return np.stack(list(sums.values()))

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON, which `from_mapping` reads."""
        return {
            "names": self.names,
            "units": self.units,
            "counts": [counts.tolist() for counts in self.counts_CC],
            "before": _reliability_mapping(self.before),
            "after": None if self.after is None else _reliability_mapping(self.after),
        }

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any]) -> ImageScores:
        after = mapping["after"]
        return cls(
            names=mapping["names"],
            units=mapping["units"],
            counts_CC=[np.array(counts, np.int64) for counts in mapping["counts"]],
            before=_reliability(mapping["before"]),
            after=None if after is None else _reliability(after),
        )


def score_images(
    model: CrossEarthSAR,
    domain: Domain,
    indices: Iterable[int],
    mapping: ClassMapping,
    *,
    temperature: float | None = None,
    fitted_on: Collection[int] = (),
    on_image: OnImage | None = None,
) -> ImageScores:
    """One pass over samples of the domain.

    Args:
        temperature: of `after`; None: there is none.
        fitted_on: samples that the temperature was fitted on, which say nothing of how good it is.
    """
    found = ImageScores(after=None if temperature is None else Reliability())
    for index in indices:
        sample = domain[index]
        mask, size = sample["mask"], (sample["mask"].shape[0], sample["mask"].shape[1])
        scores_KHW = interpolated(sample_scores(model, sample), size)
        log_p_KHW = log_probabilities(scores_KHW)
        classes_HW = torch.tensor(mapping.to_domain, device=scores_KHW.device)[scores_KHW.argmax(0)]
        predicted = classes_HW.cpu()
        matrix = ConfusionMatrix(len(domain.classes))
        matrix.update(predicted, mask)
        found.names.append(sample["name"])
        found.units.append("; ".join(domain.origin(index)[0]))
        found.counts_CC.append(matrix.counts.numpy())
        labelled = mask != IGNORE_INDEX
        for bins, used in ((found.before, None), (found.after, temperature)):
            if bins is not None and index not in fitted_on:
                confidence = _confidence(log_p_KHW, classes_HW, mapping, used).cpu()
                bins.update(confidence[labelled], predicted[labelled] == mask[labelled])
        if on_image is not None:
            on_image(index, sample, predicted)
    return found


def temperature_of(
    model: CrossEarthSAR, domain: Domain, indices: Iterable[int], mapping: ClassMapping
) -> float:
    """Fitted on labelled pixels of these samples; InputError where there are none."""
    log_ps, targets = [], []
    for index in indices:
        sample = domain[index]
        mask = sample["mask"]
        labelled = (mask.flatten() != IGNORE_INDEX).nonzero()[:, 0]
        chosen = labelled[evenly_spaced(len(labelled), min(PIXELS_AN_IMAGE, len(labelled)))]
        scores_KN = interpolated_at(sample_scores(model, sample), (mask.shape[0], mask.shape[1]), chosen)
        log_ps.append(log_probabilities(scores_KN).cpu())
        targets.append(mask.flatten()[chosen])
    return fit_temperature(torch.cat(log_ps, 1), torch.cat(targets), torch.tensor(mapping.to_domain))


def _confidence(
    log_p_KHW: Tensor, classes_HW: Tensor, mapping: ClassMapping, temperature: float | None
) -> Tensor:
    """(H, W) probability of the class that a pixel is said to be."""
    group_K = torch.tensor(mapping.to_domain)
    probability_CHW = grouped(at_temperature(log_p_KHW, temperature), group_K, int(group_K.max()) + 1)
    return probability_CHW.gather(0, classes_HW[None])[0]


def _reliability_mapping(bins: Reliability) -> dict[str, list[float]]:
    return {key: getattr(bins, key).tolist() for key in ("pixels", "confidence", "right")}


def _reliability(mapping: dict[str, list[float]]) -> Reliability:
    return Reliability(**{key: torch.tensor(values, dtype=torch.float64) for key, values in mapping.items()})
