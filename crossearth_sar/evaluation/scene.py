"""Class maps of whole scenes, in memory that grows with their width and not with their area.

`CrossEarthSAR.predict` holds the scores of all classes for all pixels. Here a scene stays as its file has it;
amplitudes and scores exist for one row of windows at a time, and finished rows become classes of one byte.
Windows lie on the scene as the model's ground spacing has it; that, their order and their average are those
of `predict`, so the classes are the same. What this is not: a reader that leaves the scene on disk.

B batch, C bands (K in scores: classes), H W pixels, h pixels of a row of windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.domain_statistics import warn_uneven
from crossearth_sar.data.files.amplitude import ValueKind, to_amplitude
from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.files.readers import RawImage
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.decibels import DomainStatistics
from crossearth_sar.evaluation.calibration import at_temperature, log_probabilities
from crossearth_sar.ground_scale import any_valid_bins, average_bins, bins_of, centre_pixels, working_size
from crossearth_sar.model import CrossEarthSAR, ModelOutput, eval_mode
from crossearth_sar.spacing import sliding_windows

BLOCK_PIXELS = 1 << 22
"""So many pixels are turned into amplitudes at once where no window asks for them."""


@dataclass(frozen=True)
class Scene:
    """A file's numbers and what they are; amplitudes come rows by rows.

    pixel_m: metres per pixel on the ground; None takes what the file's tags say.
    clip_negative: as in `amplitude.to_amplitude`.
    """

    raw: RawImage
    values: ValueKind
    pixel_m: float | None = None
    clip_negative: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.raw.valid.shape[0], self.raw.valid.shape[1]

    def amplitude(self, rows: slice) -> Tensor:
        """(C, h, W) float32 linear amplitude, 0 where nothing was measured; InputError as `to_amplitude`."""
        name = f"{self.raw.path}, rows {rows.start} to {rows.stop - 1}"
        values, valid = self.raw.values[:, rows], self.raw.valid[rows]
        clip = self.clip_negative
        return torch.from_numpy(to_amplitude(values, self.values, valid=valid, clip_negative=clip, name=name))

    def working_size(self, pixel_m: float | None) -> tuple[int, int]:
        """(H, W) at `pixel_m` metres per pixel; its own where either spacing is not known."""
        return working_size(self.size, self.raw.pixel_m if self.pixel_m is None else self.pixel_m, pixel_m)

    def working_rows(self, rows: slice, size: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
        """Some rows of the scene at `size`: amplitude (C, h, W), 0 where not valid, and (h, W) bool."""
        if size == self.size:
            return self.amplitude(rows), self.raw.valid[rows]
        all_rows, columns = bins_of(self.size, size)
        own_rows, bins = all_rows.part(rows)
        valid = torch.from_numpy(self.raw.valid[own_rows])
        amplitude = average_bins(self.amplitude(own_rows), bins, columns, valid)
        return amplitude, any_valid_bins(valid, bins, columns).numpy()

    def blocks(self, pixel_m: float | None = None) -> Iterator[Tensor]:
        """The amplitudes of all rows at `pixel_m` metres per pixel, some at a time."""
        size = self.working_size(pixel_m)
        height, width = size[0], max(size[1], self.size[0] * self.size[1] // size[0])
        edges = [*range(0, height, max(1, BLOCK_PIXELS // width)), height]
        return (self.working_rows(slice(top, bottom), size)[0] for top, bottom in pairwise(edges))


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


def predict_scene(
    model: CrossEarthSAR,
    scene: Scene,
    db_mean: Tensor,
    db_std: Tensor,
    *,
    on_window: Callable[[ModelOutput], object] | None = None,
) -> np.ndarray:
    """(H, W) uint8: the classes that `model.predict` gives, 255 where nothing was measured.

    Each window is filled for itself there (`data.fill`); one without a measured pixel is left out. Where
    scene and model differ in ground spacing, measured pixels are averaged first, and the map comes back on
    the scene's pixels. Besides the scene and the result it holds, at its peak, about 2 K numbers for each
    pixel of one row of windows.

    Args:
        db_mean, db_std: (C,), statistics of the scene's domain: `measure_scenes`.
        on_window: called with each window's output.

    Raises:
        InputError: for values that are not what they are declared to be, too many classes for a byte, or a
            spacing too far from the model's.
    """
    return _predict(model, scene, db_mean, db_std, on_window, confidence=False)[0]


def predict_scene_confidence(
    model: CrossEarthSAR,
    scene: Scene,
    db_mean: Tensor,
    db_std: Tensor,
    *,
    on_window: Callable[[ModelOutput], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`predict_scene`, and (H, W) uint8: the probability of each pixel's class in percent, 255 not measured.

    Probabilities are at the model's temperature, see `calibration.py`.
    """
    classes_HW, percent_HW = _predict(model, scene, db_mean, db_std, on_window, confidence=True)
    assert percent_HW is not None, "asked for"
    return classes_HW, percent_HW


