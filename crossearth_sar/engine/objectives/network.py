"""The segmentation network of a run: built in its mode, with its weights, and what of it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.peft import attach_earth_adapter, freeze_backbone
from crossearth_sar.presets import ModelConfig
from crossearth_sar.pretrained import load_backbone, named_weights


def build_network(config: RunConfig, model_config: ModelConfig, *, with_weights: bool) -> CrossEarthSAR:
    """The model as it is at step 0, in the mode of the run; `with_weights=False` leaves given weights out.

    Experts are whole: an executor takes its slices of them.
    """
    torch.manual_seed(config.seed)
    model = CrossEarthSAR(model_config)
    weights = named_weights(config.weights) if with_weights else None
    if weights is not None:
        load_backbone(model, weights, expert_noise=config.expert_noise, seed=config.seed)
    if config.mode == "earth_adapter":
        attach_earth_adapter(model, config.adapter)
    elif config.mode == "frozen":
        freeze_backbone(model)
    model.backbone.activation_checkpointing = config.parallel.activation_checkpointing
    return model


def frozen_backbone(model: nn.Module) -> set[str]:
    """Names of the backbone's parameters that get no gradient."""
    return {
        name
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.") and not parameter.requires_grad
    }


def check_weights(config: RunConfig) -> None:
    """InputError for weights that are not there, or none for a backbone that stays as it is."""
    if config.weights is None and config.mode != "full":
        raise InputError(
            f"mode {config.mode!r} freezes the backbone, and there are no weights for it",
            got="weights null",
            expected="a path: DINOv2's official file, a folder of transformers, or a model folder",
            fix="--set weights=BACKBONE; mode=full trains all; weights=random freezes it as initialised",
        )
    named_weights(config.weights)


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; `trained` counts those that get gradients."""

    backbone: int
    adapter: int
    decoder: int
    trained: int

    def __str__(self) -> str:
        total = self.backbone + self.adapter + self.decoder
        return (
            f"{self.trained:,} of {total:,} parameters train ({self.trained / total:.1%}); "
            f"backbone {self.backbone:,}, adapter {self.adapter:,}, decoder {self.decoder:,}"
        )


def count_parameters(model: CrossEarthSAR) -> ParameterCounts:
    adapter = getattr(model.backbone, "adapter", None)
    in_adapter = sum(p.numel() for p in adapter.parameters()) if adapter is not None else 0
    return ParameterCounts(
        backbone=sum(p.numel() for p in model.backbone.parameters()) - in_adapter,
        adapter=in_adapter,
        decoder=sum(p.numel() for p in model.decoder.parameters()) if model.decoder else 0,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
