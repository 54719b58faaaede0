"""SAR images beside their labels, predictions and errors, in the colours of the task.

Class colours are the task's own palette; the tones for ignored, wrong and missing pixels stand off it.

Shapes: C classes (and image bands, where a Sample is meant), H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable, Sample
from crossearth_sar.decibels import to_db
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.canvas import (
    MARGIN,
    SOFT_INK,
    add_axes,
    draw_text,
    draw_title,
    fitting_legend,
    legend_height,
    new_figure,
    save,
    title_height,
)
from crossearth_sar.evaluation.metrics import ConfusionMatrix

Color = tuple[int, int, int]
Pixels = NDArray[np.uint8]

WRONG_COLOR: Color = (199, 21, 133)
RIGHT_COLOR: Color = (255, 255, 255)
STRIPE_COLORS: tuple[Color, Color] = ((244, 246, 250), (198, 208, 222))
NEUTRAL_COLORS: tuple[Color, ...] = ((212, 212, 212), (40, 40, 40), (128, 128, 128))

_HEADINGS = ("SAR image (dB)", "Label", "Prediction", "Errors")
_GAP, _HEADER = 0.08, 0.32  # inches between panels, above a row


def prediction_figure(
    samples: Sequence[Sample],
    predictions: Sequence[Tensor],
    classes: ClassTable,
    path: str | Path,
    title: str = "",
    *,
    band: int = 0,
    error_map: bool = True,
) -> Path:
    """One row per sample: SAR image | label | prediction | errors, with its name and its own mIoU.

    The image is 20*log10(amplitude) of one band, stretched from the 2nd to the 98th percentile of the pixels
    above 0. Pixels of amplitude 0 that are ignored are nodata and striped, other pixels of amplitude 0 are
    black. More than four rows are set in two columns of rows, which keeps the picture in the shape of a
    slide. The mIoU in a row is that of the one image, not of a benchmark.

    Args:
        samples: images (C, H, W) in linear amplitude, masks (H, W); sizes may differ between samples.
        predictions: one (H, W) integer map of class indices per sample.
        path: where the PNG goes; missing folders are made.
        band: which band of the image is drawn.
        error_map: whether the fourth panel is drawn.

    Raises:
        InputError: no samples, another number of predictions, unlike shapes, or values that are no class.
    """
    _require_pairs(samples, predictions)
    rows = [
        _row_panels(sample, prediction, classes, band, error_map)
        for sample, prediction in zip(samples, predictions, strict=True)
    ]
    grid = _Grid.of([panels for panels, _ in rows])
    figure = new_figure(grid.width, 1.0)
    legend = fitting_legend(figure, _class_handles(samples, classes, band, error_map))
    top = MARGIN + title_height(title, grid.width) + 0.15
    height = top + grid.height + 0.15 + legend_height(legend, figure) + 0.1
    figure.set_size_inches(grid.width, height)
    draw_title(figure, title)
    for i, (panels, score) in enumerate(rows):
        _draw_row(figure, grid, top, i, panels, samples[i]["name"], score)
    return save(figure, path)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Sizes in inches: rows of panels, set in one or two blocks side by side."""

    blocks: int
    rows_per_block: int
    columns: int
    panel_width: float
    panel_height: float

    @classmethod
    def of(cls, rows: Sequence[Sequence[Pixels]]) -> _Grid:
        blocks = 1 if len(rows) <= 4 else 2
        panel_width = 2.3 if blocks == 1 else 1.75
        tallest = max(panel.shape[0] / panel.shape[1] for row in rows for panel in row)
        return cls(
            blocks=blocks,
            rows_per_block=math.ceil(len(rows) / blocks),
            columns=len(rows[0]),
            panel_width=panel_width,
            panel_height=panel_width * min(1.6, max(0.4, tallest)),
        )

    @property
    def block_width(self) -> float:
        return self.columns * (self.panel_width + _GAP) - _GAP

    @property
    def width(self) -> float:
        return 2 * MARGIN + self.blocks * self.block_width + (self.blocks - 1) * 2 * MARGIN

    @property
    def height(self) -> float:
        return self.rows_per_block * (_HEADER + self.panel_height)


def _draw_row(
    figure: Figure, grid: _Grid, top: float, i: int, panels: Sequence[Pixels], name: str, score: float
) -> None:
    """Row number i, its header, and above the first of a block what the columns are."""
    block, row = divmod(i, grid.rows_per_block)
    left = MARGIN + block * (grid.block_width + 2 * MARGIN)
    row_top = top + row * (_HEADER + grid.panel_height)
    _draw_row_header(figure, left, row_top + _HEADER - 0.08, grid.block_width, name, score)
    for column, panel in enumerate(panels):
        x = left + column * (grid.panel_width + _GAP)
        axes = add_axes(figure, x, row_top + _HEADER, grid.panel_width, grid.panel_height)
        _show(axes, panel, smooth=column == 0)
        if row == 0:
            center = x + grid.panel_width / 2
            draw_text(figure, center, top, _HEADINGS[column], size=11, weight="bold", ha="center")


def _require_pairs(samples: Sequence[Sample], predictions: Sequence[Tensor]) -> None:
    if not samples or len(samples) != len(predictions):
        raise InputError(
            "samples and predictions do not fit",
            got=f"{len(samples)} samples, {len(predictions)} predictions",
            expected="as many of each, at least one",
        )


