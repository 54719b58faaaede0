"""Report pictures as PNG: predictions beside their labels, training curves, the experts' share of the tokens
per layer and, side by side, per domain.

Everything is drawn on `Figure` objects with the Agg canvas: no display, no pyplot, no rcParams changed, so
the functions may run in a training process or in threads. Not a plotting framework: a few pictures, each
one call.
"""

from crossearth_sar.evaluation.figures.curves import curves_figure
from crossearth_sar.evaluation.figures.domains import divergence_bits, expert_domain_figure
from crossearth_sar.evaluation.figures.predictions import colorize, neutral_color, prediction_figure
from crossearth_sar.evaluation.figures.shares import expert_share_figure

__all__ = [
    "colorize",
    "curves_figure",
    "divergence_bits",
    "expert_domain_figure",
    "expert_share_figure",
    "neutral_color",
    "prediction_figure",
]
