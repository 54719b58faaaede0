"""Backbone weights from elsewhere into a fresh model, and those of a model of this package.

What kind a path is, its content says: a folder whose config.json describes a model of this package, a folder
of transformers, or else a file, whose names vit/weights.py or resnet/weights.py know. Dense weights in a
sparse model are upcycled. The decoder is never loaded: its classes are the task's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.config import from_mapping, read_json
from crossearth_sar.errors import InputError
from crossearth_sar.moe import ExpertSpec, upcycle_state_dict
from crossearth_sar.moe.expert_types import FFN
from crossearth_sar.presets import ModelConfig
from crossearth_sar.resnet.weights import read_resnet
from crossearth_sar.shipped import model_folder
from crossearth_sar.state_files import below, read_state_file, require_fit, require_state_file
from crossearth_sar.vit.weights import fit_to_config, read_vit

RANDOM = "random"
"""In place of a path: the backbone stays as it was initialised."""


def named_weights(weights: str | None) -> str | None:
    """The path that a run's `weights` names, None where it names none; looks whether weights may be there.

    Raises:
        InputError: nothing is at the path that could be weights. Nothing large is read to say so.
    """
    if weights is None or weights == RANDOM:
        return None
    path = model_folder(weights)
    if not (path / "config.json").is_file():
        require_state_file(path)
    return str(path)


def load_backbone(model: nn.Module, path: str | Path, *, expert_noise: float = 0.0, seed: int = 0) -> None:
    """Puts the weights at `path` into the backbone of `model`, and descriptor statistics if there are any.

    Patch kernel and position grid are resized to the model's. Routers are new where the weights are dense; an
    adapter of the model stays as it is where the weights have none.

    Args:
        model: a CrossEarthSAR.
        path: a .pth or .safetensors file (of a transformer DINOv2's, MAE's or timm's, of a ResNet
            torchvision's or MoCo's), a folder of transformers' Dinov2Model, or a folder of save_model.
        expert_noise, seed: see `upcycle_state_dict`; for dense weights in a sparse model only.

    Raises:
        InputError: the weights cannot be read or do not fit; every key at fault is listed.
    """
    path, config = Path(path).expanduser(), _config(model)
    own = _own_config(path)
    statistics: dict[str, dict[str, Tensor]] = {}
    if own is None:
        state = _read_foreign(path, config)
    else:
        _require_same_function(own, config, path)
        state, statistics = _read_own(path, config)
    upcycle = _upcycling(state, config, path, expert_noise, seed)
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    target = backbone.state_dict()
    with torch.device("meta"):  # shapes first, without the memory of all copies
        planned = {name: torch.empty(value.shape) for name, value in state.items()}
        planned = upcycle(planned, expert_noise=0.0) if upcycle else planned
    require_fit(planned, target, f"weights {path}", may_lack=lambda key: _may_lack(key, upcycle is not None))
    for key in list(state):
        part = {key: state.pop(key)}
        for name, value in (upcycle(part) if upcycle else part).items():
            with torch.no_grad():
                target[name].copy_(value)
    for name, values in statistics.items():
        model.get_submodule(name).load_state_dict(values)


def _read_foreign(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    if config.vit is not None:
        return read_vit(path, config.vit)
    assert config.resnet is not None, "ModelConfig has one of the two"
    return read_resnet(path, config.resnet)


def _upcycling(
    state: Mapping[str, Tensor], config: ModelConfig, path: Path, expert_noise: float, seed: int
) -> Callable[..., dict[str, Tensor]] | None:
    """What makes these weights a sparse model's; None where both are dense, or both sparse."""
    sparse_weights = any(".mlp.experts." in key for key in state)
    if config.moe is not None and not sparse_weights:
        _require_dense_activation(config.moe.expert, path)
        return partial(
            upcycle_state_dict, num_experts=config.moe.num_experts, expert=config.moe.expert,
            expert_noise=expert_noise, seed=seed,
        )  # fmt: skip
    if expert_noise:
        raise InputError(
            "expert_noise is for dense weights in a sparse model",
            got=f"{expert_noise} for {'sparse weights' if sparse_weights else 'a dense model'}",
            fix="leave it out",
        )
    return None


def _may_lack(key: str, upcycles: bool) -> bool:
    new = (".mlp.router.", ".mlp.shared.") if upcycles else ()
    return key.startswith("adapter.") or any(part in key for part in new)


def _own_config(path: Path) -> ModelConfig | None:
    """The config of a folder of this package; None for a file, or for transformers' folder."""
    if not (path / "config.json").is_file():
        return None
    mapping = read_json(path / "config.json")
    if "vit" not in mapping:
        return None
    for key in ("classes", "temperature", "input"):  # the decoder's, which is not taken, and its data
        mapping.pop(key, None)
    return from_mapping(ModelConfig, mapping)


def _read_own(path: Path, config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The backbone, and the statistics of each standardizer that `config` has and the weights too."""
    whole = read_state_file(path / "model.safetensors")
    names = ("standardizer", "local_standardizer") if config.moe and config.moe.standardize else ()
    found = {name: below(f"{name}.", whole) for name in names}
    backbone = below("backbone.", whole)
    if config.vit is not None:
        backbone = fit_to_config(backbone, config.vit)
    return backbone, {name: values for name, values in found.items() if values}


def function_of(config: ModelConfig) -> dict[str, Any]:
    """What shapes do not show, as plain data: heads, and which descriptor each router column is for."""
    said: dict[str, Any] = {"backbone": _kind(config)}
    if config.vit is not None:
        said["vit.num_heads"] = config.vit.num_heads
    if config.moe is not None:
        said["moe.descriptors"] = [*config.moe.descriptors]
        said["moe.local_physics"] = config.moe.local_physics
        said["moe.standardize"] = config.moe.standardize
        said["moe.expert"] = repr(config.moe.expert.make())
    return said


def _require_same_function(own: ModelConfig, config: ModelConfig, path: Path) -> None:
    theirs, ours = function_of(own), function_of(config)
    different = {key: (theirs[key], ours[key]) for key in theirs.keys() & ours.keys()}
    different = {key: values for key, values in sorted(different.items()) if values[0] != values[1]}
    if different:
        raise InputError(
            f"weights {path} are of a model that computes something else",
            got=", ".join(f"{key} {theirs}" for key, (theirs, _) in different.items()),
            expected=", ".join(f"{key} {ours}" for key, (_, ours) in different.items()),
        )


def _kind(config: ModelConfig) -> str:
    """What of a backbone must be the same: frozen statistics are those of a batch norm."""
    if config.resnet is None:
        return "vit"
    return "resnet with group norms" if config.resnet.norm == "group" else "resnet with batch norms"


def _require_dense_activation(expert: ExpertSpec, path: Path) -> None:
    """Dense FFNs of DINOv2 and of this package are GELU's: upcycled «ffn» experts compute what they did."""
    found = expert.make()
    if isinstance(found, FFN) and found.activation != "gelu":
        raise InputError(
            f"dense weights {path} were trained with another activation than the experts",
            got="gelu",
            expected=found.activation,
            fix="leave moe.expert.activation at its default",
        )


def _config(model: nn.Module) -> ModelConfig:
    config = model.config
    assert isinstance(config, ModelConfig), "a CrossEarthSAR has one"
    return config
