"""Checkpoints: folders that are either complete or not there, and hold tensors and JSON only.

    checkpoints/step-000200/
        model.safetensors, config.json   the whole model, experts joined: what load_model reads
        state.json                       step, ranks, ep_size, ZeRO stage, checksums of the other files
        optimizer-rank0.pt …             each rank's partition, read back with weights_only=True

A checkpoint is written under a temporary name, flushed to disk and renamed, so a kill at any moment leaves
the one before.
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
import torch.distributed as dist
from safetensors.torch import load_file

from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.errors import InputError
from crossearth_sar.model import WEIGHTS_FILE, save_model
from crossearth_sar.moe.expert_parallel import full_state_dict, load_full_state_dict

STATE_FILE = "state.json"
_PREFIX = "step-"


def save_checkpoint(folder: Path, engine: Any, ranks: Ranks, state: dict[str, Any], keep: int) -> Path:
    """Writes `folder`/step-N, N = state["step"] optimizer steps done, and removes all but the `keep` newest.

    Those of later steps go too: they are of a run that went on from here otherwise. A collective call of all
    ranks.
    """
    final = folder / f"{_PREFIX}{state['step']:06d}"
    temporary = folder / f".writing-{final.name}"
    weights = full_state_dict(engine.module)
    if ranks.is_main:
        for leftover in folder.glob(".writing-*"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    dist.barrier()
    own_file = temporary / _optimizer_file(ranks.rank)
    torch.save(_optimizer_state(engine), own_file)
    _flush(own_file)
    checksums = [""] * ranks.size
    dist.all_gather_object(checksums, _sha256(own_file))
    if ranks.is_main:
        save_model(engine.module, temporary, weights=weights)
        sha256 = {_optimizer_file(rank): checksum for rank, checksum in enumerate(checksums)}
        sha256[WEIGHTS_FILE] = _sha256(temporary / WEIGHTS_FILE)
        text = json.dumps({**state, "ranks": ranks.size, "sha256": sha256}, indent=2)
        (temporary / STATE_FILE).write_text(text + "\n", encoding="utf-8")
    dist.barrier()  # every rank's file is on disk before the name says so
    if ranks.is_main:
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _flush(folder)
        complete = list_checkpoints(folder)
        kept = complete[: complete.index(final) + 1][-keep:]
        for other in complete:
            if other not in kept:
                shutil.rmtree(other)
    dist.barrier()
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    complete = [path for path in folder.glob(f"{_PREFIX}*") if (path / STATE_FILE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as state, and ranks and checksum."""
    try:
        return json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f"no checkpoint at {checkpoint}",
            got=str(error),
            fix="give a folder that holds state.json, or --resume for the newest",
        ) from error


def load_checkpoint(checkpoint: Path, engine: Any, ranks: Ranks, layout: dict[str, Any]) -> dict[str, Any]:
    """Restores weights and optimizer in place; returns the saved state.

    Args:
        layout: ep_size and zero_stage of this run: optimizer partitions fit only the layout they came from.

    Raises:
        InputError: for another layout, another model, or a file that is damaged or missing.
    """
    state = read_state(checkpoint)
    wanted = {**layout, "ranks": ranks.size}
    saved = {key: state.get(key) for key in wanted}
    if saved != wanted:
        raise InputError(
            f"checkpoint {checkpoint} was written by another layout of ranks",
            got=saved,
            expected=wanted,
            fix="resume with the same number of ranks, parallel.ep_size and parallel.zero_stage; "
            "its weights alone load anywhere with load_model",
        )
    own_file = _optimizer_file(ranks.rank)
    for name in (WEIGHTS_FILE, own_file):
        _check_intact(checkpoint, name, state)
    try:
        load_full_state_dict(engine.module, load_file(checkpoint / WEIGHTS_FILE))
        partition = torch.load(checkpoint / own_file, map_location=ranks.device, weights_only=True)
        _restore_optimizer(engine, partition)
    except (RuntimeError, ValueError, KeyError, UnpicklingError) as error:
        raise InputError(
            f"checkpoint {checkpoint} does not fit this run", got=str(error), fix=_others_named(checkpoint)
        ) from error
    return state


def _optimizer_state(engine: Any) -> dict[str, Any]:
    """The rank's optimizer as tensors and numbers; DeepSpeed's own dict holds pickled objects."""
    inner, partitions = _optimizer_parts(engine)
    return {"optimizer": inner.state_dict(), "master_partitions": [p.detach() for p in partitions]}


def _restore_optimizer(engine: Any, saved: dict[str, Any]) -> None:
    inner, partitions = _optimizer_parts(engine)
    inner.load_state_dict(saved["optimizer"])
    for partition, value in zip(partitions, saved["master_partitions"], strict=True):
        partition.data.copy_(value)


def _optimizer_parts(engine: Any) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    """The torch optimizer inside, and ZeRO's flat fp32 partitions that it steps (none without ZeRO)."""
    partitions = getattr(engine.optimizer, "single_partition_of_fp32_groups", None)
    if partitions is None:
        return engine.optimizer, []
    return engine.optimizer.optimizer, list(partitions)


def _optimizer_file(rank: int) -> str:
    return f"optimizer-rank{rank}.pt"


def _check_intact(checkpoint: Path, name: str, state: dict[str, Any]) -> None:
    path = checkpoint / name
    problem = None
    if not path.is_file():
        problem = f"{name} is missing"
    elif _sha256(path) != state.get("sha256", {}).get(name):
        problem = f"{name} has another checksum"
    if problem:
        raise InputError(f"checkpoint {checkpoint} is damaged", got=problem, fix=_others_named(checkpoint))


def _others_named(checkpoint: Path) -> str:
    others = [path.name for path in list_checkpoints(checkpoint.parent) if path != checkpoint]
    return (
        f"resume from {others[-1]} with --resume {checkpoint.parent / others[-1]}" if others else "start anew"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
