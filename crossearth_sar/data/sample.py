"""What one sample is: the contract between every dataset and everything that reads one.

C bands, H W pixels.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NotRequired, Protocol, TypedDict

from torch import Tensor

from crossearth_sar.config import require, require_name

IGNORE_INDEX = 255
"""Mask value of a pixel that neither trains nor counts: unlabelled, nodata, or outside the image."""


Origin = tuple[tuple[str, ...], str | None, Hashable | None]
"""Where a sample comes from: its image files (or what draws it), its label file, and of both the window that
it shows; None is all of them. Two samples of one origin are the same sample."""


class Sample(TypedDict):
    """One image and its label map, in torchgeo's key names.

    image: (C, H, W) float32, **linear amplitude**, finite and >= 0; a nodata or NaN pixel is IGNORE_INDEX
        in the mask, and here another pixel of the image (`fill.fill_unmeasured`). Complex input is its
        magnitude, intensity its square root, dB 10**(dB/20), so that speckle and gain stay multiplications
        and descriptors see one convention.
    mask: (H, W) int64, class index or IGNORE_INDEX.
    name: what to call the image in a message or a picture.
    db_mean, db_std: (C,), statistics of its domain at the spacing of the model that it is for.
    pixel_m: its own ground spacing in metres; absent: not known.
    valid: (H, W) bool, where something was measured; absent: everywhere.
    """

    image: Tensor
    mask: Tensor
    name: str
    db_mean: NotRequired[Tensor]
    db_std: NotRequired[Tensor]
    pixel_m: NotRequired[float]
    valid: NotRequired[Tensor]


class SegmentationDataset(Protocol):
    """A finite, indexable source of samples. `dataset[i]` depends on i alone, not on earlier calls."""

    classes: ClassTable

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """The classes of a task: index i of a mask is `names[i]`, drawn in `palette[i]` (RGB, 0..255).

    Of images without labels there are none.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        for name in self.names:
            require_name(name, "the name of a class")
        require(len(set(self.names)) == len(self.names), "class names", self.names, "distinct names")
        require(len(self.names) < IGNORE_INDEX, "number of classes", len(self.names), "fewer than 255")
        fits = len(self.palette) == len(self.names) and all(len(color) == 3 for color in self.palette)
        require(fits, "palette", self.palette, "one colour per class, [red, green, blue]")

    def __len__(self) -> int:
        return len(self.names)
