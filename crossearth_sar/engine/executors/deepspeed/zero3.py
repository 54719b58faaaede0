"""What ZeRO 3 must be told about our modules.

DeepSpeed gathers a module's parameters again for its backward pass when a gradient reaches one of its
outputs, which it finds in tensors, tuples, lists and dicts only. Our modules return dataclasses: they are
opened into dicts before DeepSpeed's forward hook and closed after it. And a MoE layer is gathered whole, so
that a backend may read the experts' weights wherever it likes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from crossearth_sar.decoder import Decoder
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.moe.layer import PhysicsGuidedMoE
from crossearth_sar.resnet import ResNet
from crossearth_sar.vit import VisionTransformer


class _Opened(dict[str, Any]):
    """The fields of a dataclass; DeepSpeed replaces the values in place."""

    kind: type


def before_engine(model: nn.Module) -> None:
    """To be called before deepspeed.initialize; `after_engine` completes it."""
    from deepspeed.utils import set_z3_leaf_modules

    if any(isinstance(module, PhysicsGuidedMoE) for module in model.modules()):
        set_z3_leaf_modules(model, [PhysicsGuidedMoE])
    for module in _returning_dataclasses(model):
        module.register_forward_hook(lambda module, inputs, output: _open(output))


def after_engine(model: nn.Module) -> None:
    """To be called after deepspeed.initialize, whose hooks lie between the two."""
    for module in _returning_dataclasses(model):
        module.register_forward_hook(lambda module, inputs, output: _close(output))


def _returning_dataclasses(model: nn.Module) -> list[nn.Module]:
    kinds = PhysicsGuidedMoE | VisionTransformer | ResNet | Decoder | CrossEarthSAR
    return [module for module in model.modules() if isinstance(module, kinds)]


def _open(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_open(item) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    opened = _Opened({f.name: _open(getattr(value, f.name)) for f in dataclasses.fields(value)})
    opened.kind = type(value)
    return opened


def _close(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_close(item) for item in value)
    if not isinstance(value, _Opened):
        return value
    return value.kind(**{name: _close(item) for name, item in value.items()})
