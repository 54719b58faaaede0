"""Experts against domains: which experts the tokens of each domain go to, in one picture.

A line a domain, a block of cells a layer, a cell an expert. Experts that serve a domain of their own show as
cells whose colour differs down a column; how much they differ is measured in bits (`divergence_bits`).

Shapes: G domains, L layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.canvas import (
    BLUE,
    INK,
    MARGIN,
    SOFT_INK,
    VERMILION,
    Floats,
    add_axes,
    draw_text,
    draw_title,
    new_figure,
    save,
    title_height,
)
from crossearth_sar.evaluation.figures.shares import checked_share

# Inches.
_LINE = 0.23  # height of a domain's cells
_WIDEST, _NARROWEST = 0.36, 0.125  # of a cell
_PRINTED = 0.27  # cells from this width on carry their share in percent
_BLOCKS = 10.2  # what the blocks of a strip may take together
_GAP = 0.1  # between blocks
_END = 0.85  # the column of bits
_HEAD, _FOOT = 0.5, 0.42  # above and below the cells of a strip
_SCALE, _SCALE_HEIGHT = 2.6, 0.8  # the colours' legend
_CHARACTER = 0.076  # of a label

COLORS = LinearSegmentedColormap.from_list(
    "less_even_more", ["#6b2a00", VERMILION, "#f6c9a2", "#ffffff", "#a9d3ec", BLUE, "#002a45"]
)
"""Less than an even share, even, more: two hues that colour-blind readers tell apart, darker to the ends."""


def divergence_bits(share_GLE: Tensor) -> Tensor:
    """(G, L): how far each domain's shares are from the mean over the domains, in bits.

    The Kullback-Leibler divergence from that mean. Its own mean over the domains is their Jensen-Shannon
    divergence, which is also what the expert of a token tells about its domain (mutual information, domains
    counted alike): 0 when all domains use the experts alike, log2 G when none shares an expert with another.

    Args:
        share_GLE: shares that sum to 1 over the experts.
    """
    share_GLE = share_GLE.double()
    ratio = share_GLE / share_GLE.mean(0).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.xlogy(share_GLE, ratio).sum(-1).clamp(min=0) / math.log(2)


def expert_domain_figure(shares: Mapping[str, Tensor], path: str | Path, title: str = "") -> Path:
    """A heat map of shares of tokens: lines are domains, blocks are layers, cells are experts.

    The colour of a cell is its share against the even share 1/E, on a logarithmic scale: white is even, blue
    more, orange less. Cells wide enough carry the share in percent. At the end of a line stands the domain's
    divergence from the mean of the domains in bits, averaged over layers; under a block, the divergence of
    that layer averaged over domains; in the corner the mean of all. Layers and experts are numbered from 0.
    Layers that do not fit side by side continue in a further strip.

    Args:
        shares: label of a domain -> (L, E), as `expert_share_figure` takes them; one L and E for all.
        path: where the PNG goes; missing folders are made.
        title: above the picture; none when empty.

    Raises:
        InputError: for no domain, tables of different shapes, or one that holds no shares.
    """
    table_GLE = _checked_tables(shares)
    layout = _layout(tuple(shares), *table_GLE.shape)
    divergence_GL = divergence_bits(torch.from_numpy(table_GLE)).numpy()
    top = MARGIN + title_height(title, layout.width)
    height = top + len(layout.strips) * layout.strip_height + _SCALE_HEIGHT
    figure = new_figure(layout.width, height)
    draw_title(figure, title)
    limit = _color_limit(table_GLE)
    for number, layers in enumerate(layout.strips):
        strip_top = top + number * layout.strip_height
        _draw_strip_heads(figure, layout, strip_top, layers)
        _draw_strip(figure, layout, strip_top, layers, table_GLE, limit)
        _draw_layer_bits(figure, layout, strip_top, layers, divergence_GL)
        if number == len(layout.strips) - 1:
            _draw_domain_bits(figure, layout, strip_top, len(layers), divergence_GL)
    for line, text in enumerate(_legend(*table_GLE.shape)):
        y = height - _SCALE_HEIGHT + 0.23 + 0.2 * line
        draw_text(figure, layout.left + _SCALE + 0.3, y, text, size=9, color=SOFT_INK)
    _draw_scale(figure, layout.left, height - _SCALE_HEIGHT + 0.1, limit)
    return save(figure, path)


@dataclass(frozen=True)
class _Layout:
    """Where things are, in inches from the left edge; strips are ranges of layers."""

    labels: tuple[str, ...]
    experts: int
    cell: float
    left: float
    width: float
    strips: tuple[range, ...]

    @property
    def block(self) -> float:
        return self.experts * self.cell

    @property
    def strip_height(self) -> float:
        return _HEAD + len(self.labels) * _LINE + _FOOT

    def block_left(self, position: int) -> float:
        return self.left + position * (self.block + _GAP)

    def baseline(self, top: float, line: int) -> float:
        """Of a label's text, from the upper edge of its strip."""
        return top + _HEAD + (line + 0.68) * _LINE

    def foot(self, top: float) -> float:
        return top + _HEAD + len(self.labels) * _LINE + 0.2


def _layout(labels: tuple[str, ...], domains: int, layers: int, experts: int) -> _Layout:
    fitting = max(1, int((_BLOCKS + _GAP) / (experts * _NARROWEST + _GAP)))
    count = math.ceil(layers / fitting)
    each = math.ceil(layers / count)
    cell = min(_WIDEST, max(_NARROWEST, (_BLOCKS - (each - 1) * _GAP) / (each * experts)))
    left = MARGIN + _CHARACTER * max(len(label) for label in (*labels, "bits per layer")) + 0.15
    blocks = left + each * (experts * cell + _GAP) + _END
    legend = left + _SCALE + 0.3 + _CHARACTER * max(map(len, _legend(domains, layers, experts)))
    strips = tuple(range(first, min(first + each, layers)) for first in range(0, layers, each))
    return _Layout(labels, experts, cell, left, max(blocks, legend) + MARGIN, strips)


