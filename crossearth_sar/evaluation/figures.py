"""Report pictures as PNG: predictions beside their labels, training curves, the experts' share of the tokens.

Everything is drawn on `Figure` objects with the Agg canvas: no display, no pyplot, no rcParams changed, so
the functions may run in a training process or in threads. Sizes are worked out in inches from what is to be
shown, for text that can be read on a slide. Colours that carry meaning here are from Okabe and Ito's set,
which colour-blind readers can tell apart; class colours are the task's own palette.

Not a plotting framework: three pictures, each one call.

Shapes: C classes (and image bands, where a Sample is meant), H W pixels, L layers, E experts.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable, Sample
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.metrics import ConfusionMatrix

Color = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

DPI = 150
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a6528a"
INK, SOFT_INK, GRID = "#222222", "#666666", "#e3e3e3"
WRONG_COLOR: Color = (199, 21, 133)
RIGHT_COLOR: Color = (255, 255, 255)
STRIPE_COLORS: tuple[Color, Color] = ((244, 246, 250), (198, 208, 222))
NEUTRAL_COLORS: tuple[Color, ...] = ((212, 212, 212), (40, 40, 40), (128, 128, 128))

_MARGIN, _GAP, _HEADER = 0.25, 0.08, 0.32  # inches around the picture, between panels, above a row
_CELL_WIDTH, _CELL_HEIGHT, _MAX_RADIUS = 1.0, 0.46, 0.2  # inches of an expert's cell and largest bubble


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
        classes: names and palette of the legend and the maps.
        path: where the PNG goes; missing folders are made.
        title: above the picture; none when empty.
        band: which band of the image is drawn.
        error_map: whether the fourth panel is drawn.

    Returns:
        `path` as a Path.

    Raises:
        InputError: for no samples, another number of predictions, shapes that differ, or values that are no
            class.
    """
    if not samples or len(samples) != len(predictions):
        raise InputError(
            "samples and predictions do not fit",
            got=f"{len(samples)} samples, {len(predictions)} predictions",
            expected="as many of each, at least one",
        )
    rows = [
        _row_panels(sample, prediction, classes, band, error_map)
        for sample, prediction in zip(samples, predictions, strict=True)
    ]
    blocks = 1 if len(rows) <= 4 else 2
    rows_per_block = math.ceil(len(rows) / blocks)
    panel_width = 2.3 if blocks == 1 else 1.75
    panel_height = panel_width * min(1.6, max(0.4, max(m.shape[0] / m.shape[1] for r, _ in rows for m in r)))
    headings = ["SAR image (dB)", "Label", "Prediction", "Errors"][: len(rows[0][0])]
    block_width = len(headings) * (panel_width + _GAP) - _GAP
    width = 2 * _MARGIN + blocks * block_width + (blocks - 1) * 2 * _MARGIN

    figure = _new_figure(width, 1.0)
    legend = _fitting_legend(figure, _class_handles(samples, classes, band, error_map))
    top = _MARGIN + _title_height(title, width) + 0.15
    height = top + rows_per_block * (_HEADER + panel_height) + 0.15 + _height_of(legend, figure) + 0.1
    figure.set_size_inches(width, height)
    _draw_title(figure, title)
    for i, (panels, score) in enumerate(rows):
        block, row = divmod(i, rows_per_block)
        left = _MARGIN + block * (block_width + 2 * _MARGIN)
        row_top = top + row * (_HEADER + panel_height)
        _draw_row_header(figure, left, row_top + _HEADER - 0.08, block_width, samples[i]["name"], score)
        for column, panel in enumerate(panels):
            axes = _add_axes(
                figure, left + column * (panel_width + _GAP), row_top + _HEADER, panel_width, panel_height
            )
            _show(axes, panel, smooth=column == 0)
            if row == 0:
                _text(
                    figure,
                    left + column * (panel_width + _GAP) + panel_width / 2,
                    top,
                    headings[column],
                    size=11,
                    weight="bold",
                    ha="center",
                )
    return _save(figure, path)


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
    gaps; where a training value is not finite, a cross marks its step on the lower edge, so that a run that
    went wrong does not look as if it had stopped. A loss or norm that is positive and spans more than a
    factor of 30 is drawn on a logarithmic axis.

    Args:
        log: columns of equal length, one entry per logged step. `step` is the horizontal axis (without it,
            the row number). A `miou` column may be NaN where nothing was validated.
        path: where the PNG goes; missing folders are made.
        title: above the picture; none when empty.
        validation: columns `step` and `miou` of the validations, if they are logged apart.

    Raises:
        InputError: for columns of unequal length, or a log with none of the known columns.
    """
    steps, columns = _columns(log, "log")
    panels = {
        name: (steps, columns[name])
        for name in ("loss_balance", "lr", "grad_norm", "miou")
        if name in columns
    }
    if validation is not None:
        validation_steps, validation_columns = _columns(validation, "validation")
        if "miou" in validation_columns:
            panels["miou"] = (validation_steps, validation_columns["miou"])
    losses = {name: values for name, values in columns.items() if name in ("loss", "loss_segmentation")}
    if not panels and not losses:
        raise InputError(
            "the log holds nothing to draw",
            got=sorted(log),
            expected="one of loss, loss_segmentation, loss_balance, lr, grad_norm, miou",
        )

    width, top = 11.0, _MARGIN + _title_height(title, 11.0)
    loss_height, small_height = (3.4 if losses else 0.0), (2.3 if panels else 0.0)
    height = top + (loss_height + 0.95 if losses else 0) + (small_height + 0.95 if panels else 0)
    figure = _new_figure(width, height)
    _draw_title(figure, title)
    if losses:
        _draw_losses(_add_axes(figure, 0.8, top + 0.3, width - 1.05, loss_height), steps, losses)
        top += loss_height + 0.95
    cell = (width - 0.1) / max(1, len(panels))
    for i, (name, (x, y)) in enumerate(panels.items()):
        axes = _add_axes(figure, 0.8 + i * cell, top + 0.3, cell - 0.95, small_height)
        _draw_small_panel(axes, name, x, y)
    return _save(figure, path)


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
    table = _checked_share(share)
    layers, experts = table.shape
    blocks = 1 if layers <= 12 else 2
    rows_per_block = math.ceil(layers / blocks)
    block_width = 0.55 + experts * _CELL_WIDTH + 0.85
    block_height = 0.4 + rows_per_block * _CELL_HEIGHT
    width = max(4.8, blocks * block_width + (blocks - 1) * _MARGIN + 2 * _MARGIN)
    # A share this large has the largest radius; at least 2/E, so that an even load does not fill the cells.
    full = max(float(table.max()), min(1.0, 2 / experts))

    figure = _new_figure(width, 1.0)
    legend = _fitting_legend(figure, _share_handles(experts))
    top = _MARGIN + _title_height(title, width)
    figure.set_size_inches(width, top + block_height + 0.2 + _height_of(legend, figure) + 0.1)
    _draw_title(figure, title)
    total_width = blocks * block_width + (blocks - 1) * _MARGIN
    for block in range(blocks):
        left = (width - total_width) / 2 + block * (block_width + _MARGIN)
        axes = _add_axes(figure, left, top, block_width, block_height)
        axes.set_xlim(0, block_width)  # data units are inches: circles are round, radii are lengths
        axes.set_ylim(block_height, 0)
        axes.axis("off")
        first = block * rows_per_block
        _draw_shares(axes, table[first : first + rows_per_block], first, full)
    return _save(figure, path)


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
    panels = [_gray_db(image[band], mask), colorize(mask, classes), colorize(prediction, classes)]
    if error_map:
        errors = np.array([RIGHT_COLOR, WRONG_COLOR], dtype=np.uint8)[(prediction != mask).long().numpy()]
        errors[(mask == IGNORE_INDEX).numpy()] = neutral_color(classes.palette)
        panels.append(errors)
    return panels, matrix.scores().miou


def _gray_db(amplitude: Tensor, mask: Tensor) -> Pixels:
    values = amplitude.double().numpy()
    positive = values > 0
    gray = np.zeros(values.shape)
    if positive.any():
        db = 20 * np.log10(values[positive])
        low, high = np.percentile(db, (2, 98))
        gray[positive] = np.clip((db - low) / (high - low), 0, 1) if high > low else 0.5
    pixels = np.repeat((gray * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    nodata = _nodata(amplitude, mask)
    y, x = np.indices(values.shape)
    period = max(2, max(values.shape) // 48)
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
    _text(figure, left + width, baseline, text, size=10, ha="right")
    _text(figure, left, baseline, _shortened(name, int((width - 1.2) / 0.085)), size=10, color=SOFT_INK)


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


def _checked_share(share: Tensor) -> Floats:
    if share.ndim != 2 or share.numel() == 0:
        raise InputError(
            "share does not fit", got=f"shape {tuple(share.shape)}", expected="(layers, experts)"
        )
    table = share.detach().cpu().double().numpy()
    if not np.isfinite(table).all() or (table < 0).any():
        raise InputError(
            "share has entries that are no shares",
            got=f"from {table.min()} to {table.max()}",
            expected="finite values in 0..1",
        )
    off = np.abs(table.sum(1) - 1) > 0.01
    if off.any():
        raise InputError(
            "rows of share do not sum to 1",
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


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, `top` counted from the upper edge."""
    full_width, full_height = figure.get_size_inches()
    return figure.add_axes(
        (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    )


def _text(
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


def _title_lines(title: str, width: float) -> list[str]:
    return textwrap.wrap(title, max(10, int((width - 2 * _MARGIN) / 0.125)))


def _title_height(title: str, width: float) -> float:
    return 0.3 * len(_title_lines(title, width)) + (0.1 if title else 0.0)


def _draw_title(figure: Figure, title: str) -> None:
    width = figure.get_size_inches()[0]
    for i, line in enumerate(_title_lines(title, width)):
        _text(figure, width / 2, _MARGIN + 0.15 + 0.3 * i, line, size=14, ha="center", weight="bold")


def _fitting_legend(figure: Figure, handles: list[Artist]) -> Legend:
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


def _height_of(legend: Legend, figure: Figure) -> float:
    return float(legend.get_window_extent().height / figure.dpi)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError("pictures are written as PNG", got=str(path), expected="a path that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path
