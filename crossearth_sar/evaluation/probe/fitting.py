"""Probes fitted on the labelled images of each draw, from cells that are encoded once.

D features, N cells, K classes that the labels of a draw show, C classes of the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossearth_sar.data.domain import Domain
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.evaluation.probe.cells import cell_labels, encode, working_sample
from crossearth_sar.evaluation.probe.encoder import Encoder
from crossearth_sar.evaluation.probe.knn import NearestNeighbours, fit_nearest
from crossearth_sar.evaluation.probe.linear import LinearProbe, fit_linear
from crossearth_sar.evaluation.probe.subsets import Labels, drawn_order, image_counts

CELLS = 50_000
"""A probe is fitted on at most so many cells, drawn at random from those of its images."""

CELLS_AN_IMAGE = 4096
"""And of one image at most so many are kept; fewer where there are many images."""

OnImage = Callable[[], object]


@dataclass(frozen=True)
class Draw:
    """labels: as it was asked for. images: which of the domain, in the order that `seed` decided."""

    labels: str
    seed: int
    images: tuple[int, ...]


@dataclass(frozen=True)
class Fitted:
    """A probe whose `scores` of (N, D) features are (N, K), of the classes `present` of the domain."""

    method: str
    draw: Draw
    present: Tensor
    probe: LinearProbe | NearestNeighbours


@dataclass
class LabelledCells:
    """Image of the domain -> (N, D) features and (N, C) shares of its labelled cells."""

    features: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[int, Tensor] = field(default_factory=dict)

    def of(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Those of a draw's images, at most CELLS."""
        features = torch.cat([self.features[index] for index in draw.images])
        shares = torch.cat([self.shares[index] for index in draw.images])
        kept = _some(len(features), CELLS, draw.seed)
        return features[kept], shares[kept]


def draws_of(train: Domain, labels: Sequence[Labels], seeds: Sequence[int]) -> list[Draw]:
    """Every number of images with every seed, all images once; errors as `subsets` says."""
    counts = image_counts(labels, len(train))
    known: dict[int, frozenset[int]] = {}

    def classes_of(index: int) -> frozenset[int]:
        if index not in known:
            known[index] = frozenset(train[index]["mask"].unique().tolist()) - {IGNORE_INDEX}
        return known[index]

    orders = {seed: drawn_order(len(train), min(counts.values()), seed, classes_of) for seed in seeds}
    return [
        Draw(asked, seed, tuple(orders[seed][:count]))
        for asked, count in counts.items()
        for seed in (seeds if count < len(train) else seeds[:1])
    ]


def encode_labelled(
    encoders: Mapping[str, Encoder], train: Domain, draws: Sequence[Draw], on_image: OnImage
) -> dict[str, LabelledCells]:
    """Cells of every image that a draw wants, by encoder; each image is read once."""
    wanted = sorted({index for draw in draws for index in draw.images})
    most = max(len(draw.images) for draw in draws)
    limit = min(CELLS_AN_IMAGE, max(16, 4 * CELLS // most))
    found = {name: LabelledCells() for name in encoders}
    for index in wanted:
        sample = train[index]
        for name, encoder in encoders.items():
            seen = working_sample(encoder, sample)
            windows = encode(name, encoder, seen, tiles=True)
            features_ND = torch.cat([window.cells_Dhw.flatten(1).T for window in windows])
            shares_NC = torch.cat([cell_labels(w, seen["mask"], len(train.classes)) for w in windows])
            labelled = shares_NC.sum(1).nonzero()[:, 0]
            kept = labelled[_some(len(labelled), limit, index)]
            found[name].features[index], found[name].shares[index] = features_ND[kept], shares_NC[kept]
        on_image()
    return found


def fit(method: str, draw: Draw, cells: LabelledCells) -> Fitted:
    """«linear» or «knn» on the cells of one draw."""
    features_ND, shares_NC = cells.of(draw)
    present = (shares_NC.sum(0) > 0).nonzero()[:, 0]
    shares_NK = shares_NC[:, present]
    fitted = fit_linear if method == "linear" else fit_nearest
    return Fitted(method, draw, present, fitted(features_ND, shares_NK))


def _some(length: int, count: int, seed: int) -> Tensor:
    """Indices of at most `count` of `length`, drawn without replacement."""
    if length <= count:
        return torch.arange(length)
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count]
