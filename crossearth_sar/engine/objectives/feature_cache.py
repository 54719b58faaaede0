"""The frozen backbone's output of each training image, kept in memory: the backbone runs once an image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossearth_sar.data.sample import Sample
from crossearth_sar.data.stream import TrainStream
from crossearth_sar.errors import InputError

logger = logging.getLogger("crossearth_sar")


class FeatureCache(Dataset[dict[str, Any]]):
    """Draw n: the feature maps and the mask of the image that the stream shows then. In one process.

    Args:
        stream: draws without augmentation, the same of an image each time.
        features: a sample -> the decoder's inputs, (D, h, w) each, on the host.
        limit_gb: an InputError where all images would take more.
    """

    def __init__(
        self, stream: TrainStream[Sample], features: Callable[[Sample], list[Tensor]], limit_gb: float
    ) -> None:
        self.stream, self.features, self.limit_gb = stream, features, limit_gb
        self._kept: dict[int, dict[str, Any]] = {}

    def __getitem__(self, draw: int) -> dict[str, Any]:
        index = self.stream.index_of(draw)
        if index not in self._kept:
            sample = self.stream[draw]
            maps = self.features(sample)
            if not self._kept:
                self._check_size(maps)
            self._kept[index] = {"maps": maps, "mask": sample["mask"]}
        return self._kept[index]

    def _check_size(self, maps: list[Tensor]) -> None:
        images, each = len(self.stream.dataset), sum(m.numel() * m.element_size() for m in maps)
        total_gb = images * each / 1e9
        logger.info("feature cache: %d images of %.1f MB, %.2f GB", images, each / 1e6, total_gb)
        if total_gb > self.limit_gb:
            raise InputError(
                "the features of all training images do not fit the cache",
                got=f"{total_gb:.1f} GB",
                expected=f"at most cache_limit_gb = {self.limit_gb}",
                fix="--set cache_features=false, or a higher limit if the machine has the memory",
            )


def join_features(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of what the cache gives: maps level by level, masks."""
    levels = zip(*(entry["maps"] for entry in entries), strict=True)
    return {
        "maps": [torch.stack(level) for level in levels],
        "mask": torch.stack([entry["mask"] for entry in entries]),
    }
