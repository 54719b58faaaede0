"""Pictures of what a backbone learnt without labels: boxes in two views, likeness to a box, patch colours.

N images, D channels, h w cells of a map, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from crossearth_sar.evaluation.figures.canvas import (
    MARGIN,
    add_axes,
    draw_text,
    draw_title,
    new_figure,
    save,
    title_height,
)

Pixels = NDArray[np.uint8]
_PANEL, _GAP, _HEADER = 2.2, 0.1, 0.35  # inches


@dataclass(frozen=True)
class Panel:
    """pixels: (H, W, 3). boxes: x0, y0, x1, y1 in pixel edges, drawn in the colours of their order."""

    pixels: Pixels
    boxes: Sequence[Sequence[float]] = field(default_factory=tuple)


def panels_figure(
    rows: Sequence[Sequence[Panel]], headings: Sequence[str], path: str | Path, title: str
) -> Path:
    """Rows of square panels under their headings, as PNG; all rows are as long as `headings`."""
    width = 2 * MARGIN + len(headings) * (_PANEL + _GAP) - _GAP
    top = MARGIN + title_height(title, width) + _HEADER
    figure = new_figure(width, top + len(rows) * (_PANEL + _GAP) + MARGIN)
    draw_title(figure, title)
    for number, heading in enumerate(headings):
        middle = MARGIN + number * (_PANEL + _GAP) + _PANEL / 2
        draw_text(figure, middle, top - 0.1, heading, size=10, ha="center", weight="bold")
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            axes = add_axes(
                figure, MARGIN + column * (_PANEL + _GAP), top + row * (_PANEL + _GAP), _PANEL, _PANEL
            )
            height, across = panel.pixels.shape[:2]
            axes.imshow(panel.pixels, extent=(0, across, height, 0), interpolation="nearest")
            axes.set_axis_off()
            for number, (x0, y0, x1, y1) in enumerate(panel.boxes):
                axes.add_patch(
                    Rectangle(
                        (x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.4, edgecolor=f"C{number % 10}"
                    )
                )
    return save(figure, path)


def principal_colors(maps_NDhw: Tensor) -> list[Pixels]:
    """(h, w, 3) of each image: the first three principal components of all cells, as red, green and blue.

    Each component is stretched from the 2nd to the 98th percentile over all images, so that one colour is one
    direction in all of them.
    """
    cells_MD = maps_NDhw.movedim(1, -1).flatten(0, 2).double()
    centred = cells_MD - cells_MD.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    found = (centred @ directions[:3].T).numpy()
    low, high = np.percentile(found, (2, 98), axis=0)
    scaled = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    number, _, height, width = maps_NDhw.shape
    pixels = (255 * scaled).round().astype(np.uint8).reshape(number, height, width, -1)
    missing = 3 - pixels.shape[-1]
    return list(np.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, missing))))


def heat(values_hw: Tensor) -> Pixels:
    """(h, w, 3): low values dark, high ones bright, from the least to the largest."""
    values = values_hw.double().numpy()
    span = max(float(values.max() - values.min()), 1e-12)
    colors = matplotlib.colormaps["viridis"]((values - values.min()) / span)
    return (255 * colors[..., :3]).round().astype(np.uint8)


def enlarged(pixels_hw3: Pixels, size: int) -> Pixels:
    """(size, size, 3), cells repeated."""
    rows, columns = (np.arange(size) * extent // size for extent in pixels_hw3.shape[:2])
    return pixels_hw3[rows][:, columns]
