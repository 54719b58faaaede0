"""Training augmentation for SAR: geometry as in optical segmentation, radiometry as a radar has it.

Random scale about a ground spacing, crop with a limit on the largest class, flips; then a gain in dB
(calibrations differ) and multiplicative speckle (numbers of looks differ). No colour jitter and no blur:
neither happens to a radar image. All randomness comes from the generator given, so a sample is a function of
(image, seed).

C bands, H W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.data.views import View
from crossearth_sar.data.working_scale import averaged, without_native_keys
from crossearth_sar.ground_scale import centre_pixels, scale_factor


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training samples are varied.

    crop_size: side of the square that comes out, pixels; null takes the model's.
    scale_min, scale_max: the resize factor is uniform between them; 2 is an image twice as large. It is
        about the spacing that the model works at: with `model.pixel_m` 10, factors from 0.5 to 2 show ground
        at 20 m to 5 m a pixel, of every image whose own spacing is known; else about the image's own.
    max_class_share: no class may cover more than this share of a crop's labelled pixels; of `crop_tries`
        positions the first that keeps to it is taken, else the one that comes nearest.
    flip_probability: of a horizontal flip and, independently, of a vertical one.
    gain_db: the whole image is scaled by a gain uniform in +- this many dB.
    speckle_looks: number of looks of the gamma-distributed speckle multiplied on intensity, at least 1;
        fewer looks are stronger speckle, variance 1 / looks. None: off.
    speckle_probability: share of samples that get it.
    """

    crop_size: int | None = None
    scale_min: float = 0.5
    scale_max: float = 2.0
    max_class_share: float = 0.75
    crop_tries: int = 10
    flip_probability: float = 0.5
    gain_db: float = 2.0
    speckle_looks: float | None = None
    speckle_probability: float = 0.5

    def __post_init__(self) -> None:
        require(
            self.crop_size is None or self.crop_size >= 1, "crop_size", self.crop_size, "at least 1 pixel"
        )
        require(
            0 < self.scale_min <= self.scale_max <= 16,
            "scale_min, scale_max",
            (self.scale_min, self.scale_max),
            "0 < scale_min <= scale_max <= 16",
        )
        require(0 < self.max_class_share <= 1, "max_class_share", self.max_class_share, "in (0, 1]")
        require(self.crop_tries >= 1, "crop_tries", self.crop_tries, "at least 1")
        for name in ("flip_probability", "speckle_probability"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        require(0 <= self.gain_db <= 60, "gain_db", self.gain_db, "in [0, 60] dB")
        require(
            self.speckle_looks is None or 1 <= self.speckle_looks < math.inf,
            "speckle_looks",
            self.speckle_looks,
            "at least 1, or null",
        )


class TrainTransform:
    """Augments a sample; image (C, H, W) of any size becomes (C, crop_size, crop_size), the mask likewise.

    Where the resized image is smaller than the crop, its mirror image and IGNORE_INDEX are added below and
    on the right. Shrinking averages power and growing repeats pixels (`ground_scale`). Keys of the sample
    other than image and mask are passed on as they are, pixel_m and valid are dropped.

    Args:
        pixel_m: ground spacing that the model works at, metres; None: samples are taken as they are.
    """

    def __init__(self, config: AugmentConfig, pixel_m: float | None = None) -> None:
        require(config.crop_size is not None, "crop_size", None, "the side of the crops, pixels")
        self.config, self.size, self.pixel_m = config, int(config.crop_size or 0), pixel_m

    def __call__(self, source: Sample | View, generator: torch.Generator) -> Sample:
        """A new sample; `source` stays as it is. `generator` lives on the CPU.

        Of a view only the crop is read, and the labels of the places that are tried before it.
        """
        view = source if isinstance(source, View) else View.of(source)
        config = self.config
        # All scalars are drawn first and always: switching one step off leaves the others as they were.
        scale, flip_x, flip_y, gain, speckle = torch.rand(5, generator=generator).tolist()
        places = torch.rand(config.crop_tries, 2, generator=generator).tolist()
        scale = config.scale_min + (config.scale_max - config.scale_min) * scale
        scale /= scale_factor(view.pixel_m, self.pixel_m)
        sample = self._crop(view, scale, places)
        image, small_mask = sample["image"], sample["mask"]
        flips = [axis for axis, draw in ((-1, flip_x), (-2, flip_y)) if draw < config.flip_probability]
        if flips:
            image, small_mask = image.flip(flips), small_mask.flip(flips)
        image = image * 10 ** ((2 * gain - 1) * config.gain_db / 20)
        if config.speckle_looks is not None and speckle < config.speckle_probability:
            image = image * speckle_amplitude(image.shape, config.speckle_looks, generator)
        return without_native_keys({**sample, "image": image, "mask": small_mask.long()})

    def _crop(self, view: View, scale: float, places: list[list[float]]) -> Sample:
        """Cuts the window that becomes the crop out of the source, then resizes that alone."""
        size = self.size
        down, across = (_window(extent, size, scale) for extent in view.size)
        out = down.out, across.out
        part = self._place(view, down, across, places)
        crop = centre_pixels(part["mask"].byte(), out)  # an eighth of the bytes on its way
        window = averaged(part["image"], out, part.get("valid"))
        padding = (0, size - across.out, 0, size - down.out)
        if any(padding):
            window, crop = mirrored(window, padding), F.pad(crop, padding, value=IGNORE_INDEX)
        return cast(Sample, {**part, "image": window, "mask": crop})

    def _place(self, view: View, down: _Axis, across: _Axis, places: list[list[float]]) -> Sample:
        """What is at the first place whose largest class keeps to its share, else at the best one."""
        if view.one_label or (down.last == 0 and across.last == 0):
            places = places[:1]
        best: tuple[float, slice, slice] | None = None
        for place_y, place_x in places:
            rows, columns = down.at(place_y), across.at(place_x)
            share = largest_class_share(centre_pixels(view.mask(rows, columns), (down.out, across.out)))
            if share <= self.config.max_class_share:
                part = view.read(rows, columns)
                if bool((part["mask"] != IGNORE_INDEX).any()):
                    return part
                share = math.inf  # labels where nothing was measured, which they alone do not say
            if best is None or share < best[0]:
                best = share, rows, columns
        assert best is not None
        return view.read(best[1], best[2])


def center_crop_or_pad(sample: Sample, size: int) -> Sample:
    """The sample at (size, size) about its centre, cut where larger, else mirrored there and IGNORE_INDEX.

    For batches of images of unlike sizes; to evaluate all pixels of larger images, tile them instead.
    """
    height, width = sample["mask"].shape
    before_y, before_x = (size - height) // 2, (size - width) // 2
    padding = (before_x, size - width - before_x, before_y, size - height - before_y)  # negative ones cut
    image = mirrored(sample["image"], padding)
    mask = F.pad(sample["mask"], padding, value=IGNORE_INDEX)
    return cast(Sample, {**sample, "image": image, "mask": mask})


def mirrored(image: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """The image (…, H, W) continued by its own reflection, the edge pixel twice, as often as is needed.

    Padding must look like the image: descriptors count every pixel, and a border of zeros is an edge that no
    radar saw (of a Sentinel-1 crop padded to twice its sides it took the ENL from 22.8 to 0.3). Repeating the
    edge pixel keeps the mean, and works from a side of one pixel on.

    Args:
        padding: (left, right, above, below) in pixels, as in `F.pad`; negative ones cut.
    """
    left, right, above, below = padding
    rows, columns = (
        _reflection(extent, before, after, image.device)
        for extent, before, after in zip(image.shape[-2:], (above, left), (below, right), strict=True)
    )
    return image[..., rows, :][..., columns]


def speckle_amplitude(shape: tuple[int, ...], looks: float, generator: torch.Generator) -> Tensor:
    """Amplitude factors whose squares are Gamma(looks, 1 / looks): mean 1, variance 1 / looks.

    By Wilson and Hilferty's cube of a normal, mean and variance within 0.5 % from one look on, and eight
    times as fast as drawing gammas.
    """
    normal = torch.randn(shape, generator=generator)
    root = normal.mul_(1 / (3 * math.sqrt(looks))).add_(1 - 1 / (9 * looks)).clamp_(min=0)
    return root * root.sqrt()


def largest_class_share(mask: Tensor) -> float:
    """Share of the commonest class among the pixels that are not IGNORE_INDEX; inf where there are none."""
    counts = torch.bincount(mask.flatten(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX]
    labelled = int(counts.sum())
    return int(counts.max()) / labelled if labelled else math.inf


class _Axis(NamedTuple):
    """Along one axis: last possible start, length in source pixels, length in the crop."""

    last: int
    length: int
    out: int

    def at(self, place: float) -> slice:
        """The window at a place between 0 and 1."""
        start = int(place * (self.last + 1))
        return slice(start, start + self.length)


def _window(extent: int, size: int, scale: float) -> _Axis:
    wanted = max(round(size / scale), 1)
    if wanted <= extent:
        return _Axis(extent - wanted, wanted, size)
    return _Axis(0, extent, min(max(round(extent * scale), 1), size))


def _reflection(extent: int, before: int, after: int, device: torch.device) -> Tensor:
    """Which pixel of an axis each pixel of the padded one shows: 2 1 0 0 1 2 2 1 0 … for an extent of 3."""
    place = torch.arange(-before, extent + after, device=device).remainder(2 * extent)
    return torch.minimum(place, 2 * extent - 1 - place)
