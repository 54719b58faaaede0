"""A checkpoint, or a run's newest or best, as a model folder.

Needs neither DeepSpeed nor a GPU: weights on disk are whole, whatever ranks wrote them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from crossearth_sar.config import from_mapping
from crossearth_sar.engine.checkpoint import fingerprint, load_weights
from crossearth_sar.engine.checkpoint_files import (
    check_intact,
    list_checkpoints,
    read_state,
    weights_file,
)
from crossearth_sar.engine.checkpoint_state import STATE_FILE, step_name
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.objectives.network import build_network, frozen_backbone
from crossearth_sar.engine.planning.layout import run_model_config
from crossearth_sar.engine.resume import best_of
from crossearth_sar.errors import InputError
from crossearth_sar.input_contract import checked_contract
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE, CrossEarthSAR, load_model, save_model
from crossearth_sar.selfsup.di3cl import ENCODER_PREFIX


def find(path: Path, *, best: bool) -> Path:
    """The checkpoint that `path` is, or the newest or best of the run that it holds."""
    if (path / STATE_FILE).is_file():
        if best:
            raise InputError("--best is for a run's folder", got=f"the checkpoint {path}")
        return path
    existing = list_checkpoints(path / "checkpoints") or list_checkpoints(path)
    if not existing:
        raise InputError(
            f"no checkpoint in {path}",
            expected=f"a folder with {STATE_FILE}, or a run's folder with checkpoints/step-…",
        )
    newest = existing[-1]
    if not best:
        return newest
    found = best_of(read_state(newest), newest.parent)
    if found is None:
        raise InputError(f"{path} has no validated checkpoint yet", fix="leave --best out for the newest")
    return newest.parent / step_name(int(found["step"]))


def export(checkpoint: Path, out: Path, *, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    """Checks the checkpoint's weights against their checksums and writes the whole model for `load_model`.

    Raises:
        InputError: for a damaged checkpoint, an `out` that holds a model already, or frozen weights that are
            no longer where the run took them.
    """
    state = read_state(checkpoint)
    selfsup = state["run"].get("selfsup") is not None
    for name in (weights_file(state), *([] if selfsup else [CONFIG_FILE])):
        check_intact(checkpoint, name, state)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if (out / name).exists():
            raise InputError(
                f"{out} holds a model already", got=name, fix="give another folder, or remove it"
            )
    model = _whole(checkpoint, state)
    parameters = {name for name, _ in model.named_parameters()}
    weights = {n: v.to(dtype) if n in parameters else v for n, v in model.state_dict().items()}
    save_model(model, out, weights=weights)
    return state


def _whole(checkpoint: Path, state: dict[str, Any]) -> CrossEarthSAR:
    if state["run"].get("selfsup") is not None:
        return _backbone(checkpoint, state)
    return _with_frozen(checkpoint, state) if state.get("frozen") else load_model(checkpoint)


def _backbone(checkpoint: Path, state: dict[str, Any]) -> CrossEarthSAR:
    """The query network's encoder of a self-supervised run."""
    model = CrossEarthSAR(run_model_config(from_mapping(RunConfig, state["run"]), num_classes=1))
    weights = load_file(checkpoint / weights_file(state))
    model.load_state_dict(
        {k.removeprefix(ENCODER_PREFIX): v for k, v in weights.items() if k.startswith(ENCODER_PREFIX)}
    )
    return model


def _with_frozen(checkpoint: Path, state: dict[str, Any]) -> CrossEarthSAR:
    """The network of a run that froze a part of it: that part from where the run took it."""
    config = from_mapping(RunConfig, state["run"])
    mapping = json.loads((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))
    model_config = run_model_config(config, num_classes=int(mapping["num_classes"]))
    model = build_network(config, model_config, with_weights=True)
    model.name_classes(mapping["classes"]["names"], mapping["classes"]["palette"])
    model.contract = checked_contract(mapping.get("input"), checkpoint / CONFIG_FILE)
    found = fingerprint((n, p) for n, p in model.named_parameters() if n in frozen_backbone(model))
    if found != state["frozen"]:
        raise InputError(
            f"{checkpoint} belongs to other frozen weights than those at {config.weights}",
            got=f"fingerprint {found}",
            expected=str(state["frozen"]),
            fix="put the weights that the run began with back there",
        )
    load_weights(checkpoint, model)
    return model