def _legend(domains: int, layers: int, experts: int) -> tuple[str, str]:
    return (
        f"share of tokens against an even one, {100 / experts:.1f} %",
        f"bits: from the mean of the domains; 0 where all are alike, at most {math.log2(domains):.2g}",
    )


def _checked_tables(shares: Mapping[str, Tensor]) -> Floats:
    if not shares:
        raise InputError("no domain to draw", got="0 domains", expected="one or more")
    shapes = {label: tuple(share.shape) for label, share in shares.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(
            "the domains' shares differ in shape",
            got="; ".join(f"{label}: {shape}" for label, shape in shapes.items()),
            expected="one (layers, experts) for all",
            fix="draw models of different depth or number of experts apart",
        )
    return np.stack([checked_share(share, f"share of {label!r}") for label, share in shares.items()])


def _color_limit(table_GLE: Floats) -> float:
    """Where the scale ends, as log2 of the share against an even one: 1 unless that cuts something off."""
    ratio = table_GLE * table_GLE.shape[2]
    return 1.0 if ratio.min() >= 0.5 and ratio.max() <= 2 else 2.0


def _tones(ratio: Floats, limit: float) -> Floats:
    """0..1 along COLORS; a share of 0 is at the lower end."""
    with np.errstate(divide="ignore"):
        return (np.clip(np.log2(ratio), -limit, limit) / limit + 1) / 2


def _draw_strip_heads(figure: Figure, layout: _Layout, top: float, layers: range) -> None:
    words = (("layer", top + 0.22), ("expert", top + 0.42), ("bits per layer", layout.foot(top)))
    for word, y in words:
        draw_text(figure, layout.left - 0.1, y, word, size=9, ha="right", color=SOFT_INK)
    for line, label in enumerate(layout.labels):
        draw_text(figure, layout.left - 0.1, layout.baseline(top, line), label, size=9, ha="right")
    numbered = 1 if layout.experts <= 10 or layout.cell >= _PRINTED else 5
    for position, layer in enumerate(layers):
        x = layout.block_left(position)
        draw_text(figure, x + layout.block / 2, top + 0.22, str(layer), size=9, ha="center", weight="bold")
        for expert in range(0, layout.experts, numbered):
            centre = x + (expert + 0.5) * layout.cell
            draw_text(figure, centre, top + 0.42, str(expert), size=8, ha="center", color=SOFT_INK)


def _draw_strip(
    figure: Figure, layout: _Layout, top: float, layers: range, table_GLE: Floats, limit: float
) -> None:
    height = len(layout.labels) * _LINE
    for position, layer in enumerate(layers):
        axes = add_axes(figure, layout.block_left(position), top + _HEAD, layout.block, height)
        _draw_block(axes, table_GLE[:, layer], limit, printed=layout.cell >= _PRINTED)


def _draw_layer_bits(
    figure: Figure, layout: _Layout, top: float, layers: range, divergence_GL: Floats
) -> None:
    for position, bits in enumerate(divergence_GL[:, layers.start : layers.stop].mean(0)):
        centre = layout.block_left(position) + layout.block / 2
        draw_text(figure, centre, layout.foot(top), f"{bits:.3f}", size=9, ha="center")


def _draw_domain_bits(
    figure: Figure, layout: _Layout, top: float, blocks: int, divergence_GL: Floats
) -> None:
    centre = layout.block_left(blocks) - _GAP + _END / 2 + 0.05
    draw_text(figure, centre, top + 0.22, "bits,", size=9, ha="center", color=SOFT_INK)
    draw_text(figure, centre, top + 0.42, "all layers", size=9, ha="center", color=SOFT_INK)
    for line, bits in enumerate(divergence_GL.mean(1)):
        draw_text(figure, centre, layout.baseline(top, line), f"{bits:.3f}", size=9, ha="center")
    total = f"{divergence_GL.mean():.3f}"
    draw_text(figure, centre, layout.foot(top), total, size=9, ha="center", weight="bold")


def _draw_block(axes: Axes, share_GE: Floats, limit: float, *, printed: bool) -> None:
    domains, experts = share_GE.shape
    tones = _tones(share_GE * experts, limit)
    axes.pcolormesh(tones, cmap=COLORS, vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
    axes.set_xlim(0, experts)
    axes.set_ylim(domains, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    _thin_frame(axes)
    if not printed:
        return
    for line in range(domains):
        for expert in range(experts):
            axes.text(
                expert + 0.5,
                line + 0.53,
                f"{100 * share_GE[line, expert]:.0f}",
                fontsize=8,
                ha="center",
                va="center",
                color=_ink_on(COLORS, tones[line, expert]),
            )


def _ink_on(colors: Colormap, tone: float) -> str:
    red, green, blue, _ = colors(tone)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def _draw_scale(figure: Figure, left: float, top: float, limit: float) -> None:
    axes = add_axes(figure, left, top, _SCALE, 0.16)
    axes.pcolormesh(np.linspace(0, 1, 256)[None], cmap=COLORS, vmin=0, vmax=1)
    axes.set_yticks([])
    steps = np.linspace(-limit, limit, 5)
    names = [f"×{2**step:.2g}" for step in steps]
    names[0], names[-1] = f"≤ {names[0]}", f"≥ {names[-1]}"
    axes.set_xticks((steps / limit + 1) * 128, labels=names, fontsize=8, color=INK)
    axes.tick_params(length=2, color=SOFT_INK, pad=2)
    _thin_frame(axes)


def _thin_frame(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color("#999999")
