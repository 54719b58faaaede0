"""A line of the probes' table: its counts image by image, and what follows from them.

S seeds, N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossearth_sar.evaluation.bootstrap import Interval, seeds_interval
from crossearth_sar.evaluation.metrics import ConfusionMatrix


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """One encoder, probed in one way with so many labelled images, on one test domain.

    labels: as asked for; images: how many that is. seeds: of the draws. units: the test images, N of them,
    tiles of one added up. absent: of each seed the classes that no labelled image of its draw shows, and
    that it therefore never predicts. counts_SNCC: (S, N, C, C) int64, rows target, columns prediction.
    """

    encoder: str
    method: str
    labels: str
    images: int
    test: str
    classes: tuple[str, ...]
    seeds: tuple[int, ...]
    units: tuple[str, ...]
    absent: tuple[tuple[str, ...], ...]
    counts_SNCC: NDArray[np.int64]

    @property
    def miou_by_seed(self) -> list[float]:
        """Fractions."""
        return [_confusion(counts.sum(0)).scores().miou for counts in self.counts_SNCC]

    @property
    def miou(self) -> float:
        """Mean over seeds, a fraction; NaN where the labels show one class alone."""
        return float(np.mean(self.miou_by_seed))

    @property
    def interval(self) -> Interval | None:
        """Of that mean with other test images, for these draws; None for a single image."""
        return seeds_interval(self.counts_SNCC)

    def above(self, other: ProbeRow) -> tuple[float, Interval | None]:
        """mIoU minus that of another encoder's row of the same draws and images, and its interval."""
        assert (self.seeds, self.units) == (other.seeds, other.units), "the same draws and images"
        return self.miou - other.miou, seeds_interval(self.counts_SNCC, other.counts_SNCC)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON, which `from_mapping` reads; scores follow from the counts."""
        names = ("encoder", "method", "labels", "images", "test", "classes", "seeds", "units", "absent")
        return {**{name: getattr(self, name) for name in names}, "counts": self.counts_SNCC.tolist()}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ProbeRow:
        plain = {key: value for key, value in mapping.items() if key != "counts"}
        for name in ("classes", "seeds", "units"):
            plain[name] = tuple(plain[name])
        plain["absent"] = tuple(tuple(names) for names in plain["absent"])
        return cls(**plain, counts_SNCC=np.array(mapping["counts"], np.int64))


def _confusion(counts_CC: NDArray[np.int64]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(len(counts_CC))
    matrix.counts += torch.from_numpy(np.ascontiguousarray(counts_CC))
    return matrix
