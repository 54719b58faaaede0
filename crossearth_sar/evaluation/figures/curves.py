"""Training curves: losses, learning rate, gradient norm and validation mIoU over the steps of a log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
    Floats,
    add_axes,
    draw_title,
    new_figure,
    save,
    title_height,
)


def curves_figure(
    log: Mapping[str, Sequence[float | None]],
    path: str | Path,
    title: str = "",
    *,
    validation: Mapping[str, Sequence[float | None]] | None = None,
) -> Path:
    """Training curves: loss over the full width, and below it whatever of the rest the log holds.

    Known columns: `loss`, `loss_segmentation`, `loss_balance`, `lr`, `grad_norm`, `miou` (a fraction). What
    is missing is left out; other columns are not drawn. Losses and gradient norms are drawn raw in a light
    tone and as a centred running mean in a strong one (over 1/40 of the log entries). NaN, None and inf are
    gaps; where a training value is not finite, a cross marks its step on the lower edge: a run gone wrong
    did not stop. A positive loss or norm that spans more than a factor of 30 has a logarithmic axis.

    Args:
        log: columns of equal length, one entry per logged step. `step` is the horizontal axis (without it,
            the row number). A `miou` column may be NaN where nothing was validated.
        validation: columns `step` and `miou` of the validations, if they are logged apart.

    Raises:
        InputError: for columns of unequal length, or a log with none of the known columns.
    """
    steps, columns = _columns(log, "log")
    panels = _small_panels(steps, columns, validation)
    losses = {name: values for name, values in columns.items() if name in ("loss", "loss_segmentation")}
    if not panels and not losses:
        raise InputError(
            "the log holds nothing to draw",
            got=sorted(log),
            expected="one of loss, loss_segmentation, loss_balance, lr, grad_norm, miou",
        )
    width, top = 11.0, MARGIN + title_height(title, 11.0)
    loss_height, small_height = (3.4 if losses else 0.0), (2.3 if panels else 0.0)
    height = top + (loss_height + 0.95 if losses else 0) + (small_height + 0.95 if panels else 0)
    figure = new_figure(width, height)
    draw_title(figure, title)
    if losses:
        _draw_losses(add_axes(figure, 0.8, top + 0.3, width - 1.05, loss_height), steps, losses)
        top += loss_height + 0.95
    cell = (width - 0.1) / max(1, len(panels))
    for i, (name, (x, y)) in enumerate(panels.items()):
        axes = add_axes(figure, 0.8 + i * cell, top + 0.3, cell - 0.95, small_height)
        _draw_small_panel(axes, name, x, y)
    return save(figure, path)


def _small_panels(
    steps: Floats, columns: Mapping[str, Floats], validation: Mapping[str, Sequence[float | None]] | None
) -> dict[str, tuple[Floats, Floats]]:
    """Name -> (steps, values) of what is drawn below the losses."""
    names = ("loss_balance", "lr", "grad_norm", "miou")
    panels = {name: (steps, columns[name]) for name in names if name in columns}
    if validation is not None:
        validation_steps, validation_columns = _columns(validation, "validation")
        if "miou" in validation_columns:
            panels["miou"] = (validation_steps, validation_columns["miou"])
    return panels


def _columns(log: Mapping[str, Sequence[float | None]], where: str) -> tuple[Floats, dict[str, Floats]]:
    columns = {
        name: np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)
        for name, values in log.items()
        if name in ("step", "loss", "loss_segmentation", "loss_balance", "lr", "grad_norm", "miou")
    }
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"columns of the {where} differ in length",
            got=lengths,
            expected="one length",
            fix="write NaN where a step has no value",
        )
    rows = next(iter(lengths.values()), 0)
    steps = columns.pop("step", np.arange(rows, dtype=np.float64))
    if not np.isfinite(steps).all():
        raise InputError(f"the {where} has steps that are not finite", expected="a number in every row")
    return steps, columns


def _draw_losses(axes: Axes, steps: Floats, losses: Mapping[str, Floats]) -> None:
    labels = {"loss": "loss", "loss_segmentation": "segmentation loss"}
    colors = {"loss": BLUE, "loss_segmentation": VERMILION}
    for name, values in losses.items():
        _draw_smoothed(axes, steps, values, colors[name], labels[name])
    _finish(axes, "Loss", steps, list(losses.values()))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", fontsize=10, frameon=True, framealpha=0.9, edgecolor=GRID)


def _draw_small_panel(axes: Axes, name: str, steps: Floats, values: Floats) -> None:
    if name == "miou":
        seen = np.isfinite(values)
        steps, values = steps[seen], 100 * values[seen]
        axes.plot(steps, values, color=GREEN, linewidth=1.8, marker="o", markersize=4.5)
        _finish(axes, "Validation mIoU (%)", steps, [values], may_be_log=False)
        if len(values):
            _note(axes, f"best {values.max():.1f} at step {steps[values.argmax()]:.0f}", SOFT_INK)
    elif name == "lr":
        largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
        exponent = math.floor(math.log10(largest)) if largest > 0 else 0
        scaled = np.where(np.isfinite(values), values, np.nan) / 10.0**exponent
        axes.plot(steps, scaled, color=INK, linewidth=1.8, marker="o" if len(values) == 1 else "")
        _finish(axes, f"Learning rate (1e{exponent})", steps, [scaled], may_be_log=False)
    else:
        color, label = (PURPLE, "Balance loss") if name == "loss_balance" else (BLUE, "Gradient norm")
        _draw_smoothed(axes, steps, values, color, label)
        _finish(axes, label, steps, [values])


def _draw_smoothed(axes: Axes, steps: Floats, values: Floats, color: str, label: str) -> None:
    seen = np.isfinite(values)
    if not seen.any():
        return
    raw = np.where(seen, values, np.nan)
    window = max(1, len(values) // 40) | 1
    if window == 1:
        alone = seen.sum() == 1 or len(values) < 12
        axes.plot(
            steps, raw, color=color, linewidth=1.8, marker="o" if alone else "", markersize=4.5, label=label
        )
        return
    axes.plot(steps, raw, color=color, linewidth=0.7, alpha=0.3)
    axes.plot(
        steps,
        _running_mean(raw, window),
        color=color,
        linewidth=2.0,
        label=f"{label} (mean of {window} log entries)",
    )


def _running_mean(values: Floats, window: int) -> Floats:
    """Centred mean over `window` (odd) entries, shorter at the ends; NaN is skipped, and stays."""
    seen = np.isfinite(values)
    half = window // 2
    sums = np.concatenate([[0.0], np.where(seen, values, 0.0).cumsum()])
    counts = np.concatenate([[0], seen.cumsum()])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return np.where(seen, means, np.nan)


def _finish(
    axes: Axes, label: str, steps: Floats, columns: Sequence[Floats], *, may_be_log: bool = True
) -> None:
    values = np.concatenate([column[np.isfinite(column)] for column in columns])
    broken = np.unique(np.concatenate([steps[~np.isfinite(column)] for column in columns]))
    axes.set_title(label, fontsize=10.5, color=INK, loc="left")
    axes.set_xlabel("step", fontsize=10, color=SOFT_INK)
    axes.tick_params(labelsize=9, colors=SOFT_INK, length=3)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aaaaaa")
    if may_be_log and len(values) and values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")
    bins = 8 if axes.bbox.width > 600 else 4
    axes.xaxis.set_major_locator(MaxNLocator(nbins=bins, integer=True, min_n_ticks=1))
    if len(steps) and steps.max() >= 10000:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / 1000:g}k" if step else "0"))
    if len(broken):
        axes.plot(
            broken,
            np.zeros(len(broken)),
            linestyle="",
            marker="x",
            color=VERMILION,
            markersize=6,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
        _note(axes, f"× not finite: {len(broken)} of {len(steps)}", VERMILION)
    if not len(values):
        axes.set_yticks([])
        axes.text(
            0.5,
            0.5,
            "no finite values",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=10,
            color=SOFT_INK,
        )


def _note(axes: Axes, text: str, color: str) -> None:
    axes.text(
        0.98,
        0.06,
        text,
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=9,
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )
