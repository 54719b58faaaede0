"""What may differ between two looks at one place: gain, contrast, the number of looks. Never colour.

Each is something that radars and processors differ in: calibration (gain), the stretch of a display copy or
the incidence angle (contrast, in dB about the mean), fewer looks (speckle), more looks (a mean of power over
neighbours). Every step has a probability and all of its random numbers are drawn always, so that switching
one off leaves the others as they were.

C bands, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.transforms import mirrored, speckle_amplitude
from crossearth_sar.decibels import to_db

DRAWS = 8
"""Random numbers behind the settings of one image."""


@dataclass(frozen=True, kw_only=True)
class RadiometryConfig:
    """How the amplitudes of a view are varied."""

    gain_db: float = 2.0
    """The image is scaled by a gain uniform in +- this many dB."""
    gain_probability: float = 0.8
    """Share of views that get it."""
    contrast: float = 0.2
    """Distances in dB from the image's mean are scaled by 1 +- up to this."""
    contrast_probability: float = 0.8
    """Share of views that get it."""
    fewest_looks: float = 2.0
    """Gamma speckle of at least so many looks is multiplied on the intensity."""
    most_looks: float = 16.0
    """And of at most so many; more looks are weaker speckle."""
    speckle_probability: float = 0.5
    """Share of views that get it."""
    multilook: int = 3
    """Means of power over squares of 3, 5, … up to so many pixels a side, an odd number; 1: none."""
    multilook_probability: float = 0.3
    """Share of views that get it."""

    def __post_init__(self) -> None:
        where = "radiometry"
        require(0 <= self.gain_db <= 60, f"{where}.gain_db", self.gain_db, "in [0, 60] dB")
        require(0 <= self.contrast < 1, f"{where}.contrast", self.contrast, "in [0, 1)")
        require(
            1 <= self.fewest_looks <= self.most_looks < 1e6,
            f"{where}.fewest_looks, most_looks",
            (self.fewest_looks, self.most_looks),
            "1 <= fewest_looks <= most_looks < 1e6",
        )
        require(
            1 <= self.multilook <= 15 and self.multilook % 2 == 1,
            f"{where}.multilook",
            self.multilook,
            "an odd number from 1 to 15: an even one would move the image by half a pixel",
        )
        for name in ("gain", "contrast", "speckle", "multilook"):
            share = getattr(self, f"{name}_probability")
            require(0 <= share <= 1, f"{where}.{name}_probability", share, "in [0, 1]")


def varied(image_CHW: Tensor, config: RadiometryConfig, generator: torch.Generator) -> Tensor:
    """(C, H, W) linear amplitude -> the same places as another radar or processor may show them.

    All bands are varied alike, but for speckle, which is drawn for each. `generator` lives on the CPU.
    """
    draws = torch.rand(DRAWS, generator=generator).tolist()
    gain, contrast, speckle, more_looks = (
        draw < share
        for draw, share in zip(
            draws[:4],
            (
                config.gain_probability,
                config.contrast_probability,
                config.speckle_probability,
                config.multilook_probability,
            ),
            strict=True,
        )
    )
    seed = int(torch.randint(1 << 62, (), generator=generator))
    if more_looks and config.multilook > 1:
        sides = range(3, config.multilook + 1, 2)
        image_CHW = multilooked(image_CHW, sides[int(draws[7] * len(sides))])
    if speckle:
        # Uniform in the standard deviation: uniform looks would hardly ever be few.
        least, most = config.most_looks**-0.5, config.fewest_looks**-0.5
        looks = (least + (most - least) * draws[6]) ** -2
        own = torch.Generator().manual_seed(seed)
        image_CHW = image_CHW * speckle_amplitude(tuple(image_CHW.shape), looks, own)
    if contrast:
        image_CHW = with_contrast(image_CHW, 1 + config.contrast * (2 * draws[5] - 1))
    if gain:
        image_CHW = image_CHW * 10 ** (config.gain_db * (2 * draws[4] - 1) / 20)
    return image_CHW


def multilooked(image_CHW: Tensor, side: int) -> Tensor:
    """Roots of mean intensities over squares of `side`, an odd number of pixels; borders are mirrored."""
    margin = side // 2
    power_CHW = mirrored(image_CHW, (margin, margin, margin, margin)).square()
    return F.avg_pool2d(power_CHW[None], side, stride=1)[0].sqrt()


def with_contrast(image_CHW: Tensor, factor: float) -> Tensor:
    """Distances in dB from each band's mean times `factor`; pixels of amplitude 0, which have none, stay."""
    lit = image_CHW > 0
    decibels = to_db(image_CHW)
    count = lit.sum((-2, -1), keepdim=True).clamp(min=1)
    mean = (decibels * lit).sum((-2, -1), keepdim=True) / count
    changed = 10 ** ((mean + factor * (decibels - mean)) / 20)
    return torch.where(lit, changed, image_CHW)
