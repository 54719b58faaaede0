"""The peer: a small U-Net, four levels of 16 to 128 channels, 0.48M parameters.

It sees what the model sees: standardised dB of one band at the same ground spacing, through the same windows,
and has the loss of the tiny model's decoder. `slide_scores` takes what `CrossEarthSAR.slide_scores` does, so
that `evaluation.evaluate.predict_sample` serves both.

B batch, C bands (K in class scores: classes), H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.model_output import ModelOutput
from crossearth_sar.network_input import network_input
from crossearth_sar.presets import crossearth_sar_tiny
from crossearth_sar.sliding import slide_scores

TINY = crossearth_sar_tiny(2)

STRIDE = 8
"""Three halvings: sides of the input are multiples of it."""


@dataclass(frozen=True)
class PeerConfig:
    """What predicting asks of a model's config; windows as the tiny model's."""

    num_classes: int
    pixel_m: float | None = 10.0
    window: int = TINY.window
    crop_stride: int = TINY.crop_stride
    bands: int | None = None


class SmallUNet(nn.Module):
    """Convolutions with batch norm, max-pooling down, transposed convolutions up, skips at every level."""

    def __init__(self, config: PeerConfig, width: int = 16) -> None:
        super().__init__()
        self.config = config
        widths = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip([1, *widths[:-1]], widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in pairs)
        self.join = nn.ModuleList(_double(i, o) for i, o in pairs)
        self.head = nn.Conv2d(width, config.num_classes, 1)

    def forward(
        self, image_BCHW: Tensor, db_mean: Tensor | None = None, db_std: Tensor | None = None
    ) -> Tensor:
        """Linear amplitude -> logits (B, K, H, W); H and W multiples of 8."""
        x = network_input(image_BCHW, db_mean, db_std)[:, :1]
        skips: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], 1))
        logits: Tensor = self.head(x)
        return logits

    def loss(self, logits: Tensor, mask_BHW: Tensor) -> Tensor:
        """Cross-entropy, and Dice over the classes that each image has; ignored pixels in neither."""
        known = mask_BHW != IGNORE_INDEX
        entropy = F.cross_entropy(logits, mask_BHW, ignore_index=IGNORE_INDEX, reduction="sum")
        target = F.one_hot(mask_BHW.where(known, 0), self.config.num_classes).movedim(-1, 1) * known[:, None]
        probability = logits.softmax(1) * known[:, None]
        overlap, size = (probability * target).sum((-2, -1)), target.sum((-2, -1))
        dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + size + 1)
        there = size > 0
        return entropy / known.sum().clamp(min=1) + (dice * there).sum() / there.sum().clamp(min=1)

    def slide_scores(
        self,
        image_BCHW: Tensor,
        db_mean: Tensor,
        db_std: Tensor,
        on_window: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """(B, K, H, W): averaged probabilities of windows, which count as the model's do."""
        return slide_scores(
            lambda *window: ModelOutput(self(*window), ()), self, image_BCHW, db_mean, db_std,
            crop=self.config.window, stride=self.config.crop_stride, patch=STRIDE,
            on_window=None if on_window is None else lambda output: on_window(output.decoder),
        )  # fmt: skip

    def semantic_scores(self, logits_BKHW: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, H, W) probabilities; logits are of the window's own size."""
        return logits_BKHW.softmax(1)


def _double(i: int, o: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (i, o):
        layers += [nn.Conv2d(channels, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
