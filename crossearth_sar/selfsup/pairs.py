"""A sample, its labels left aside -> two views of it, and boxes that both show, in shapes that are fixed.

Of a large scene a square is cut at random first and read alone: two views of a whole scene would have nothing
in common but the scene. A pair is a function of (image, generator).

C bands, S pixels a side of a view, K boxes, H W pixels of the part that is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from crossearth_sar.config import require
from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.sample import Sample
from crossearth_sar.data.views import View as SampleView
from crossearth_sar.errors import InputError
from crossearth_sar.ground_scale import scale_factor
from crossearth_sar.selfsup.boxes import sample_boxes
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.radiometry import RadiometryConfig, varied
from crossearth_sar.selfsup.render import render
from crossearth_sar.selfsup.views import Boxes, View, draw_view

TRIES = 20
"""Places in a scene that are looked at until half of one was measured; else the best of them is taken."""

MEASURED_SHARE = 0.5
"""That half."""


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How two views of one image are drawn, and how their amplitudes are varied."""

    window: float = 1.5
    """Both views lie in a square of so many crops a side, at the model's ground spacing, cut out of the image
    at random; an image that is smaller is taken whole."""
    area_min: float = 0.2
    """Least share of the square that a view shows."""
    area_max: float = 1.0
    """Largest share."""
    aspect: float = 4 / 3
    """A view is at most so many times as wide as high in the source, or as high as wide."""
    flip_x: float = 0.5
    """Share of views that are mirrored left to right. 0 where shadows shall keep their side."""
    flip_y: float = 0.5
    """Share of views that are mirrored top to bottom."""
    radiometry: RadiometryConfig = field(default_factory=RadiometryConfig)
    """Gain, contrast, speckle and looks of each view by itself."""

    def __post_init__(self) -> None:
        require(0 < self.window <= 64, "window", self.window, "above 0 and at most 64 crops")
        require(
            0 < self.area_min <= self.area_max <= 1,
            "area_min, area_max",
            (self.area_min, self.area_max),
            "0 < area_min <= area_max <= 1",
        )
        require(1 <= self.aspect <= 16, "aspect", self.aspect, "in [1, 16]")
        for name in ("flip_x", "flip_y"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")


class Pair(TypedDict):
    """Two views of one image: what `DI3CL.forward` takes, without the first axis.

    query_image, key_image: (C, S, S) linear amplitude. query_mean, …: (C,) dB statistics of the domain.
    query_boxes, key_boxes: (K, 4) float32, pixels of the view; valid: (K,) bool, which of them there are.
    mirrored: (2,) bool, whether one view is mirrored to the other along x, along y.
    """

    query_image: Tensor
    key_image: Tensor
    query_mean: Tensor
    query_std: Tensor
    key_mean: Tensor
    key_std: Tensor
    query_boxes: Tensor
    key_boxes: Tensor
    valid: Tensor
    mirrored: Tensor
    name: str


class PairTransform:
    """Draws the pairs.

    Args:
        config: of views.
        method: of boxes.
        size: side of a view, pixels.
        smallest: least side of a box in either view, pixels of the view.
        pixel_m: ground spacing that the model works at, metres; None: images are taken as they are.
    """

    def __init__(
        self,
        config: PairConfig,
        method: DI3CLConfig,
        *,
        size: int,
        smallest: float,
        pixel_m: float | None = None,
    ) -> None:
        self.config, self.method = config, method
        self.size, self.smallest, self.pixel_m = size, smallest, pixel_m

    def __call__(self, source: Sample | SampleView, generator: torch.Generator) -> Pair:
        """Two views; `source` stays as it is, and carries db_mean and db_std. `generator` lives on the CPU.

        Raises:
            InputError: nothing was measured at any place that was looked at.
        """
        view = source if isinstance(source, SampleView) else SampleView.of(source)
        random = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        sample = self._part(view, random)
        measured = sample.get("valid")
        height, width = sample["image"].shape[-2:]
        query, key = (self._draw(random, width, height) for _ in range(2))
        boxes_N4 = sample_boxes(
            query, key, random, count=self.method.boxes, smallest=self.smallest,
            max_iou=self.method.max_iou, valid=None if measured is None else measured.numpy(),
        )  # fmt: skip
        count = self.method.boxes
        return Pair(
            query_image=self._seen(sample, query, generator),
            key_image=self._seen(sample, key, generator),
            query_mean=sample["db_mean"],
            query_std=sample["db_std"],
            key_mean=sample["db_mean"],
            key_std=sample["db_std"],
            query_boxes=_padded(query, boxes_N4, count),
            key_boxes=_padded(key, boxes_N4, count),
            valid=torch.arange(count) < len(boxes_N4),
            mirrored=torch.tensor([query.flip_x != key.flip_x, query.flip_y != key.flip_y]),
            name=sample["name"],
        )

    def _part(self, view: SampleView, random: np.random.Generator) -> Sample:
        """The square of the scene that both views lie in, or the whole of a small image."""
        side = self.config.window * self.size * scale_factor(view.pixel_m, self.pixel_m)
        extents = [min(extent, max(round(side), 1)) for extent in view.size]
        best, best_share = None, 0.0
        for place in random.random((TRIES, 2)):
            starts = [
                int(at * (whole - part + 1))
                for at, whole, part in zip(place, view.size, extents, strict=True)
            ]
            rows, columns = (slice(s, s + part) for s, part in zip(starts, extents, strict=True))
            part = view.read(rows, columns)
            share = float(part["valid"].float().mean()) if "valid" in part else 1.0
            if share > best_share:
                best, best_share = part, share
            if share >= MEASURED_SHARE or list(view.size) == extents:
                break
        if best is None:
            raise InputError(
                f"{view.name} shows nothing that was measured",
                got=f"{TRIES} places of {extents[0]} x {extents[1]} pixels without a measured one",
                fix="leave it out (exclude), or cut its margins off",
            )
        return best

    def _draw(self, random: np.random.Generator, width: int, height: int) -> View:
        config = self.config
        return draw_view(
            random,
            width,
            height,
            size=self.size,
            area=(config.area_min, config.area_max),
            aspect=(1 / config.aspect, config.aspect),
            flip_x=config.flip_x,
            flip_y=config.flip_y,
        )

    def _seen(self, sample: Sample, view: View, generator: torch.Generator) -> Tensor:
        image, share = render(sample["image"], view, sample.get("valid"))
        measured = share > 0
        if not bool(measured.all()):
            image = torch.from_numpy(fill_unmeasured(image.numpy(), measured.numpy()))
        return varied(image, self.config.radiometry, generator)


def join_pairs(pairs: list[Pair]) -> dict[str, Any]:
    """The batch of some pairs, a DataLoader's `collate_fn`.

    Where images differ in bands, as those of a mixture may, the bands of some are repeated in turn, as the
    model repeats those of all to three.
    """
    bands = max(len(pair["query_image"]) for pair in pairs)
    return default_collate([_with_bands(pair, bands) for pair in pairs])


def _with_bands(pair: Pair, bands: int) -> dict[str, Any]:
    own = len(pair["query_image"])
    order = [band % own for band in range(bands)]
    banded = ("query_image", "key_image", "query_mean", "query_std", "key_mean", "key_std")
    return {**pair, **{name: pair[name][order] for name in banded}}  # type: ignore[literal-required]


def _padded(view: View, boxes_N4: Boxes, count: int) -> Tensor:
    """(count, 4) float32 in pixels of the view, zeros where there is no box."""
    found = torch.zeros(count, 4)
    inside = view.to_view(boxes_N4).clip(0, view.size)  # rounding alone reaches beyond
    found[: len(boxes_N4)] = torch.from_numpy(inside).float()
    return found
