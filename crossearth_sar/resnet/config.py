"""What a ResNet is. Needs nothing but this file to be read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crossearth_sar.config import require, require_range


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet of bottlenecks, torchvision's v1.5; the defaults are ResNet-50."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Bottlenecks of the four stages; 3, 4, 23, 3 is ResNet-101."""

    width: int = 64
    """Channels of the stem; the stages have 4, 8, 16 and 32 times as many."""

    norm: Literal["batch", "frozen", "group"] = "batch"
    """batch: by the images of a pass on a rank, as published. frozen: by the statistics that the weights came
    with, for passes of few images. group: by each image's own values, 16 channels together; from scratch, for
    no weights that are read have it."""

    def __post_init__(self) -> None:
        require(
            len(self.depths) == 4 and all(1 <= depth <= 1024 for depth in self.depths),
            "resnet.depths",
            self.depths,
            "four numbers from 1 to 1024",
        )
        require_range(self, "resnet.", 1, 8192, "width")

    @property
    def map_strides(self) -> tuple[int, ...]:
        """Strides in pixels of `ResNetOutput.feature_maps`."""
        return (4, 8, 16, 32)

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Their widths."""
        return tuple(self.width * factor for factor in (4, 8, 16, 32))

    @property
    def size_multiple(self) -> int:
        """What height and width of an image must be multiples of, pixels."""
        return 32
