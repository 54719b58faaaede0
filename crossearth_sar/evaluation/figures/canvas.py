"""What every picture shares: a canvas measured in inches, its title, legend and tones, and the PNG.

Sizes are worked out in inches from what is to be shown, for text that can be read on a slide; places count
from the upper left corner. Colours that carry meaning here are from Okabe and Ito's set, which colour-blind
readers can tell apart.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from numpy.typing import NDArray

from crossearth_sar.errors import InputError
from crossearth_sar.whole import aside

Floats = NDArray[np.float64]

DPI = 150
MARGIN = 0.25  # inches around the picture
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a6528a"
INK, SOFT_INK, GRID = "#222222", "#666666", "#e3e3e3"


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, `top` counted from the upper edge."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes(
        (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    )


def draw_text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    ha: str = "left",
    weight: str = "normal",
    color: str = INK,
) -> None:
    """Text with its baseline at a place in inches, `y` counted from the upper edge; `$` is only a `$`."""
    width, height = figure.get_size_inches()
    figure.text(
        x / width,
        1 - y / height,
        text,
        fontsize=size,
        ha=ha,
        va="baseline",
        fontweight=weight,
        color=color,
        parse_math=False,
    )


def title_height(title: str, width: float) -> float:
    return 0.3 * len(_title_lines(title, width)) + (0.1 if title else 0.0)


def draw_title(figure: Figure, title: str) -> None:
    width = figure.get_size_inches()[0]
    for i, line in enumerate(_title_lines(title, width)):
        draw_text(figure, width / 2, MARGIN + 0.15 + 0.3 * i, line, size=14, ha="center", weight="bold")


def _title_lines(title: str, width: float) -> list[str]:
    return textwrap.wrap(title, max(10, int((width - 2 * MARGIN) / 0.125)))


def fitting_legend(figure: Figure, handles: list[Artist]) -> Legend:
    """A legend at the lower edge, in as few and as even rows as the width of the figure allows."""
    for rows in range(1, len(handles) + 1):
        legend = figure.legend(
            handles=handles,
            loc="lower center",
            ncol=math.ceil(len(handles) / rows),
            frameon=False,
            fontsize=10,
            handlelength=1.3,
            handleheight=1.0,
            columnspacing=1.4,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        if rows == len(handles) or legend.get_window_extent().width <= figure.bbox.width - 0.2 * figure.dpi:
            break
        legend.remove()
    return legend


def legend_height(legend: Legend, figure: Figure) -> float:
    return float(legend.get_window_extent().height / figure.dpi)


def save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError("pictures are written as PNG", got=str(path), expected="a path that ends in .png")
    with aside(path) as part:
        figure.savefig(part, format="png")
    return path
