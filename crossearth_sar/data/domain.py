"""A domain: images of one sensor and region, simulated or read from files, with their statistics in dB.

Normalising each domain by its own statistics needs no label of it, and takes the calibration out of the gap.

C bands, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.folder import FolderConfig, FolderScenes
from crossearth_sar.data.sample import Sample, SegmentationDataset
from crossearth_sar.data.synthetic import SimulatedScenes, SimulatorConfig
from crossearth_sar.model import to_db

MEASURED_SAMPLES = 32
"""Evenly spaced samples whose pixels give a domain's mean and standard deviation."""


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """name: for reports. Exactly one of simulated and folder. normalize: "domain" uses the statistics of
    the whole domain, "image" those of each image."""

    name: str
    simulated: SimulatorConfig | None = None
    folder: FolderConfig | None = None
    normalize: str = "domain"

    def __post_init__(self) -> None:
        require(
            (self.simulated is None) != (self.folder is None),
            f"domain {self.name!r}",
            "both or neither of simulated and folder",
            "exactly one of them",
        )
        require(self.normalize in ("domain", "image"), "normalize", self.normalize, "'domain' or 'image'")


class Domain:
    """A SegmentationDataset whose samples carry db_mean and db_std, (C,) each."""

    def __init__(self, config: DomainConfig, dataset: SegmentationDataset) -> None:
        self.name, self.dataset, self.classes = config.name, dataset, dataset.classes
        self.db_mean, self.db_std = (None, None)
        if config.normalize == "domain":
            self.db_mean, self.db_std = measure_db(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        mean, std = self.db_mean, self.db_std
        if mean is None or std is None:
            mean, std = _mean_std([sample["image"]])
        return {**sample, "db_mean": mean, "db_std": std}


def open_domain(config: DomainConfig, root: str = "") -> Domain:
    """Opens and checks the domain; a relative folder root is taken below `root`.

    Raises:
        InputError: for anything wrong with the files that can be known early.
    """
    if config.simulated is not None:
        return Domain(config, SimulatedScenes(config.simulated))
    assert config.folder is not None, "DomainConfig checks it"
    return Domain(config, FolderScenes(replace(config.folder, root=str(Path(root) / config.folder.root))))


def measure_db(dataset: SegmentationDataset, max_samples: int = MEASURED_SAMPLES) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (C,) each, of 20 log10(amplitude) over pixels with amplitude above 0."""
    count = min(len(dataset), max_samples)
    chosen = [round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)]
    return _mean_std([dataset[i]["image"] for i in chosen])


def _mean_std(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    bands = images[0].shape[0]
    count, total, squares = (torch.zeros(bands, dtype=torch.float64) for _ in range(3))
    for image in images:
        decibels, lit = to_db(image).double().flatten(1), (image > 0).flatten(1)
        count += lit.sum(1)
        total += (decibels * lit).sum(1)
        squares += (decibels.square() * lit).sum(1)
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=1e-6)
    return mean.float(), variance.sqrt().float()
