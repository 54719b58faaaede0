"""A checkpoint, or a run's newest or best, as a model folder.

Needs neither DeepSpeed nor a GPU: weights on disk are whole, whatever ranks wrote them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from crossearth_sar.engine.checkpoint import STATE_FILE, check_intact, list_checkpoints, read_state
from crossearth_sar.engine.resume import best_of
from crossearth_sar.errors import InputError
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE, load_model, save_model


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
    return newest.parent / f"step-{found['step']:06d}"


def export(checkpoint: Path, out: Path, *, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    """Checks the checkpoint's model against its checksums and writes it for `load_model`.

    Raises:
        InputError: for a damaged checkpoint, or an `out` that holds a model already.
    """
    state = read_state(checkpoint)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        check_intact(checkpoint, name, state)
        if (out / name).exists():
            raise InputError(
                f"{out} holds a model already", got=name, fix="give another folder, or remove it"
            )
    model = load_model(checkpoint)
    parameters = {name for name, _ in model.named_parameters()}
    weights = {n: v.to(dtype) if n in parameters else v for n, v in model.state_dict().items()}
    save_model(model, out, weights=weights)
    return state
