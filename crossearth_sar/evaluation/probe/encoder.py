"""What a probe sees of a network: images in, feature maps out; ours, a random twin of it, or anybody's.

B batch, C bands, H W pixels, D width of a map, h w its cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from crossearth_sar.config import require
from crossearth_sar.ground_scale import require_pixel_m
from crossearth_sar.model import CrossEarthSAR

Maps = Callable[[Tensor, Tensor, Tensor], Tensor | Sequence[Tensor]]
"""(B, C, H, W) linear amplitude, (B, C) mean and (B, C) deviation of 20 log10 of it in the images' domain ->
a map (B, D, h, w), or several at any strides."""

WhichMaps = Literal["last", "all"]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A network without its head, or what stands for one.

    maps: what it computes. multiple: of H and W; images are padded to it. window: side of the parts that
    larger images are seen in, pixels, and stride: the step from one to the next. pixel_m: metres per pixel
    it works at; None: images are taken as they are. device: where it computes. module: what fine-tuning
    trains, the parameters behind `maps`, and what is put into eval mode; None: there is nothing to train.
    """

    maps: Maps
    multiple: int = 1
    window: int = 512
    stride: int = 341
    pixel_m: float | None = None
    device: torch.device | str = "cpu"
    module: nn.Module | None = None

    def __post_init__(self) -> None:
        require(self.multiple >= 1, "multiple", self.multiple, "1 or more pixels")
        fits = self.window >= self.multiple and self.window % self.multiple == 0
        require(fits, "window", self.window, f"a multiple of {self.multiple}")
        require(1 <= self.stride <= self.window, "stride", self.stride, f"1 .. {self.window}")
        require_pixel_m(self.pixel_m)


def model_encoder(model: CrossEarthSAR, which: WhichMaps = "last") -> Encoder:
    """A model of this package, whose decoder, if it has one, is left out.

    Args:
        which: last: the patch tokens after the final norm, as a map; of a backbone without tokens its
            deepest map. all: all maps that a decoder would be given.
    """

    def maps(image_BCHW: Tensor, db_mean: Tensor, db_std: Tensor) -> list[Tensor]:
        output = model.features(image_BCHW, db_mean, db_std)
        deepest = output.feature_maps[-1]
        if which == "all":
            return list(output.feature_maps)
        if output.tokens is None:
            return [deepest]
        height, width = deepest.shape[-2:]
        patches_BTD = output.tokens[:, -height * width :]
        return [patches_BTD.mT.unflatten(2, (height, width))]

    config = model.config
    return Encoder(
        maps=maps,
        multiple=config.backbone.size_multiple,
        window=config.window,
        stride=config.crop_stride,
        pixel_m=config.pixel_m,
        device=next(model.parameters()).device,
        module=model,
    )


def random_twin(model: CrossEarthSAR, which: WhichMaps = "last", *, seed: int = 0) -> Encoder:
    """The same architecture with the weights that it starts from: what its features are worth untrained."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(model.config)
    return replace(model_encoder(twin.to(device).eval(), which), device=device)
