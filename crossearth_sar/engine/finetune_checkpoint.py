"""Checkpoints of a fine-tuning run: what trains, its optimizer, and a fingerprint of what does not.

    checkpoints/step-000200/
        trained.safetensors    trained parameters, and the buffers
        optimizer.pt           AdamW's state, read back with weights_only=True
        state.json             step, the run's settings, checksums, fingerprint of the frozen weights

The frozen weights are not copied: they come from where the run took them, and the fingerprint says whether
they are the same. Complete or not there, as engine/checkpoint.py's; one process writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossearth_sar.engine.checkpoint import FORMAT, STATE_FILE, check_intact, list_checkpoints, read_state
from crossearth_sar.errors import InputError

TRAINED_FILE, OPTIMIZER_FILE = "trained.safetensors", "optimizer.pt"


def save_trained(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Writes `folder`/step-N, N = state["step"], and removes all but the `keep` newest."""
    final = folder / f"step-{state['step']:06d}"
    temporary = folder / f".writing-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    trained = {name: value.detach().cpu().contiguous() for name, value in trained_tensors(model).items()}
    save_file(trained, temporary / TRAINED_FILE)
    torch.save(optimizer.state_dict(), temporary / OPTIMIZER_FILE)
    sha256 = {name: _sha256(temporary / name) for name in (TRAINED_FILE, OPTIMIZER_FILE)}
    content = {"format": FORMAT, **state, "frozen": frozen_fingerprint(model), "sha256": sha256}
    (temporary / STATE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for path in (*temporary.iterdir(), temporary):
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _flush(folder)
    complete = list_checkpoints(folder)
    for other in complete:
        if other not in complete[: complete.index(final) + 1][-keep:]:
            shutil.rmtree(other)
    return final


def load_trained(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores what `save_trained` wrote into `model`, whose frozen weights are in place; returns the state.

    Raises:
        InputError: a damaged file, another model or mode, or other frozen weights.
    """
    state = read_state(checkpoint)
    for name in (TRAINED_FILE, OPTIMIZER_FILE):
        check_intact(checkpoint, name, state)
    if state["frozen"] != frozen_fingerprint(model):
        raise InputError(
            f"checkpoint {checkpoint} belongs to other frozen weights or another mode",
            got=f"fingerprint {state['frozen']}",
            expected=frozen_fingerprint(model),
            fix="resume with the weights, mode and seed that the run began with",
        )
    saved, wanted = load_file(checkpoint / TRAINED_FILE), trained_tensors(model)
    if {key: value.shape for key, value in saved.items()} != {key: v.shape for key, v in wanted.items()}:
        raise InputError(
            f"checkpoint {checkpoint} does not fit this model",
            got=f"{len(saved)} tensors, {len(saved.keys() & wanted.keys())} of the same name",
            expected=f"the {len(wanted)} tensors that train here, of the same shapes",
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(saved[name])
    try:
        optimizer.load_state_dict(torch.load(checkpoint / OPTIMIZER_FILE, weights_only=True))
    except (RuntimeError, ValueError, UnpicklingError) as error:
        raise InputError(f"checkpoint {checkpoint} does not fit this run", got=str(error)) from error
    return state


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters with a gradient, and the buffers: descriptor statistics, which move where all trains."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {**parameters, **dict(model.named_buffers())}


def frozen_fingerprint(model: nn.Module) -> str:
    """16 hex digits that change with any frozen parameter: a hash of names and sums in float64."""
    trained = trained_tensors(model)
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        if name not in trained:
            plain = value.detach().double()
            digest.update(f"{name} {float(plain.sum())!r} {float(plain.square().sum())!r};".encode())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
