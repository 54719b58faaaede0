"""The endless training stream: sample number n is a function of (seed, n) alone.

So a run resumes by counting on, whatever the number of workers, and ranks share a batch by striding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import Dataset, Sampler, default_collate

from crossearth_sar.data.sample import Sample, SegmentationDataset
from crossearth_sar.data.views import View, view_of

T = TypeVar("T")


class TrainStream(Dataset[T], Generic[T]):
    """Draw n: epoch n // len, position n % len of that epoch's permutation, transformed with n's own seed.

    Args:
        transform: of a sample, or of a view of a large one, and a generator on the CPU.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        transform: Callable[[Sample | View, torch.Generator], T],
        seed: int,
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def index_of(self, draw: int) -> int:
        """Which image draw n shows."""
        epoch, position = divmod(draw, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(_mixed(self.seed, 1, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator)
        return int(self._order[position])

    def __getitem__(self, draw: int) -> T:
        generator = torch.Generator().manual_seed(_mixed(self.seed, 2, draw))
        index = self.index_of(draw)
        view = view_of(self.dataset, index)
        return self.transform(self.dataset[index] if view is None else view, generator)


def join_samples(samples: list[Sample]) -> dict[str, Any]:
    """The batch of some samples, a DataLoader's `collate_fn`.

    Where they differ in bands, as those of a mixture may, the bands of some are repeated in turn, as the
    model repeats those of all to three.
    """
    bands = max(len(sample["image"]) for sample in samples)
    return default_collate([_with_bands(sample, bands) for sample in samples])


class ShardedDraws(Sampler[list[int]]):
    """The draws of one rank, a batch a time: of step s's global batch, those with draw % ranks == rank."""

    def __init__(self, *, first_step: int, last_step: int, batch_size: int, rank: int, ranks: int) -> None:
        assert batch_size % ranks == 0, "the config has checked it"
        self.steps, self.batch_size = range(first_step, last_step), batch_size
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.batch_size
            yield list(range(start + self.rank, start + self.batch_size, self.ranks))


def _with_bands(sample: Sample, bands: int) -> Sample:
    own = len(sample["image"])
    if own == bands:
        return sample
    order = [band % own for band in range(bands)]
    joined = cast(Sample, {**sample, "image": sample["image"][order]})
    if "db_mean" in sample and "db_std" in sample:
        joined |= {"db_mean": sample["db_mean"][order], "db_std": sample["db_std"][order]}
    return joined


def _mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that neighbouring runs and draws share no stream."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state ^= number + 0x9E3779B97F4A7C15 + (state << 6) + (state >> 2)
        state = (state * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
