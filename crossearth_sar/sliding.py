"""Windows over an image that is larger than the crop, and how their scores become those of one image.

What a network says at a window's edge, where it sees one side alone, is its worst. Averaged with equal weight
it shows: classes change at the edges of windows several times as often as elsewhere. So a window's weight
falls towards its edges, and where windows overlap one fades into the next.

MONAI's sliding_window_inference computes the same. It is not used: it would be a large package beside torch
for these lines, and gives whole images, where `evaluation/scene_strips.py` needs rows by rows.

B batch, C bands, K classes, H W pixels, h w pixels of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.decoder import Decoder
from crossearth_sar.model_output import ModelOutput
from crossearth_sar.spacing import sliding_windows

Forward = Callable[[Tensor, Tensor, Tensor], ModelOutput]
"""Windows and dB statistics in, logits and routing out."""

OnWindow = Callable[[ModelOutput], object]


@lru_cache(maxsize=8)
def taper_weights(height: int, width: int) -> Tensor:
    """(h, w) float32, a product of Hann's sin^2 of both axes: near 1 in the middle, above 0 at the edges."""
    axes = (torch.sin(torch.pi * (torch.arange(n) + 0.5) / n).square() for n in (height, width))
    down, across = axes
    return down[:, None] * across


def window_weights(height: int, width: int, like: Tensor, *, taper: bool) -> Tensor:
    """(h, w), of `like`'s device: `taper_weights`, or ones."""
    return taper_weights(height, width).to(like.device) if taper else like.new_ones(height, width)


def window_scores(
    forward: Forward,
    decoder: Decoder,
    window_BChw: Tensor,
    db_mean: Tensor,
    db_std: Tensor,
    *,
    patch: int,
    on_window: OnWindow | None = None,
) -> Tensor:
    """(B, K, h, w) scores of windows of any size, which are padded to whole patches."""
    height, width = window_BChw.shape[-2:]
    pad_down, pad_right = (-side % patch for side in (height, width))
    padded = F.pad(window_BChw, (0, pad_right, 0, pad_down), mode="replicate")
    output = forward(padded, db_mean, db_std)
    if on_window is not None:
        on_window(output)
    size = (padded.shape[-2], padded.shape[-1])
    return decoder.semantic_scores(output.decoder, size)[..., :height, :width]


def slide_scores(
    forward: Forward,
    decoder: Decoder,
    image_BCHW: Tensor,
    db_mean: Tensor,
    db_std: Tensor,
    *,
    crop: int,
    stride: int,
    patch: int,
    taper: bool = True,
    on_window: OnWindow | None = None,
) -> Tensor:
    """(B, K, H, W): the mean of the windows' scores, by their weights."""
    height, width = image_BCHW.shape[-2:]
    scores, weight_HW = None, image_BCHW.new_zeros(height, width)
    for rows, columns in sliding_windows(height, width, crop, stride):
        window = image_BCHW[..., rows, columns]
        part = window_scores(forward, decoder, window, db_mean, db_std, patch=patch, on_window=on_window)
        if scores is None:
            scores = part.new_zeros(*part.shape[:2], height, width)
        weight_hw = window_weights(part.shape[-2], part.shape[-1], weight_HW, taper=taper)
        scores[..., rows, columns] += part * weight_hw
        weight_HW[rows, columns] += weight_hw
    assert scores is not None
    return scores / weight_HW
