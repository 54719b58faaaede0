"""Amplitudes in dB, and their mean and standard deviation: over one image, or over all images of a domain.

A pixel counts where its amplitude is above 0: one of 0 was not measured, or is darker than any echo, and its
-200 dB would drown the others. Every mean and standard deviation of this package is taken here, so that the
ways to it (a dataset, scenes row by row, simulated tiles, one image in the model) agree on which pixels these
are. One image is measured in its own precision and on its own device; a domain in double precision.

B batch, C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crossearth_sar.errors import InputError

AMPLITUDE_FLOOR = 1e-10
"""-200 dB: where the logarithm of an amplitude of 0 is cut."""

SMALLEST_STD_DB = 1e-3
"""What a standard deviation is at least, as it divides."""

UNEVEN_DB = 6.0
"""Means of images that differ by more than this are hardly of one calibration, and one normalisation of all
leaves the difference in: a factor of two in amplitude."""


def to_db(amplitude: Tensor) -> Tensor:
    """20 log10(amplitude), an amplitude of 0 at -200 dB; float32 at least, for half has no such floor."""
    precision = torch.promote_types(amplitude.dtype, torch.float32)
    return 20 * torch.log10(amplitude.to(precision).clamp(min=AMPLITUDE_FLOOR))


def db_statistics(image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in dB, (B, C) each, of each image over its pixels above 0."""
    count, mean, squares = _moments(to_db(image_BCHW), image_BCHW > 0)
    return mean, (squares / count.clamp(min=1)).sqrt().clamp(min=SMALLEST_STD_DB)


class DomainStatistics:
    """Mean and standard deviation in dB over many images, which are added one by one and not kept."""

    def __init__(self) -> None:
        self._moments_3C: Tensor | None = None
        self._by_name: dict[object, Tensor] = {}

    def add(self, image_CHW: Tensor, name: object = "an image") -> None:
        """Counts the pixels above 0 of an amplitude image, or of a part of one; parts share its name.

        Raises:
            InputError: it has another number of bands than those before it; `name` says which it is.
        """
        new_3C = torch.stack(_moments(to_db(image_CHW).double(), image_CHW > 0))
        if self._moments_3C is None:
            self._moments_3C = self._by_name[name] = new_3C
            return
        if self._moments_3C.shape != new_3C.shape:
            raise InputError(
                "images of one domain differ in their number of bands",
                got=f"{len(image_CHW)} in {name}, {self._moments_3C.shape[1]} before it",
                fix="choose some of them by their index, or normalize each image by itself",
            )
        self._moments_3C = _joined(self._moments_3C, new_3C)
        of_image = self._by_name.get(name)
        self._by_name[name] = new_3C if of_image is None else _joined(of_image, new_3C)

    def uneven_words(self, limit_db: float = UNEVEN_DB) -> str | None:
        """The images of the lowest and the highest mean, where these differ by more than `limit_db`.

        Of the band in which they differ most; None where they are even. Images without a lit pixel are left
        out.
        """
        found: tuple[float, str] | None = None
        for band in range(0 if self._moments_3C is None else self._moments_3C.shape[1]):
            means = {n: float(m[1, band]) for n, m in self._by_name.items() if m[0, band] > 0}
            if not means:
                continue
            low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            spread = means[high] - means[low]
            if spread > max(limit_db, found[0] if found else 0):
                words = f"{spread:.1f} dB: {means[low]:.1f} in {low}, {means[high]:.1f} in {high}"
                found = (spread, words)
        return found[1] if found else None

    def means_by(self, key: Callable[[object], str | None]) -> dict[str | None, float]:
        """Mean in dB of the first band of the images whose names have the same key."""
        sums: dict[str | None, Tensor] = {}
        for name, moments in self._by_name.items():
            part = key(name)
            sums[part] = moments if part not in sums else _joined(sums[part], moments)
        return {part: float(m[1, 0]) for part, m in sums.items() if m[0, 0] > 0}

    def result(self) -> tuple[Tensor, Tensor]:
        """(C,) mean and standard deviation, float32; of a band without a pixel above 0, 0 and 0.001.

        Raises:
            InputError: no image was added.
        """
        if self._moments_3C is None:
            raise InputError("no image to take statistics of", got="none", expected="at least one")
        count, mean, squares = self._moments_3C
        std = (squares / count.clamp(min=1)).sqrt().clamp(min=SMALLEST_STD_DB)
        return mean.float(), std.float()


def _moments(decibels: Tensor, lit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., C, H, W) -> (..., C) each: number of lit pixels, their mean, summed squared distances to it."""
    decibels, lit = decibels.flatten(-2), lit.flatten(-2)
    count = lit.sum(-1)
    mean = (decibels * lit).sum(-1) / count.clamp(min=1)
    squares = ((decibels - mean[..., None]).square() * lit).sum(-1)
    return count.to(mean.dtype), mean, squares


def _joined(first_3C: Tensor, second_3C: Tensor) -> Tensor:
    """The moments of two sets of pixels together (Chan, Golub and LeVeque 1979)."""
    count = first_3C[0] + second_3C[0]
    share, step = second_3C[0] / count.clamp(min=1), second_3C[1] - first_3C[1]
    squares = first_3C[2] + second_3C[2] + step.square() * first_3C[0] * share
    return torch.stack([count, first_3C[1] + step * share, squares])
