"""The benchmarks' pictures: bars of ratios, bars of time by stage. Drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from crossearth_sar.evaluation.figures.canvas import BLUE, GRID, INK, SOFT_INK, VERMILION, new_figure, save

STAGE_COLORS = (
    "#0072b2", "#56b4e9", "#009e73", "#a6d854", "#e69f00", "#d55e00",
    "#cc79a7", "#7570b3", "#8c564b", "#999999", "#bcbd22", "#444444",
    "#e7298a", "#17becf", "#66a61e", "#1b3a6b",
)  # fmt: skip


def ratio_figure(
    path: Path, title: str, panels: Mapping[str, Mapping[str, float]], *, label: str = "its time / ours"
) -> Path:
    """One panel per case, one bar per contender: a ratio that is above 1 where ours is the faster."""
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    bars = max(len(values) for values in panels.values())
    figure = new_figure(5.2 * columns, lines * (0.9 + 0.24 * bars) + 0.7)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, (name, values) in zip(grid.flat, panels.items(), strict=False):
        _draw_ratios(axes, name, values, label)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=12, color=INK)
    figure.tight_layout()
    return save(figure, path)


def _draw_ratios(axes: Axes, name: str, values: Mapping[str, float], label: str) -> None:
    ordered = sorted(values.items(), key=lambda item: item[1], reverse=True)
    places = range(len(ordered))
    axes.barh(
        places, [v for _, v in ordered], color=[BLUE if v >= 1 else VERMILION for _, v in ordered], height=0.7
    )
    axes.axvline(1, color=INK, linewidth=0.9)
    axes.set_yticks(places, [contender for contender, _ in ordered], fontsize=8)
    limit = max(1.2, 1.2 * max(values.values(), default=1))
    axes.set_xlim(0, limit)
    for place, (_, value) in zip(places, ordered, strict=True):
        axes.text(value + 0.01 * limit, place, f"{value:.2f}", va="center", fontsize=7, color=SOFT_INK)
    axes.set_title(name, fontsize=9, color=INK)
    axes.set_xlabel(label, fontsize=8)
    _tidy(axes)


def stage_figure(path: Path, title: str, rows: Mapping[str, Sequence[tuple[str, float]]]) -> Path:
    """One horizontal bar per row, cut into (stage, milliseconds); stages keep their colour over rows."""
    stages = list(dict.fromkeys(stage for parts in rows.values() for stage, _ in parts))
    color = {stage: STAGE_COLORS[i % len(STAGE_COLORS)] for i, stage in enumerate(stages)}
    legend = 0.25 * -(-len(stages) // 4) + 0.1  # inches
    height = 1.4 + 0.55 * len(rows) + legend
    figure = new_figure(11, height)
    axes = figure.subplots()
    for place, parts in enumerate(rows.values()):
        left, total = 0.0, sum(ms for _, ms in parts)
        for stage, ms in parts:
            axes.barh(place, ms, left=left, color=color[stage], height=0.6, edgecolor="white", linewidth=0.5)
            if total and ms > 0.05 * total:
                axes.text(
                    left + ms / 2, place, f"{ms / total:.0%}", ha="center", va="center", fontsize=8,
                    color="white",
                )  # fmt: skip
            left += ms
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("ms", fontsize=9)
    _tidy(axes)
    handles = [axes.barh(0, 0, color=color[stage], label=stage) for stage in stages]
    figure.legend(handles=handles, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=12, color=INK)
    figure.tight_layout(rect=(0, legend / height, 1, 1))
    return save(figure, path)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
