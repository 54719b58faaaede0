"""Class maps of whole scenes strip by strip, in memory that grows with their width and not with their area.

`CrossEarthSAR.predict` holds the scores of all classes for all pixels. Here scores exist for one row of
windows at a time; finished rows go back to the scene's own spacing and become classes of one byte, for
whoever takes them to write. Windows, their weights and the way back are those of `predict`, so the classes
are the same. The next row of windows is read while one is computed.

C bands, K classes, H W pixels of the scene, h rows of a strip, h w pixels of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.calibration import at_temperature, log_probabilities
from crossearth_sar.evaluation.scene import Scene, WorkingRows
from crossearth_sar.ground_scale import Between, interpolated, row_blocks
from crossearth_sar.model import CrossEarthSAR, ModelOutput, eval_mode
from crossearth_sar.sliding import window_scores, window_weights
from crossearth_sar.spacing import sliding_windows

BATCH_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Of the windows that run together: 4 of 128 x 128 on a CPU, 16 of 512 x 512 on a GPU. More is no faster."""

OnBatch = Callable[[ModelOutput | None, int], object]
"""Called with the output of some windows and their number; None for windows that hold nothing."""


@dataclass(frozen=True)
class Sliding:
    """How windows are run.

    taper: see `sliding.taper_weights`; False averages them. bf16: autocast; None: on GPUs.
    """

    taper: bool = True
    bf16: bool | None = None


@dataclass(frozen=True)
class Strip:
    """Finished rows of a map.

    classes: (h, W) uint8, 255 where nothing was measured. percent: (K + 1, h, W) uint8 where asked for: the
    probability of each class, and the entropy of all in percent of its maximum, log K; 255 likewise.
    """

    rows: slice
    classes: np.ndarray
    percent: np.ndarray | None


def predict_scene(
    model: CrossEarthSAR,
    scene: Scene,
    db_mean: Tensor,
    db_std: Tensor,
    *,
    how: Sliding = Sliding(),
    on_batch: OnBatch | None = None,
) -> np.ndarray:
    """(H, W) uint8: the classes that `model.predict` gives, 255 where nothing was measured; see `strips`."""
    classes_HW = np.empty(scene.size, np.uint8)
    for strip in strips(model, scene, db_mean, db_std, how=how, on_batch=on_batch):
        classes_HW[strip.rows] = strip.classes
    return classes_HW


@torch.no_grad()
def strips(
    model: CrossEarthSAR,
    scene: Scene,
    db_mean: Tensor,
    db_std: Tensor,
    *,
    how: Sliding = Sliding(),
    scores: bool = False,
    first_row: int = 0,
    on_batch: OnBatch | None = None,
) -> Iterator[Strip]:
    """The rows of the scene's map from `first_row` on, in order; the same rows whichever the first is.

    Each window is filled for itself where nothing was measured (`data.fill`); one without a measured pixel is
    left out. Where scene and model differ in ground spacing, measured pixels are averaged first, and scores
    are interpolated back. Held at its peak are about 3 K numbers for each pixel of one row of windows.

    Args:
        db_mean, db_std: (C,), statistics of the scene's domain: `scene.measure_scenes`.
        scores: whether strips have percents, at the model's temperature (`calibration.py`).

    Raises:
        InputError: for values that are not what they are declared to be, too many classes for a byte, a
            spacing too far from the model's, or a scene without a measured pixel.
    """
    config, device = model.config, next(model.parameters()).device
    require(config.num_classes <= IGNORE_INDEX, "num_classes", config.num_classes, "at most 255, for a byte")
    size = scene.working_size(config.pixel_m)
    needed = int(Between.of(scene.size[0], size[0], torch.tensor([first_row])).low[0])
    rows_of_windows = windows_below(model, scene, first_row)
    runner = _Runner(model, (db_mean, db_std), device, how, on_batch)
    sums = _Sums(config.num_classes, min(config.window, size[0]), size[1], device, needed)
    back = _WayBack(scene, size, model.temperature, first_row, scores)
    is_empty = first_row == 0
    with eval_mode(model), ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(scene.working_rows, rows_of_windows[0][0], size)
        for i, (rows, all_columns) in enumerate(rows_of_windows):
            image = ahead.result()
            if i + 1 < len(rows_of_windows):
                ahead = reader.submit(scene.working_rows, rows_of_windows[i + 1][0], size)
            yield from back.strips(sums.move_to(rows.start))
            back.know(image)
            for columns, scores_Khw in runner.scores(image, all_columns):
                is_empty = False
                sums.add(rows, columns, scores_Khw, taper=how.taper)
        if is_empty:
            raise InputError(
                f"{scene.raw.path} has no valid pixel",
                expected="at least one measured pixel",
                fix="leave this file out, or correct the nodata value",
            )
        yield from back.strips(sums.move_to(size[0]))


