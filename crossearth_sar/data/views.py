"""A sample that is looked at in parts: of a large scene only the window that becomes a crop is read.

Decoding a scene of 8000 x 8000 pixels for each crop of 512 would cost most of the time of training. A dataset
that can do better has `view(index)`; what has none is read whole, and a view of that gives the same crops.

C bands, H W pixels, h w pixels of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from crossearth_sar.data.sample import Sample
from crossearth_sar.data.working_scale import measured_amplitude
from crossearth_sar.ground_scale import scale_factor
from crossearth_sar.spacing import evenly_spaced

MEASURED_WINDOWS = 4
"""Windows a side whose pixels give the statistics of a scene that is read in windows."""

MEASURED_SIDE = 512
"""Their side, pixels at the spacing at which they are measured."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A sample before it is read.

    name, pixel_m: as in a sample. size: (H, W). read: rows, columns -> that part as a sample. mask: rows and
    columns -> (h, w) uint8, its labels alone; of a scene that is read in windows they do not know yet which
    pixels were measured. one_label: whether every window is known to have the same single label, or none.
    """

    name: str
    size: tuple[int, int]
    read: Callable[[slice, slice], Sample]
    mask: Callable[[slice, slice], Tensor]
    pixel_m: float | None = None
    one_label: bool = False

    @classmethod
    def of(cls, sample: Sample) -> View:
        """The view of a sample that is there already."""
        mask = sample["mask"].byte()  # classes and IGNORE_INDEX fit; an eighth of the bytes

        def read(rows: slice, columns: slice) -> Sample:
            part = {
                **sample,
                "image": sample["image"][:, rows, columns],
                "mask": sample["mask"][rows, columns],
            }
            if "valid" in sample:
                part["valid"] = sample["valid"][rows, columns]
            return cast(Sample, part)

        return cls(
            name=sample["name"],
            size=(mask.shape[0], mask.shape[1]),
            read=read,
            mask=lambda rows, columns: mask[rows, columns],
            pixel_m=sample.get("pixel_m"),
            one_label=bool(mask.min() == mask.max()),
        )

    def with_statistics(self, db_mean: Tensor, db_std: Tensor) -> View:
        """The same, its samples with the statistics of their domain."""

        def read(rows: slice, columns: slice) -> Sample:
            return {**self.read(rows, columns), "db_mean": db_mean, "db_std": db_std}

        return replace(self, read=read)

    def whole(self) -> Sample:
        return self.read(slice(0, self.size[0]), slice(0, self.size[1]))

    def measured_parts(self, pixel_m: float | None) -> Iterator[Tensor]:
        """(C, h, w) amplitudes at `pixel_m`, for statistics: up to 4 x 4 windows, evenly spread."""
        side = round(MEASURED_SIDE * scale_factor(self.pixel_m, pixel_m))
        for rows in _spread(self.size[0], side):
            for columns in _spread(self.size[1], side):
                yield measured_amplitude(self.read(rows, columns), pixel_m)


@runtime_checkable
class Viewed(Protocol):
    """A dataset of which some samples can be looked at in parts."""

    def view(self, index: int) -> View | None:
        """Sample `index` before it is read; None where it is better read whole."""


def view_of(dataset: object, index: int) -> View | None:
    """`dataset.view(index)`; None of a dataset that has none."""
    return dataset.view(index) if isinstance(dataset, Viewed) else None


def _spread(extent: int, side: int) -> Iterator[slice]:
    side = min(side, extent)
    count = min(MEASURED_WINDOWS, -(-extent // side))
    for start in evenly_spaced(extent - side + 1, count, ends=True):
        yield slice(start, start + side)
