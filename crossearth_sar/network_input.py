"""From linear amplitude to what the network sees, and what cannot be amplitude refused with words.

B batch, C bands, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossearth_sar.decibels import db_statistics, to_db
from crossearth_sar.errors import InputError

MAX_BANDS = 3
"""The backbone has three channels; fewer bands are repeated."""
INPUT_LIMIT = 5.0
"""Normalised input is cut to +- this many standard deviations."""


def network_input(image_BCHW: Tensor, db_mean: Tensor | None = None, db_std: Tensor | None = None) -> Tensor:
    """(B, C, H, W) linear amplitude -> (B, 3, H, W) standardised dB, cut to +- INPUT_LIMIT, bands cycled."""
    bands = image_BCHW.shape[1]
    if not 1 <= bands <= MAX_BANDS:
        raise InputError(
            "the network sees 1 to 3 bands",
            got=f"shape {tuple(image_BCHW.shape)}: {bands} bands",
            expected=f"(B, C, H, W) with C from 1 to {MAX_BANDS}",
            fix="choose some: image[:, :3]",
        )
    db_mean, db_std = statistics_of(image_BCHW, db_mean, db_std)
    decibels = to_db(image_BCHW)
    mean, std = (s.to(decibels).reshape(-1, bands, 1, 1) for s in (db_mean, db_std))
    standardised = ((decibels - mean) / std).clamp(-INPUT_LIMIT, INPUT_LIMIT)
    return standardised[:, [band % bands for band in range(MAX_BANDS)]]


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor as it is; a copy of numbers in a numpy array or nested lists."""
    if isinstance(value, Tensor):
        return value
    try:
        array = np.array(value)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError) as error:  # no numbers, or lists of unlike lengths
        raise InputError(
            f"{name} is no array of numbers",
            got=f"{type(value).__name__} ({error})",
            expected="a torch tensor, a numpy array or lists of numbers",
        ) from error


def statistics_of(image_BCHW: Tensor, db_mean: Any, db_std: Any) -> tuple[Tensor, Tensor]:
    """The given statistics, checked; each image's own when neither is given."""
    if db_mean is None and db_std is None:
        return db_statistics(image_BCHW)
    if db_mean is None or db_std is None:
        raise InputError(
            "statistics come as a pair",
            got=f"{'db_std' if db_mean is None else 'db_mean'} alone",
            expected="db_mean and db_std, or neither",
        )
    db_mean, db_std = as_tensor(db_mean, "db_mean"), as_tensor(db_std, "db_std")
    bands = tuple(image_BCHW.shape[1:2])
    for name, given in (("db_mean", db_mean), ("db_std", db_std)):
        if tuple(given.shape) not in (bands, (1, *bands), tuple(image_BCHW.shape[:2])):
            raise InputError(
                f"{name} does not fit the bands",
                got=f"shape {tuple(given.shape)}",
                expected=f"(C,) = {bands} or (B, C) = {tuple(image_BCHW.shape[:2])}",
            )
    return db_mean, db_std


def require_statistics(db_mean: Tensor, db_std: Tensor) -> None:
    """InputError unless means are finite and deviations above 0: else one class would be everywhere. Looks at
    the numbers, which on a GPU waits for them."""
    if not (torch.isfinite(db_mean).all() and torch.isfinite(db_std).all() and (db_std > 0).all()):
        raise InputError(
            "db_mean and db_std are no statistics",
            got=f"{db_mean.tolist()} and {db_std.tolist()}",
            expected="finite numbers, the standard deviation above 0",
            fix="give those of the images' domain, or neither: each image's own are taken then",
        )


def checked_amplitude(image: Any, bands: int | None = None) -> Tensor:
    """The image, tensor or array, as a floating-point tensor (B, C, H, W), when `predict` can read it.

    Args:
        bands: C that the model was trained on; None: any up to MAX_BANDS.
    """
    image_BCHW = as_tensor(image, "the image")
    is_image = (
        image_BCHW.ndim == 4
        and 1 <= image_BCHW.shape[1] <= MAX_BANDS
        and image_BCHW.numel() > 0
        and not image_BCHW.is_complex()
    )
    if not is_image:
        raise InputError(
            "predict reads linear amplitude images",
            got=f"{image_BCHW.dtype}, shape {tuple(image_BCHW.shape)}",
            expected="real (B, C, H, W) with 1 to 3 bands and no empty axis",
            fix="take abs() of complex data, image[None] for a missing axis",
        )
    if bands not in (None, image_BCHW.shape[1]):
        raise InputError(
            "the model was trained on images of other bands",
            got=f"{image_BCHW.shape[1]} bands, shape {tuple(image_BCHW.shape)}",
            expected=f"{bands}",
            fix=f"choose: image[:, :{bands}]",
        )
    if not image_BCHW.is_floating_point():
        image_BCHW = image_BCHW.float()  # counts as sensors deliver them; torch has no padding for uint16
    bad = ~(torch.isfinite(image_BCHW) & (image_BCHW >= 0))
    if bool(bad.any()):
        raise InputError(
            "predict reads linear amplitude images",
            got=f"{int(bad.sum())} negative or non-finite pixels",
            expected="finite values >= 0",
            fix="convert dB with 10 ** (db / 20); put measured amplitudes where nodata is "
            "(data.fill.fill_unmeasured): the descriptors count every pixel",
        )
    return image_BCHW
