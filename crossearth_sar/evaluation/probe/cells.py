"""From a sample to cells: features of each, and what its labels say; and from scores of cells to pixels.

An image larger than the encoder's window is seen in parts. Where several maps are given, a cell is one of the
finest; the others are interpolated to it and stand beside.

C bands, H W pixels at the encoder's spacing, D features, h w cells of a window, N cells, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.data.working_scale import at_working_scale
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.probe.encoder import Encoder
from crossearth_sar.ground_scale import interpolated
from crossearth_sar.model import eval_mode
from crossearth_sar.network_input import statistics_of
from crossearth_sar.sliding import window_weights
from crossearth_sar.spacing import sliding_windows

Score = Callable[[Tensor], Tensor]
"""(N, D) features -> (N, K) scores."""


@dataclass(frozen=True)
class Window:
    """A part of an image as the encoder sees it: its place, its sides with padding, (D, h, w) features."""

    rows: slice
    columns: slice
    padded: tuple[int, int]
    cells_Dhw: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.cells_Dhw.shape[1], self.cells_Dhw.shape[2]


def joined_maps(name: str, found: Tensor | Sequence[Tensor], batch: int) -> Tensor:
    """(B, D, h, w) of the one or more maps that an encoder gave.

    Raises:
        InputError: they are no maps of this batch.
    """
    maps = [found] if isinstance(found, Tensor) else list(found)
    shapes = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
    if not maps or not all(isinstance(m, Tensor) and m.ndim == 4 and len(m) == batch for m in maps):
        raise InputError(
            f"encoder {name!r} gives no feature maps",
            got=str(shapes),
            expected=f"one or more tensors ({batch}, D, h, w)",
            fix="patch tokens become a map by transposing and unflattening them",
        )
    finest = max((m.shape[-2:] for m in maps), key=lambda size: size[0] * size[1])
    brought = [
        m.float() if m.shape[-2:] == finest else F.interpolate(m.float(), finest, mode="bilinear")
        for m in maps
    ]
    return torch.cat(brought, 1)


def encode(name: str, encoder: Encoder, sample: Sample, *, tiles: bool = False) -> list[Window]:
    """The windows of a sample that is at the encoder's spacing already, features on the CPU.

    Args:
        name: of the encoder, for messages.
        tiles: windows side by side, for training, in place of overlapping ones.

    Raises:
        InputError: the encoder gives no maps, or a value that is not finite.
    """
    image_1CHW = sample["image"][None].to(encoder.device)
    mean, std = statistics_of(image_1CHW, sample.get("db_mean"), sample.get("db_std"))
    mean, std = (s.to(encoder.device).reshape(1, -1) for s in (mean, std))
    found = []
    height, width = image_1CHW.shape[-2:]
    step = encoder.window if tiles else encoder.stride
    for rows, columns in sliding_windows(height, width, encoder.window, step):
        window = padded(image_1CHW[..., rows, columns], encoder.multiple)
        with torch.no_grad(), _in_eval(encoder):
            cells = joined_maps(name, encoder.maps(window, mean, std), 1)[0].cpu()
        if not bool(torch.isfinite(cells).all()):
            raise InputError(
                f"encoder {name!r} gives values that are not finite on {sample['name']!r}",
                got=f"{int((~torch.isfinite(cells)).sum())} of {cells.numel()} features",
                expected="finite features; its input is linear amplitude, which may be 0",
            )
        found.append(Window(rows, columns, (window.shape[-2], window.shape[-1]), cells))
    return found


def padded(image_BCHW: Tensor, multiple: int) -> Tensor:
    """Whole multiples of pixels down and to the right, by the last ones."""
    down, right = (-side % multiple for side in image_BCHW.shape[-2:])
    return F.pad(image_BCHW, (0, right, 0, down), mode="replicate")


def working_sample(encoder: Encoder, sample: Sample) -> Sample:
    """The sample at the encoder's ground spacing, as in training."""
    return at_working_scale(sample, encoder.pixel_m)


def cell_labels(window: Window, mask_HW: Tensor, classes: int) -> Tensor:
    """(h w, K) share of each cell's pixels that are labelled so; rows of unlabelled cells are 0."""
    mask = mask_HW[window.rows, window.columns]
    down, right = (side - own for side, own in zip(window.padded, mask.shape, strict=True))
    mask = F.pad(mask, (0, right, 0, down), value=IGNORE_INDEX)
    is_class = mask[None] == torch.arange(classes)[:, None, None]
    shares_Khw = F.adaptive_avg_pool2d(is_class.float(), window.grid)
    return shares_Khw.flatten(1).T


def pixel_scores(windows: list[Window], size: tuple[int, int], score: Score) -> Tensor:
    """(K, H, W): scores of cells, interpolated to pixels, windows faded into each other as in prediction."""
    total, weight_HW = None, torch.zeros(size)
    for window in windows:
        cells_ND = window.cells_Dhw.flatten(1).T
        scores_Khw = score(cells_ND).T.unflatten(1, window.grid)
        part = interpolated(scores_Khw, window.padded)
        height, width = (s.stop - s.start for s in (window.rows, window.columns))
        weight = window_weights(height, width, weight_HW, taper=len(windows) > 1)
        if total is None:
            total = part.new_zeros(len(part), *size)
        total[:, window.rows, window.columns] += part[:, :height, :width] * weight
        weight_HW[window.rows, window.columns] += weight
    assert total is not None, "an image has a window"
    return total / weight_HW


def _in_eval(encoder: Encoder) -> AbstractContextManager[None]:
    return nullcontext() if encoder.module is None else eval_mode(encoder.module)
