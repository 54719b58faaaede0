"""Which parameters of a MoE layer are biases, for optimizers that tell them by their number of axes."""

from __future__ import annotations

from torch import nn

from crossearth_sar.moe.experts import ExpertParameters


def stacked_biases(model: nn.Module) -> set[str]:
    """The full names of the experts' biases in a model, or in a wrapper of one: stacked, (E, width).

    Rules that decay whatever has two axes (timm's, nanoGPT's) or hand it to Muon would take them for
    matrices; rules that look for "bias" in a name do not find it in `b1`.
    """
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, ExpertParameters)
        for name in set(module.parameter_names) - module.decayed_parameters
    }
