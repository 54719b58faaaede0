"""Several files as one image: their bands one after the other, in the order that its name gives.

C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossearth_sar.data.files.georeference import label_flips
from crossearth_sar.data.files.safe import ground_pixel_m, is_safe
from crossearth_sar.data.files.stored import StoredImage
from crossearth_sar.errors import InputError


def stacked(parts: Sequence[StoredImage], files: Sequence[Path], path: Path) -> StoredImage:
    """The decoded files, or headers, of one image as one: (C, H, W).

    What is missing in one of them is missing in its bands alone: `valid` is (C, H, W) where they differ.

    Args:
        files: of the parts. path: what the image is called.

    Raises:
        InputError: they differ in size, lie in different places, have a colour table, or one has three axes
            and does not say which holds its bands.
    """
    bands = [_bands_first(part, file) for part, file in zip(parts, files, strict=True)]
    first = bands[0]
    for other, file in zip(bands[1:], files[1:], strict=True):
        if other.shape[1:] != first.shape[1:]:
            raise InputError(
                f"the files of one image differ in size: {files[0]} and {file}",
                got=f"{first.shape[1]} x {first.shape[2]} and {other.shape[1]} x {other.shape[2]}",
                expected="the same height and width",
                fix="bring them onto one grid (gdalwarp -te … -ts …), or give them as images of their own",
            )
        if any(label_flips(first.place, other.place, f"{files[0]} and {file}", what="second file")):
            raise InputError(
                f"the files of one image run against each other: {files[0]} and {file}",
                expected="both north up, say",
                fix="turn one of them (gdalwarp)",
            )
    count = sum(part.shape[0] for part in bands)
    scales = [pair for part in bands for pair in part.scales or ((1.0, 0.0),) * part.shape[0]]
    metres = ground_pixel_m(path) if is_safe(path) else None
    return replace(
        first,
        shape=(count, *first.shape[1:]),
        values=None if first.values is None else np.concatenate([_values(part) for part in bands]),
        sample_axis=0,
        nodata=first.nodata if _have_one_nodata(bands) else None,
        valid=_valid(bands),
        pixel_m=first.pixel_m if metres is None else metres,
        scales=tuple(scales) if any(part.scales for part in bands) else None,
    )


def _bands_first(part: StoredImage, file: Path) -> StoredImage:
    if part.colormap is not None:
        raise InputError(f"{file} is stored with a colour table", expected="measurements: it is a band")
    if len(part.shape) == 2:
        values = None if part.values is None else part.values[None]
        return replace(part, shape=(1, *part.shape), values=values, sample_axis=0)
    if part.sample_axis is None:
        raise InputError(
            f"cannot tell which axis of {file} holds the bands",
            got=f"shape {part.shape}",
            expected="one band in each of several files of an image",
        )
    values = None if part.values is None else np.moveaxis(part.values, part.sample_axis, 0)
    others = (n for i, n in enumerate(part.shape) if i != part.sample_axis)
    return replace(part, shape=(part.shape[part.sample_axis], *others), values=values, sample_axis=0)


def _values(part: StoredImage) -> np.ndarray:
    assert part.values is not None
    return part.values


def _have_one_nodata(parts: Sequence[StoredImage]) -> bool:
    return len({repr(part.nodata) for part in parts}) == 1


def _valid(parts: Sequence[StoredImage]) -> np.ndarray | None:
    """(C, H, W); None where no file says anything, and all have the same nodata number."""
    one = _have_one_nodata(parts)
    if parts[0].values is None or (one and all(part.valid is None for part in parts)):
        return None
    each = []
    for part in parts:
        values = _values(part)
        good = (
            np.ones(values.shape, bool) if part.valid is None else np.broadcast_to(part.valid, values.shape)
        )
        each.append(good if one or part.nodata is None else good & (values != part.nodata))
    return np.concatenate(each)
