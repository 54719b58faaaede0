"""Counts of a method on a set, in units that are drawn anew: IoU with bootstrap intervals, and differences.

A unit is an image; of a set of one image, a block of 128 x 128 pixels. Counts are summed before any ratio.
Blocks of one image resemble each other, so their interval is about that image and says nothing of others.

U units, R resamples, S seeds, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from crossearth_sar.data.domain import Domain
from crossearth_sar.data.sample import Sample
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.provenance import provenance

BLOCK = 128
RESAMPLES = 1000

Predict = Callable[[Sample], Tensor]
"""A sample -> (H, W) classes of the set's task."""


def unit_counts(predict: Predict, domain: Domain) -> np.ndarray:
    """(U, C, C) counts, rows target, columns prediction."""
    classes, parts = len(domain.classes), []
    for index in range(len(domain)):
        sample = domain[index]
        prediction = predict(sample)
        if len(domain) == 1:
            return block_counts(prediction, sample["mask"], classes)
        parts.append(count(prediction, sample["mask"], classes))
    return np.stack(parts)


def block_counts(prediction: Tensor, mask: Tensor, classes: int) -> np.ndarray:
    """(U, C, C) of blocks side by side; the last of a row or column is what is left."""
    height, width = mask.shape
    blocks = [
        (slice(top, top + BLOCK), slice(left, left + BLOCK))
        for top in range(0, height, BLOCK)
        for left in range(0, width, BLOCK)
    ]
    return np.stack([count(prediction[block], mask[block], classes) for block in blocks])


def count(prediction: Tensor, mask: Tensor, classes: int) -> np.ndarray:
    """(C, C) int64."""
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction.long(), mask)
    return matrix.counts.numpy()


def iou(counts: np.ndarray) -> np.ndarray:
    """(..., C, C) -> (..., C); NaN for a class that is neither there nor predicted."""
    hit = np.einsum("...ii->...i", counts).astype(np.float64)
    union = counts.sum(-1) + counts.sum(-2) - hit
    return np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)


def mean_iou(counts_UCC: np.ndarray, drawn_RCC: np.ndarray) -> np.ndarray:
    """(R,) mean over the classes that the set has, whichever of them a resample has."""
    there = counts_UCC.sum((0, 2)) > 0
    return np.nanmean(iou(drawn_RCC)[:, there], axis=1)


def drawn_scores(counts_UCC: np.ndarray, water: int | None) -> dict[str, np.ndarray]:
    """miou and, where there is such a class, water: (1 + R,), the first of all units, then of resamples.

    Draws depend on the number of units alone, so those of two methods on a set are paired.
    """
    units = len(counts_UCC)
    rng = np.random.default_rng(units)
    weights_RU = rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES)
    weights_RU = np.concatenate([np.ones((1, units), np.int64), weights_RU])
    drawn = np.einsum("ru,uij->rij", weights_RU, counts_UCC)
    scores = {"miou": mean_iou(counts_UCC, drawn)}
    if water is not None:
        scores["water"] = np.nan_to_num(iou(drawn)[:, water], nan=0.0)
    return scores


@dataclass(frozen=True)
class Estimate:
    """In percent: the score, the bounds of its 95 % interval, the deviation over seeds (0 of one)."""

    value: float
    low: float
    high: float
    seed_std: float = 0.0

    def __str__(self) -> str:
        spread = f" ± {self.seed_std:.1f}" if self.seed_std else ""
        return f"{self.value:.1f}{spread} [{self.low:.1f}, {self.high:.1f}]"


def estimate(scores: Sequence[np.ndarray], less: np.ndarray | float = 0.0) -> Estimate:
    """Mean over seeds of (1 + R,) scores, less those of another method drawn alike."""
    by_seed_SR = 100 * (np.stack(scores) - less)
    mean_R = by_seed_SR.mean(0)
    low, high = np.nanpercentile(mean_R[1:], [2.5, 97.5])
    spread = float(by_seed_SR[:, 0].std(ddof=1)) if len(scores) > 1 else 0.0
    return Estimate(float(mean_R[0]), float(low), float(high), spread)


@dataclass(frozen=True)
class Store:
    """Finished results, WORK/results/METHOD/SET.json; `key` says what they depend on beside these names."""

    folder: Path

    def get(self, method: str, set_name: str, key: str = "") -> np.ndarray | None:
        """(U, C, C) counts, or None where there are none for this key."""
        path = self.folder / method / f"{set_name}.json"
        if not path.is_file():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return np.array(found["counts"]) if found["key"] == key else None

    def put(self, method: str, set_name: str, counts_UCC: np.ndarray, key: str = "", **about: object) -> None:
        path = self.folder / method / f"{set_name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        commit = provenance()["commit"]
        text = json.dumps({"key": key, "commit": commit, **about, "counts": counts_UCC.tolist()})
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    def all(self) -> dict[str, dict[str, dict]]:
        """Set -> method -> what was put."""
        found: dict[str, dict[str, dict]] = {}
        for path in sorted(self.folder.glob("*/*.json")):
            entry = json.loads(path.read_text(encoding="utf-8"))
            entry["counts"] = np.array(entry["counts"])
            found.setdefault(path.stem, {})[path.parent.name] = entry
        return found
