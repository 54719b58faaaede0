"""Putting an Earth-Adapter onto a model and taking it off again.

A transformer offers the slot `adapter`, called after each block with (index, tokens, grid); names and values
of the frozen weights stay as they are, and the adapter is saved with the model, whose config says so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from crossearth_sar.errors import InputError
from crossearth_sar.peft.earth_adapter import EarthAdapter, EarthAdapterConfig


def attach_earth_adapter(model: nn.Module, config: EarthAdapterConfig | None = None) -> EarthAdapter:
    """Freezes the backbone of `model` and puts a fresh adapter, which trains, onto its blocks.

    Args:
        model: a CrossEarthSAR, or a VisionTransformer alone.
        config: the adapter's; defaults to the method's (rank 64, blocks 0 to 5 split, cutoff 0.3).

    Returns:
        The adapter; `sum(p.numel() for p in adapter.parameters())` are its parameters.

    Raises:
        InputError: there is an adapter already, or the model has no slot for one.
    """
    config = config or EarthAdapterConfig()
    backbone = _backbone(model)
    if backbone.adapter is not None:
        raise InputError("the model has an adapter already", fix="detach_earth_adapter(model) first")
    adapter = EarthAdapter(backbone.config.dim, backbone.config.depth, config)
    adapter.to(backbone.cls_token)  # device and dtype
    adapter.trained_before = freeze_backbone(model)  # type: ignore[assignment]
    backbone.adapter = adapter
    _note_in_config(model, config)
    return adapter


def detach_earth_adapter(model: nn.Module) -> EarthAdapter:
    """Takes the adapter off and lets those backbone parameters train again that did before; returns it.

    The model then computes what it did before the adapter came.

    Raises:
        InputError: there is none.
    """
    backbone = _backbone(model)
    adapter = backbone.adapter
    if not isinstance(adapter, EarthAdapter):
        raise InputError("the model has no Earth-Adapter", got=type(adapter).__name__)
    backbone.adapter = None
    parameters = dict(backbone.named_parameters())
    for name in getattr(adapter, "trained_before", []):
        parameters[name].requires_grad_(True)
    _note_in_config(model, None)
    return adapter


def freeze_backbone(model: nn.Module) -> list[str]:
    """Stops gradients to the backbone, its adapter excepted; returns the names that had trained."""
    trained = []
    for name, parameter in getattr(model, "backbone", model).named_parameters():
        if not name.startswith("adapter.") and parameter.requires_grad:
            trained.append(name)
            parameter.requires_grad_(False)
    return trained


def _backbone(model: nn.Module) -> Any:
    backbone = getattr(model, "backbone", model)
    if not hasattr(backbone, "adapter"):
        raise InputError(
            "the model has no place for an adapter",
            got=type(backbone).__name__,
            expected="a CrossEarthSAR or a VisionTransformer",
        )
    return backbone


def _note_in_config(model: nn.Module, adapter: EarthAdapterConfig | None) -> None:
    """The whole model's config says what load_model must build; a bare transformer's has no such entry."""
    config: Any = getattr(model, "config", None)
    if "adapter" in {field.name for field in dataclasses.fields(config)}:
        model.config = dataclasses.replace(config, adapter=adapter)
