"""Scenes: a file's numbers as amplitudes, rows by rows, at a model's ground spacing; and dB statistics.

A scene stays on disk where its file lets it (`data/files/on_disk.py`); `scene_strips.py` makes maps of it.

C bands, H W pixels, h rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossearth_sar.data.domain_statistics import warn_uneven
from crossearth_sar.data.files.amplitude import ValueKind, to_amplitude
from crossearth_sar.data.files.on_disk import ImageOnDisk
from crossearth_sar.data.files.readers import RawImage
from crossearth_sar.decibels import DomainStatistics
from crossearth_sar.ground_scale import any_valid_bins, average_bins, bins_of, row_blocks, working_size

BLOCK_PIXELS = 1 << 22
"""So many pixels are turned into amplitudes at once where no window asks for them."""


@dataclass(frozen=True)
class Scene:
    """A file's numbers and what they are; amplitudes come rows by rows.

    pixel_m: metres per pixel on the ground; None takes what the file's tags say.
    clip_negative: as in `amplitude.to_amplitude`.
    """

    raw: RawImage | ImageOnDisk
    values: ValueKind
    pixel_m: float | None = None
    clip_negative: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.raw.size

    def amplitude(self, rows: slice) -> tuple[Tensor, np.ndarray]:
        """(C, h, W) float32 linear amplitude, 0 where nothing was measured, and (h, W) bool: where it was.

        Raises:
            InputError: as `to_amplitude`, and where the file cannot be read.
        """
        name = f"{self.raw.path}, rows {rows.start} to {rows.stop - 1}"
        values, valid = self.raw.rows(rows)
        clip = self.clip_negative
        amplitude = to_amplitude(values, self.values, valid=valid, clip_negative=clip, name=name)
        return torch.from_numpy(amplitude), valid

    def working_size(self, pixel_m: float | None) -> tuple[int, int]:
        """(H, W) at `pixel_m` metres per pixel; its own where either spacing is not known."""
        return working_size(self.size, self.raw.pixel_m if self.pixel_m is None else self.pixel_m, pixel_m)

    def working_rows(self, rows: slice, size: tuple[int, int]) -> WorkingRows:
        """Some rows of the scene at `size`, pixels valid where any of theirs is."""
        if size == self.size:
            amplitude, valid = self.amplitude(rows)
            return WorkingRows(amplitude, valid, rows, valid)
        all_rows, columns = bins_of(self.size, size)
        own_rows, bins = all_rows.part(rows)
        own, own_valid = self.amplitude(own_rows)
        is_valid = torch.from_numpy(own_valid)
        amplitude = average_bins(own, bins, columns, is_valid)
        return WorkingRows(amplitude, any_valid_bins(is_valid, bins, columns).numpy(), own_rows, own_valid)

    def blocks(self, pixel_m: float | None = None) -> Iterator[Tensor]:
        """The amplitudes (C, h, W) of all rows at `pixel_m` metres per pixel, some at a time."""
        size = self.working_size(pixel_m)
        width = max(size[1], self.size[0] * self.size[1] // size[0])
        parts = row_blocks(slice(0, size[0]), width, BLOCK_PIXELS)
        return (self.working_rows(rows, size).amplitude for rows in parts)


@dataclass(frozen=True)
class WorkingRows:
    """amplitude (C, h, W), 0 where not `valid`, (h, W) bool; the scene's own rows they were made of."""

    amplitude: Tensor
    valid: np.ndarray
    own_rows: slice
    own_valid: np.ndarray


def measure_scenes(scenes: Iterable[Scene], pixel_m: float | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in dB of the scenes together, (C,) each: `decibels.DomainStatistics`.

    A warning is logged where their own means lie more than `decibels.UNEVEN_DB` apart.

    Args:
        pixel_m: ground spacing of the model that they are for; scenes that know theirs are brought to it.

    Raises:
        InputError: there is no scene, they differ in their number of bands, a value is not what it is
            declared to be, or a spacing is too far from the model's.
    """
    statistics = DomainStatistics()
    for scene in scenes:
        for block in scene.blocks(pixel_m):
            statistics.add(block, scene.raw.path)
        del scene  # or it would still be there while the next one is read
    by_name = "--normalize domain --normalize-by {}".format
    warn_uneven(statistics, "the images", "--normalize image", lambda parts: by_name(" ".join(parts)))
    return statistics.result()