@torch.no_grad()
def _predict(
    model: CrossEarthSAR,
    scene: Scene,
    db_mean: Tensor,
    db_std: Tensor,
    on_window: Callable[[ModelOutput], object] | None,
    *,
    confidence: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) classes, and percents where they are asked for."""
    config, device = model.config, next(model.parameters()).device
    require(config.num_classes <= IGNORE_INDEX, "num_classes", config.num_classes, "at most 255, for a byte")
    db_mean, db_std = db_mean[None].to(device), db_std[None].to(device)
    size = height, width = scene.working_size(config.pixel_m)
    classes_HW = np.empty(size, np.uint8)
    percent_HW = np.empty(size, np.uint8) if confidence else None
    strip = _Strip(config.num_classes, min(config.crop_size, height), width, device)
    strip.temperature = model.temperature
    with eval_mode(model):
        windows = sliding_windows(height, width, config.crop_size, config.crop_stride)
        for rows, row_of_windows in groupby(windows, key=lambda window: window[0]):
            strip.move_to(rows.start, classes_HW, percent_HW)
            image_ChW, valid_hW = scene.working_rows(rows, size)
            for _, columns in row_of_windows:
                valid_hw = valid_hW[:, columns]
                if valid_hw.any():
                    filled = fill_unmeasured(image_ChW.numpy()[..., columns], valid_hw)
                    window = torch.from_numpy(filled)[None]
                    scores = _window_scores(model, window.to(device), db_mean, db_std, on_window)
                    strip.add(columns, scores)
        strip.move_to(height, classes_HW, percent_HW)
    own = partial(_own_pixels, scene=scene, rows_at_once=config.crop_size)
    return own(classes_HW), None if percent_HW is None else own(percent_HW)


def _own_pixels(map_HW: np.ndarray, scene: Scene, rows_at_once: int) -> np.ndarray:
    """A map at the model's spacing on the scene's pixels, 255 where nothing was measured."""
    own_HW = centre_pixels(torch.from_numpy(map_HW), scene.size).numpy()
    for top in range(0, scene.size[0], rows_at_once):  # in parts, for the negation is a copy
        rows = slice(top, top + rows_at_once)
        own_HW[rows][~scene.raw.valid[rows]] = IGNORE_INDEX
    return own_HW


class _Strip:
    """Summed scores of the rows that windows still reach: rows `top` to `top + height` of the scene."""

    def __init__(self, classes: int, height: int, width: int, device: torch.device) -> None:
        self.top = 0
        self.scores_KhW = torch.zeros(classes, height, width, device=device)
        self.hits_hW = torch.zeros(height, width, device=device)
        self.temperature: float | None = None

    def add(self, columns: slice, scores_Khw: Tensor) -> None:
        self.scores_KhW[..., columns] += scores_Khw
        self.hits_hW[:, columns] += 1

    def move_to(self, top: int, classes_HW: np.ndarray, percent_HW: np.ndarray | None) -> None:
        """Writes the classes of the rows above `top`, and how sure they are; makes room for as many below."""
        done = min(top - self.top, len(self.hits_hW))
        if done:
            scores_KhW = self.scores_KhW[:, :done] / self.hits_hW[:done]
            rows = slice(self.top, self.top + done)
            classes_HW[rows] = scores_KhW.argmax(0).to(torch.uint8).cpu().numpy()
            if percent_HW is not None:
                sure_hW = at_temperature(log_probabilities(scores_KhW), self.temperature).amax(0)
                percent_HW[rows] = (100 * sure_hW).nan_to_num().round().to(torch.uint8).cpu().numpy()
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
