"""How the experts of every layer share the tokens, as bubbles.

Shapes: L layers, E experts.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.canvas import (
    BLUE,
    GRID,
    INK,
    MARGIN,
    SOFT_INK,
    VERMILION,
    Floats,
    add_axes,
    draw_title,
    fitting_legend,
    legend_height,
    new_figure,
    save,
    title_height,
)

_CELL_WIDTH, _CELL_HEIGHT, _MAX_RADIUS = 1.0, 0.46, 0.2  # inches of an expert's cell and largest bubble


def expert_share_figure(share: Tensor, path: str | Path, title: str = "") -> Path:
    """Bubbles of the share of tokens per expert (columns) and layer (rows), shares printed in percent.

    The area of a bubble is proportional to the share; the ring around the same centre is the uniform share
    1/E. A filled bubble in the strong tone has more than that, one in the light tone less; an expert that
    rounds to 0.0 % is printed in vermilion. At the end of a row stands the effective number of experts,
    exp(entropy of the row): E when the load is even, 1 when one expert takes all. Layers and experts are
    numbered from 0, as in the model. More than 12 layers are set in two columns.

    Args:
        share: (L, E), each row the shares of one layer, summing to 1 (`RoutingInfo.expert_fraction`, averaged
            over a data set).
        path: where the PNG goes; missing folders are made.
        title: above the picture; none when empty.

    Raises:
        InputError: for another shape, negative or non-finite shares, or rows that do not sum to 1.
    """
    table = checked_share(share)
    layers, experts = table.shape
    blocks = 1 if layers <= 12 else 2
    rows_per_block = math.ceil(layers / blocks)
    block_width = 0.55 + experts * _CELL_WIDTH + 0.85
    block_height = 0.4 + rows_per_block * _CELL_HEIGHT
    width = max(4.8, blocks * block_width + (blocks - 1) * MARGIN + 2 * MARGIN)
    # A share this large has the largest radius; at least 2/E, so that an even load does not fill the cells.
    full = max(float(table.max()), min(1.0, 2 / experts))

    figure = new_figure(width, 1.0)
    legend = fitting_legend(figure, _share_handles(experts))
    top = MARGIN + title_height(title, width)
    figure.set_size_inches(width, top + block_height + 0.2 + legend_height(legend, figure) + 0.1)
    draw_title(figure, title)
    total_width = blocks * block_width + (blocks - 1) * MARGIN
    for block in range(blocks):
        left = (width - total_width) / 2 + block * (block_width + MARGIN)
        axes = add_axes(figure, left, top, block_width, block_height)
        axes.set_xlim(0, block_width)  # data units are inches: circles are round, radii are lengths
        axes.set_ylim(block_height, 0)
        axes.axis("off")
        first = block * rows_per_block
        _draw_shares(axes, table[first : first + rows_per_block], first, full)
    return save(figure, path)


def checked_share(share: Tensor, name: str = "share") -> Floats:
    """(L, E) as float64, or an InputError that names what is wrong with `name`."""
    if share.ndim != 2 or share.numel() == 0:
        raise InputError(
            f"{name} does not fit", got=f"shape {tuple(share.shape)}", expected="(layers, experts)"
        )
    table = share.detach().cpu().double().numpy()
    if not np.isfinite(table).all() or (table < 0).any():
        raise InputError(
            f"{name} has entries that are no shares",
            got=f"from {table.min()} to {table.max()}",
            expected="finite values in 0..1",
        )
    off = np.abs(table.sum(1) - 1) > 0.01
    if off.any():
        raise InputError(
            f"rows of {name} do not sum to 1",
            got=f"layer {off.argmax()}: {table.sum(1)[off][0]}",
            expected="1 in every layer",
            fix="divide the token counts by their sum per layer",
        )
    return table


def _draw_shares(axes: Axes, table: Floats, first_layer: int, full: float) -> None:
    experts = table.shape[1]
    ring = _MAX_RADIUS * math.sqrt(1 / experts / full)
    end = 0.55 + experts * _CELL_WIDTH
    for expert in range(experts):
        axes.text(
            0.55 + (expert + 0.5) * _CELL_WIDTH,
            0.15,
            f"expert {expert}",
            fontsize=10,
            ha="center",
            va="center",
            color=INK,
        )
    axes.text(0.45, 0.15, "layer", fontsize=10, ha="right", va="center", color=INK)
    axes.text(end + 0.42, 0.15, "effective", fontsize=10, ha="center", va="center", color=SOFT_INK)
    for row, shares in enumerate(table):
        y = 0.4 + (row + 0.5) * _CELL_HEIGHT
        axes.plot([0.1, end + 0.8], [y - _CELL_HEIGHT / 2] * 2, color=GRID, linewidth=0.7, zorder=0)
        axes.text(0.45, y, str(first_layer + row), fontsize=10, ha="right", va="center", color=INK)
        positive = shares[shares > 0]
        effective = math.exp(-float((positive * np.log(positive)).sum()))
        axes.text(end + 0.42, y, f"{effective:.1f}", fontsize=10, ha="center", va="center", color=SOFT_INK)
        for expert, value in enumerate(shares):
            x = 0.55 + expert * _CELL_WIDTH + 0.28
            strong = value >= 1 / experts - 1e-6  # a uniform float32 share is not quite 1/E
            axes.add_patch(
                Circle(
                    (x, y),
                    _MAX_RADIUS * math.sqrt(value / full),
                    linewidth=0,
                    facecolor=BLUE if strong else "#8fc3e3",
                )
            )
            axes.add_patch(Circle((x, y), ring, fill=False, edgecolor=INK, linewidth=0.9))
            axes.text(
                x + 0.25,
                y,
                f"{100 * value:.1f} %",
                fontsize=9,
                va="center",
                color=VERMILION if value < 0.0005 else INK,
            )


def _share_handles(experts: int) -> list[Artist]:
    def dot(color: str, edge: str, label: str) -> Line2D:
        return Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=9,
            markerfacecolor=color,
            markeredgecolor=edge,
            label=label,
        )

    uniform = f"{100 / experts:.1f} %"
    return [
        dot(BLUE, BLUE, f"{uniform} of tokens or more"),
        dot("#8fc3e3", "#8fc3e3", "less"),
        dot("none", INK, f"uniform share ({uniform})"),
        dot("none", "none", "effective: exp(entropy of the row)"),
    ]