def windows_below(model: CrossEarthSAR, scene: Scene, first_row: int) -> list[tuple[slice, list[slice]]]:
    """The rows of windows that the map from `first_row` on needs, at the model's spacing, with columns."""
    config, size = model.config, scene.working_size(model.config.pixel_m)
    needed = int(Between.of(scene.size[0], size[0], torch.tensor([first_row])).low[0])
    windows = sliding_windows(*size, config.window, config.crop_stride)
    return [
        (rows, [columns for _, columns in group])
        for rows, group in groupby(windows, key=lambda window: window[0])
        if rows.stop > needed
    ]


class _Runner:
    """Windows through the model, as many together as the device takes."""

    def __init__(
        self,
        model: CrossEarthSAR,
        statistics: tuple[Tensor, Tensor],
        device: torch.device,
        how: Sliding,
        on_batch: OnBatch | None,
    ) -> None:
        self.model, self.device, self.on_batch = model, device, on_batch
        self.mean, self.std = (s[None].to(device) for s in statistics)
        self.bf16 = device.type == "cuda" if how.bf16 is None else how.bf16
        pixels = BATCH_PIXELS.get(device.type, BATCH_PIXELS["cpu"])
        self.batch = max(1, pixels // model.config.window**2)

    def scores(self, image: WorkingRows, all_columns: list[slice]) -> Iterator[tuple[slice, Tensor]]:
        """Columns and (K, h, w) scores of the windows that hold a measured pixel."""
        measured = [columns for columns in all_columns if image.valid[:, columns].any()]
        if self.on_batch is not None and len(measured) < len(all_columns):
            self.on_batch(None, len(all_columns) - len(measured))
        while measured:
            some, measured = measured[: self.batch], measured[self.batch :]
            windows = [
                fill_unmeasured(image.amplitude.numpy()[..., columns], image.valid[:, columns])
                for columns in some
            ]
            yield from zip(some, self._run(torch.from_numpy(np.stack(windows))), strict=True)

    def _run(self, windows_BChw: Tensor) -> Tensor:
        """(B, K, h, w) float32; in halves where the GPU's memory does not hold them."""
        count = len(windows_BChw)
        outputs: list[ModelOutput] = []
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                scores = window_scores(
                    self.model, self.model.require_decoder(), windows_BChw.to(self.device),
                    self.mean, self.std,
                    patch=self.model.config.backbone.size_multiple, on_window=outputs.append,
                )  # fmt: skip
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            self.batch = (count + 1) // 2
        else:
            if self.on_batch is not None:
                self.on_batch(outputs[0], count)
            return scores.float()
        return torch.cat([self._run(half) for half in windows_BChw.split(self.batch)])


class _Sums:
    """Weighted scores of the rows that windows still reach: `height` of them from `top` on."""

    def __init__(self, classes: int, height: int, width: int, device: torch.device, top: int) -> None:
        self.top = top
        self.scores_KhW = torch.zeros(classes, height, width, device=device)
        self.weight_hW = torch.zeros(height, width, device=device)

    def add(self, rows: slice, columns: slice, scores_Khw: Tensor, *, taper: bool) -> None:
        above = max(0, self.top - rows.start)  # rows that are done already, where a scene goes on
        weight_hw = window_weights(scores_Khw.shape[1], scores_Khw.shape[2], self.weight_hW, taper=taper)
        here = slice(rows.start + above - self.top, rows.stop - self.top)
        self.scores_KhW[:, here, columns] += scores_Khw[:, above:] * weight_hw[above:]
        self.weight_hW[here, columns] += weight_hw[above:]

    def move_to(self, top: int) -> tuple[int, Tensor]:
        """The first of the rows above `top`, and their scores (K, h, W), 0 where no window was."""
        first, done = self.top, max(0, min(top - self.top, len(self.weight_hW)))
        weight_hW = self.weight_hW[:done]
        scores_KhW = self.scores_KhW[:, :done] / torch.where(weight_hW > 0, weight_hW, 1)
        if done:
            for sums in (self.scores_KhW, self.weight_hW):
                sums.copy_(sums.roll(-done, dims=-2))
                sums[..., sums.shape[-2] - done :, :] = 0
            self.top = top
        return first, scores_KhW


class _WayBack:
    """From scores of finished working rows to classes of the scene's own rows."""

    def __init__(
        self, scene: Scene, size: tuple[int, int], temperature: float | None, first_row: int, scores: bool
    ) -> None:
        self.scene, self.size, self.temperature = scene, size, temperature
        self.next_row, self.with_percent = first_row, scores
        self.top, self.kept_KhW = 0, torch.empty(0)  # working rows that rows to come lie between
        self.valid_top, self.valid = first_row, np.empty((0, scene.size[1]), bool)

    def know(self, image: WorkingRows) -> None:
        """Keeps which of the scene's pixels are valid, of rows that were not there before."""
        known = self.valid_top + len(self.valid)
        assert image.own_rows.start <= known, "rows of windows leave nothing out"
        self.valid = np.concatenate([self.valid, image.own_valid[known - image.own_rows.start :]])

    def strips(self, finished: tuple[int, Tensor]) -> Iterator[Strip]:
        """Those that the finished working rows, with what was kept, make possible."""
        first, scores_KhW = finished
        if not scores_KhW.shape[1]:
            return
        if self.kept_KhW.numel():
            scores_KhW, first = torch.cat([self.kept_KhW, scores_KhW], 1), self.top
        below = Between.of(self.scene.size[0], self.size[0], torch.arange(self.scene.size[0]))
        end = first + scores_KhW.shape[1]
        stop = int((below.high < end).sum())  # `high` never falls
        for rows in row_blocks(slice(self.next_row, stop), self.scene.size[1]):
            low, high = int(below.low[rows.start]), int(below.high[rows.stop - 1]) + 1
            yield self._strip(rows, scores_KhW[:, low - first : high - first], low)
        self.next_row = stop
        self.top = end if stop == self.scene.size[0] else int(below.low[stop])
        self.kept_KhW = scores_KhW[:, self.top - first :].clone()

    def _strip(self, rows: slice, scores_KhW: Tensor, low: int) -> Strip:
        if self.size != self.scene.size:
            scores_KhW = interpolated(scores_KhW, self.scene.size, rows, low, self.size[0])
        count = rows.stop - rows.start
        valid, self.valid = self.valid[:count], self.valid[count:]
        self.valid_top = rows.stop
        classes = scores_KhW.argmax(0).to(torch.uint8).cpu().numpy()
        classes[~valid] = IGNORE_INDEX
        percent = None
        if self.with_percent:
            percent = percents(scores_KhW, self.temperature).cpu().numpy()
            percent[:, ~valid] = IGNORE_INDEX
        return Strip(rows, classes, percent)


def percents(scores_KhW: Tensor, temperature: float | None) -> Tensor:
    """Scores -> (K + 1, h, W) uint8: probabilities at the temperature, and their entropy, in percent."""
    p_KhW = at_temperature(log_probabilities(scores_KhW), temperature)
    entropy_hW = torch.special.entr(p_KhW).sum(0) / math.log(max(2, len(p_KhW)))
    return (100 * torch.cat([p_KhW, entropy_hW[None]])).round().to(torch.uint8)