def colorize(indices: Tensor, classes: ClassTable) -> Pixels:
    """The (H, W, 3) uint8 picture of an (H, W) integer map: the palette, and a neutral tone where ignored.

    Raises:
        InputError: for another shape or dtype, or a value that is neither a class nor IGNORE_INDEX.
    """
    if indices.ndim != 2 or indices.is_floating_point() or indices.is_complex():
        raise InputError(
            "an index map does not fit",
            got=f"{tuple(indices.shape)} {indices.dtype}",
            expected="(H, W) of an integer dtype",
        )
    flat = indices.detach().cpu().long().numpy()
    unknown = (flat != IGNORE_INDEX) & ((flat < 0) | (flat >= len(classes)))
    if unknown.any():
        raise InputError(
            "an index map has values that are no class",
            got=np.unique(flat[unknown])[:8].tolist(),
            expected=f"0..{len(classes) - 1} or {IGNORE_INDEX}",
        )
    table = np.full((IGNORE_INDEX + 1, 3), neutral_color(classes.palette), dtype=np.uint8)
    table[: len(classes)] = classes.palette
    return table[flat]


def neutral_color(palette: Sequence[Color]) -> Color:
    """The grey for ignored pixels: light, unless the palette has something like it."""

    def distance(color: Color) -> float:
        return min(math.dist(color, used) for used in palette)

    clear = [color for color in NEUTRAL_COLORS if distance(color) > 60]
    return clear[0] if clear else max(NEUTRAL_COLORS, key=distance)


def _row_panels(
    sample: Sample, prediction: Tensor, classes: ClassTable, band: int, error_map: bool
) -> tuple[list[Pixels], float]:
    image, mask = sample["image"].detach().cpu(), sample["mask"].detach().cpu()
    prediction = prediction.detach().cpu()
    if not 0 <= band < len(image) or image.shape[1:] != mask.shape:
        raise InputError(
            f"sample {sample['name']!r} does not fit",
            got=f"image {tuple(image.shape)}, mask {tuple(mask.shape)}, band {band}",
            expected="image (C, H, W), mask (H, W), a band below C",
        )
    matrix = ConfusionMatrix(len(classes))
    matrix.update(prediction, mask)
    panels = [gray_db(image[band], mask), colorize(mask, classes), colorize(prediction, classes)]
    if error_map:
        errors = np.array([RIGHT_COLOR, WRONG_COLOR], dtype=np.uint8)[(prediction != mask).long().numpy()]
        errors[(mask == IGNORE_INDEX).numpy()] = neutral_color(classes.palette)
        panels.append(errors)
    return panels, matrix.scores().miou


def gray_db(amplitude: Tensor, mask: Tensor) -> Pixels:
    """(H, W) linear amplitude -> (H, W, 3) uint8 grey, stretched in dB as `prediction_figure` says."""
    positive = (amplitude > 0).numpy()
    gray = np.zeros(positive.shape)
    if positive.any():
        db = to_db(amplitude.double()).numpy()[positive]
        low, high = np.percentile(db, (2, 98))
        gray[positive] = np.clip((db - low) / (high - low), 0, 1) if high > low else 0.5
    pixels = np.repeat((gray * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    nodata = _nodata(amplitude, mask)
    y, x = np.indices(gray.shape)
    period = max(2, max(gray.shape) // 48)
    stripes = np.array(STRIPE_COLORS, dtype=np.uint8)[(x + y) // period % 2]
    pixels[nodata] = stripes[nodata]
    return pixels


def _nodata(amplitude: Tensor, mask: Tensor) -> NDArray[np.bool_]:
    return ((amplitude <= 0) & (mask == IGNORE_INDEX)).cpu().numpy()


def _class_handles(
    samples: Sequence[Sample], classes: ClassTable, band: int, error_map: bool
) -> list[Artist]:
    entries = list(zip(classes.names, classes.palette, strict=True))
    if any(bool((sample["mask"] == IGNORE_INDEX).any()) for sample in samples):
        entries.append(("not labelled", neutral_color(classes.palette)))
    handles: list[Artist] = [_swatch(name, color) for name, color in entries]
    if any(_nodata(sample["image"][band], sample["mask"]).any() for sample in samples):
        stripes = Patch(
            facecolor="#f4f6fa", edgecolor="#a9b8cc", hatch="/////", linewidth=0.5, label="no data"
        )
        handles.append(stripes)
    if error_map:
        handles.append(_swatch("error", WRONG_COLOR))
    return handles


def _swatch(label: str, color: Color) -> Patch:
    return Patch(facecolor="#" + bytes(color).hex(), edgecolor="#888888", linewidth=0.5, label=label)


def _draw_row_header(
    figure: Figure, left: float, baseline: float, width: float, name: str, score: float
) -> None:
    text = "mIoU –" if math.isnan(score) else f"mIoU {100 * score:.1f} %"
    draw_text(figure, left + width, baseline, text, size=10, ha="right")
    draw_text(figure, left, baseline, _shortened(name, int((width - 1.2) / 0.085)), size=10, color=SOFT_INK)


def _shortened(name: str, length: int) -> str:
    """`name` with its middle left out, if it is longer: file names differ at the end as often as before."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return name[: length - 1 - tail] + "…" + name[len(name) - tail :]


def _show(axes: Axes, panel: Pixels, smooth: bool) -> None:
    axes.imshow(panel, interpolation="antialiased" if smooth else "nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color("#999999")
