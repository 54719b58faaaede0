"""Scores of several models over many benchmarks as a radar chart: a spoke a benchmark, a line a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.canvas import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MARGIN,
    PURPLE,
    SOFT_INK,
    VERMILION,
    draw_title,
    fitting_legend,
    legend_height,
    new_figure,
    save,
    title_height,
)

_SIDE = 5.6  # inches of the chart itself
_STRONG = (VERMILION, BLUE, GREEN, PURPLE)


def radar_figure(
    spokes: Sequence[str],
    scores: Mapping[str, Mapping[str, float]],
    path: str | Path,
    title: str = "",
    *,
    reference: Sequence[str] = (),
) -> Path:
    """One closed line per model; every spoke runs from 0 in the middle to the largest score on it.

    Spokes are scaled one by one, because benchmarks differ in difficulty by a factor of five; the largest
    score is printed at each spoke's end. A model without a score on a spoke has a gap there.

    Args:
        spokes: benchmark keys, clockwise from the top; at least three.
        scores: model -> benchmark -> percent; NaN as a missing one.
        reference: names among `scores` that are drawn dashed, for instance published figures.

    Raises:
        InputError: for fewer than three spokes, no model, or a score that is negative.
    """
    table = _table(spokes, scores)
    largest = np.array([np.nanmax(column) if np.isfinite(column).any() else 1.0 for column in table.T])
    angles = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)

    width = _SIDE + 2 * MARGIN + 1.2
    figure = new_figure(width, 1.0)
    handles = _handles(tuple(scores), reference)
    legend = fitting_legend(figure, list[Artist](handles))
    top = MARGIN + title_height(title, width) + 0.55
    height = top + _SIDE + 0.55 + legend_height(legend, figure) + 0.1
    figure.set_size_inches(width, height)
    draw_title(figure, title)
    box = (0.5 - _SIDE / 2 / width, 1 - (top + _SIDE) / height, _SIDE / width, _SIDE / height)
    axes = figure.add_axes(box, projection="polar")
    labels = [f"{spoke}\n{value:.1f}" for spoke, value in zip(spokes, largest, strict=True)]
    _draw_web(axes, angles, labels)
    for handle, row in zip(handles, table, strict=True):
        _draw_line(axes, angles, row / np.maximum(largest, 1e-9), handle)
    return save(figure, path)


def _draw_line(axes: Axes, angles: np.ndarray, share: np.ndarray, like: Line2D) -> None:
    axes.plot(
        np.append(angles, 2 * np.pi),
        np.append(share, share[0]),
        color=like.get_color(),
        linestyle=like.get_linestyle(),
        linewidth=like.get_linewidth(),
        marker="o",
        markersize=3,
    )


def _table(spokes: Sequence[str], scores: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """(models, spokes), NaN where a model has no score."""
    if len(spokes) < 3 or not scores:
        raise InputError(
            "nothing to draw a radar chart of",
            got=f"{len(spokes)} spokes, {len(scores)} models",
            expected="at least three spokes and one model",
        )
    table = np.array(
        [[mine.get(spoke, math.nan) for spoke in spokes] for mine in scores.values()], dtype=float
    )
    if (table < 0).any():
        raise InputError("a score is negative", got=float(np.nanmin(table)), expected="percent, 0 or more")
    return table


def _draw_web(axes: Axes, angles: np.ndarray, labels: Sequence[str]) -> None:
    axes.set_theta_zero_location("N")  # type: ignore[attr-defined]
    axes.set_theta_direction(-1)  # type: ignore[attr-defined]
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], labels=[])
    axes.set_xticks(angles, labels=labels, fontsize=9, color=INK)
    axes.tick_params(axis="x", pad=9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines["polar"].set_color(GRID)


def _handles(names: Sequence[str], reference: Sequence[str]) -> list[Line2D]:
    own = [name for name in names if name not in reference]
    handles: list[Line2D] = []
    for name in names:
        if name in reference:
            tone = (
                SOFT_INK if list(reference).index(name) == 0 else _STRONG[1 + list(reference).index(name) % 3]
            )
            handles.append(Line2D([], [], color=tone, linestyle="--", linewidth=1.3, label=name))
        else:
            color = _STRONG[own.index(name) % len(_STRONG)]
            handles.append(Line2D([], [], color=color, linestyle="-", linewidth=2.2, label=name))
    return handles
