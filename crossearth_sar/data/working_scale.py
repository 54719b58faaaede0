"""Samples at the ground spacing of a model; datasets give them at their own.

The arithmetic is `ground_scale`'s. Here it meets what is a sample's alone: pixels without a measurement are
in no mean and are filled afterwards, so that what stands in their place has the speckle of the averaged image
and not less.

C bands, H W pixels.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.sample import Sample
from crossearth_sar.ground_scale import any_valid, average_power, centre_pixels, working_size

NATIVE_KEYS = ("pixel_m", "valid")
"""What a sample says of itself as its file has it; not of a crop, which is for batches."""


def described_sample(
    amplitude: np.ndarray, mask: np.ndarray, valid: np.ndarray, name: str, pixel_m: float | None
) -> Sample:
    """A sample of (C, H, W) amplitudes, filled where nothing was measured, with its spacing where known."""
    image = torch.from_numpy(fill_unmeasured(amplitude, valid))
    sample = Sample(image=image, mask=torch.from_numpy(mask.astype(np.int64)), name=name)
    if pixel_m is not None:
        sample["pixel_m"] = pixel_m
    if not valid.all():
        sample["valid"] = torch.from_numpy(np.ascontiguousarray(valid))
    return sample


def sample_size(sample: Sample, pixel_m: float | None) -> tuple[int, int]:
    """(h, w) of a sample at `pixel_m` metres per pixel; its own where either spacing is not known."""
    return working_size(sample["mask"].shape, sample.get("pixel_m"), pixel_m)


def measured_amplitude(sample: Sample, pixel_m: float | None) -> Tensor:
    """(C, h, w) at `pixel_m` metres per pixel, for statistics: 0 where nothing was measured."""
    size = sample_size(sample, pixel_m)
    if size == tuple(sample["mask"].shape):
        return sample["image"]
    return average_power(sample["image"], size, sample.get("valid"))


def averaged(image: Tensor, size: tuple[int, int], valid: Tensor | None) -> Tensor:
    """(C, H, W) -> (C, h, w) by power; bins without a measured pixel show other bins, drawn at random."""
    if valid is None or tuple(image.shape[-2:]) == size or not bool(valid.any()):
        return average_power(image, size)
    measured = any_valid(valid, size)
    return torch.from_numpy(fill_unmeasured(average_power(image, size, valid).numpy(), measured.numpy()))


def at_working_scale(sample: Sample, pixel_m: float | None) -> Sample:
    """The sample as a model that works at `pixel_m` sees it, without NATIVE_KEYS.

    Labels are those of the bins' middle pixels. A sample that does not know its spacing stays as it is.

    Raises:
        InputError: the two spacings are too far apart (`ground_scale.scale_factor`).
    """
    size = sample_size(sample, pixel_m)
    image = averaged(sample["image"], size, sample.get("valid"))
    return without_native_keys({**sample, "image": image, "mask": centre_pixels(sample["mask"], size)})


def without_native_keys(sample: Sample) -> Sample:
    """The sample without what a batch could not hold, as some of it have it and some have not."""
    return cast(Sample, {key: value for key, value in sample.items() if key not in NATIVE_KEYS})
