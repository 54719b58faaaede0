"""Which parameters of a model weight decay is for: matrices, not norms, biases, scales and embeddings."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crossearth_sar.moe.experts import ExpertParameters
from crossearth_sar.vit.block import LayerScale


def decays(module: nn.Module, name: str) -> bool:
    """Whether weight decay reaches parameter `name` of a module of this package: none on norms, biases (the
    experts' stacked ones too), LayerScale, and CLS, position, level and query embeddings."""
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | _BatchNorm | nn.Embedding | LayerScale):
        return False
    if isinstance(module, ExpertParameters):
        return name in module.decayed_parameters
    return name in ("weight", "in_proj_weight")  # every other parameter here is a bias or an embedding


def undecayed(model: nn.Module) -> set[str]:
    """The full names of the parameters that weight decay should not reach."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if not decays(module, name)
    }
