"""Class maps of whole scenes, in memory that grows with their width and not with their area.

`CrossEarthSAR.predict` holds the scores of all classes for all pixels. Here a scene stays as its file has it;
amplitudes and scores exist for one row of windows at a time, and finished rows become classes of one byte.
Windows, their order and their average are those of `predict`, so the classes are the same. What this is not:
a reader that leaves the scene on disk.

B batch, C bands (K in scores: classes), H W pixels, h pixels of a row of windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.files.amplitude import ValueKind, to_amplitude
from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.files.readers import RawImage
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.decibels import DomainStatistics
from crossearth_sar.model import CrossEarthSAR, ModelOutput, eval_mode
from crossearth_sar.spacing import sliding_windows

BLOCK_PIXELS = 1 << 22
"""So many pixels are turned into amplitudes at once where no window asks for them."""


@dataclass(frozen=True)
class Scene:
    """A file's numbers and what they are; amplitudes come rows by rows."""

    raw: RawImage
    values: ValueKind

    @property
    def size(self) -> tuple[int, int]:
        return self.raw.valid.shape[0], self.raw.valid.shape[1]

    def amplitude(self, rows: slice) -> Tensor:
        """(C, h, W) float32 linear amplitude, 0 where nothing was measured; InputError as `to_amplitude`."""
        name = f"{self.raw.path}, rows {rows.start} to {rows.stop - 1}"
        values, valid = self.raw.values[:, rows], self.raw.valid[rows]
        return torch.from_numpy(to_amplitude(values, self.values, valid=valid, name=name))

    def blocks(self) -> Iterator[Tensor]:
        """The amplitudes of all rows, some at a time."""
        height, width = self.size
        edges = [*range(0, height, max(1, BLOCK_PIXELS // width)), height]
        return (self.amplitude(slice(top, bottom)) for top, bottom in pairwise(edges))


def measure_scenes(scenes: Iterable[Scene]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in dB of the scenes together, (C,) each: `decibels.DomainStatistics`.

    Raises:
        InputError: there is no scene, they differ in their number of bands, or a value is not what it is
            declared to be.
    """
    statistics = DomainStatistics()
    for scene in scenes:
        for block in scene.blocks():
            statistics.add(block, scene.raw.path)
        del scene  # or it would still be there while the next one is read
    return statistics.result()


@torch.no_grad()
def predict_scene(
    model: CrossEarthSAR,
    scene: Scene,
    db_mean: Tensor,
    db_std: Tensor,
    *,
    on_window: Callable[[ModelOutput], object] | None = None,
) -> np.ndarray:
    """(H, W) uint8: the classes that `model.predict` gives, 255 where nothing was measured.

    Each window is filled for itself there (`data.fill`); one without a measured pixel is left out. Besides
    the scene and the result it holds, at its peak, about 2 K numbers for each pixel of one row of windows.

    Args:
        db_mean, db_std: (C,), statistics of the scene's domain: `measure_scenes`.
        on_window: called with each window's output.

    Raises:
        InputError: for values that are not what they are declared to be, or too many classes for a byte.
    """
    config, device = model.config, next(model.parameters()).device
    require(config.num_classes <= IGNORE_INDEX, "num_classes", config.num_classes, "at most 255, for a byte")
    db_mean, db_std = db_mean[None].to(device), db_std[None].to(device)
    (height, width), valid_HW = scene.size, scene.raw.valid
    classes_HW = np.empty((height, width), np.uint8)
    strip = _Strip(config.num_classes, min(config.crop_size, height), width, device)
    with eval_mode(model):
        windows = sliding_windows(height, width, config.crop_size, config.crop_stride)
        for rows, row_of_windows in groupby(windows, key=lambda window: window[0]):
            strip.move_to(rows.start, classes_HW)
            image_ChW = scene.amplitude(rows).numpy()
            for _, columns in row_of_windows:
                valid_hw = valid_HW[rows, columns]
                if valid_hw.any():
                    window = torch.from_numpy(fill_unmeasured(image_ChW[..., columns], valid_hw))[None]
                    scores = _window_scores(model, window.to(device), db_mean, db_std, on_window)
                    strip.add(columns, scores)
        strip.move_to(height, classes_HW)
    for top in range(0, height, config.crop_size):  # in parts, for the negation is a copy
        rows = slice(top, top + config.crop_size)
        classes_HW[rows][~valid_HW[rows]] = IGNORE_INDEX
    return classes_HW


class _Strip:
    """Summed scores of the rows that windows still reach: rows `top` to `top + height` of the scene."""

    def __init__(self, classes: int, height: int, width: int, device: torch.device) -> None:
        self.top = 0
        self.scores_KhW = torch.zeros(classes, height, width, device=device)
        self.hits_hW = torch.zeros(height, width, device=device)

    def add(self, columns: slice, scores_Khw: Tensor) -> None:
        self.scores_KhW[..., columns] += scores_Khw
        self.hits_hW[:, columns] += 1

    def move_to(self, top: int, classes_HW: np.ndarray) -> None:
        """Writes the classes of the rows above `top`, and makes room for as many below."""
        done = min(top - self.top, len(self.hits_hW))
        if done:
            finished = (self.scores_KhW[:, :done] / self.hits_hW[:done]).argmax(0)
            classes_HW[self.top : self.top + done] = finished.to(torch.uint8).cpu().numpy()
            for sums in (self.scores_KhW, self.hits_hW):
                sums.copy_(sums.roll(-done, dims=-2))
                sums[..., sums.shape[-2] - done :, :] = 0
        self.top = top


def _window_scores(
    model: CrossEarthSAR,
    window_BChw: Tensor,
    db_mean: Tensor,
    db_std: Tensor,
    on_window: Callable[[ModelOutput], object] | None,
) -> Tensor:
    """(K, h, w) scores of one window, which is padded to whole patches as `predict` does it."""
    height, width = window_BChw.shape[-2:]
    pad_down, pad_right = (-side % model.config.vit.patch_size for side in (height, width))
    padded = F.pad(window_BChw, (0, pad_right, 0, pad_down), mode="replicate")
    output = model(padded, db_mean, db_std)
    if on_window is not None:
        on_window(output)
    size = (padded.shape[-2], padded.shape[-1])
    return model.decoder.semantic_scores(output.decoder, size)[0, :, :height, :width]
