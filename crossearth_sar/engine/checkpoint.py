"""Checkpoints: folders that are either complete or not there, hold tensors and JSON only, and know no ranks.

    checkpoints/step-000200/
        model.safetensors, config.json            the whole model in float32, experts joined: for load_model
        optimizer-00001-of-00002.safetensors …    Adam's moments, whole parameters spread over the files
        state.json                                step, best, the run's settings, checksums of the files

Any layout of ranks (number, ep_size, ZeRO stage, offload) reads what any other wrote. Each rank writes one
optimizer file, so the folder must be on storage that all ranks see.

A checkpoint is written under a temporary name, flushed to disk and renamed, so a kill or a full disk at any
moment leaves the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crossearth_sar.engine.distributed import Ranks, first_error
from crossearth_sar.engine.executors.deepspeed.optimizer_state import (
    MOMENTS,
    OptimizerState,
    expert_parameters,
    full_shape,
    gather_masters,
    set_weight,
)
from crossearth_sar.errors import InputError
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE, save_model

logger = logging.getLogger("crossearth_sar")

STATE_FILE = "state.json"
FORMAT = 2
_PREFIX = "step-"


class SaveError(RuntimeError):
    """A checkpoint could not be written; those that were there still are. The same on all ranks."""


def save_checkpoint(folder: Path, engine: Any, ranks: Ranks, state: dict[str, Any], keep: int) -> Path:
    """Writes `folder`/step-N, N = state["step"] optimizer steps done, and removes what need not be kept.

    Kept are the `keep` newest and the one of state["best"]["step"], if that is given. Those of later steps
    go: they are of a run that went on from here otherwise. A collective call of all ranks.

    Raises:
        SaveError: on all ranks, when one cannot write its part; nothing is left of the attempt.
    """
    final = folder / f"{_PREFIX}{state['step']:06d}"
    temporary = folder / f".writing-{final.name}"
    try:
        with _agreed(ranks, temporary):
            if ranks.is_main:
                for leftover in folder.glob(".writing-*"):
                    shutil.rmtree(leftover, ignore_errors=leftover != temporary)
                temporary.mkdir(parents=True)
        checksums = _write_tensors(temporary, engine, ranks)
        with _agreed(ranks, temporary):
            if ranks.is_main:
                optimizer = {"adam_step": OptimizerState(engine).adam_step, "moments": list(MOMENTS)}
                content = {"format": FORMAT, **state, **optimizer, "ranks": ranks.size, "sha256": checksums}
                _write_flushed(temporary / STATE_FILE, json.dumps(content, indent=2) + "\n")
                _flush(temporary)
                put_in_place(temporary, final)
    except _OnSomeRank as error:
        raise SaveError(f"checkpoint {final.name} could not be written: {error}") from error
    if ranks.is_main:
        tidy_up(folder, final, keep, (state.get("best") or {}).get("step"))
    dist.barrier()
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    complete = [path for path in folder.glob(f"{_PREFIX}*") if (path / STATE_FILE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as state, and the Adam step, ranks and checksums."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"no checkpoint at {checkpoint}",
            got=str(error),
            fix="give a folder that holds state.json, or --resume for the newest",
        ) from error
    except ValueError as error:
        raise InputError(
            f"checkpoint {checkpoint} is damaged",
            got=f"{STATE_FILE} is not JSON: {error}",
            fix=others_named(checkpoint),
        ) from error
    if state.get("format") != FORMAT:
        raise InputError(
            f"checkpoint {checkpoint} has another format",
            got=f"format {state.get('format', 1)}",
            expected=f"format {FORMAT}; optimizer states of format 1 belong to one layout of ranks",
            fix="start a new run; load_model still reads its weights",
        )
    return state


def load_checkpoint(checkpoint: Path, engine: Any, ranks: Ranks) -> dict[str, Any]:
    """Restores weights and optimizer in place, at whatever layout of ranks; returns the saved state.

    A collective call of all ranks; each checks its share of the files.

    Raises:
        InputError: on all ranks, for another model or a file that is damaged or missing.
    """
    state: dict[str, Any] = {}
    try:
        with _agreed(ranks):
            state = read_state(checkpoint)
            for name in sorted(state["sha256"])[ranks.rank :: ranks.size]:
                check_intact(checkpoint, name, state)
        with _agreed(ranks):
            _check_fits(checkpoint, engine)
        _read_tensors(checkpoint, engine, state)
    except _OnSomeRank as error:
        raise InputError(str(error)) from error
    return state


def check_intact(checkpoint: Path, name: str, state: dict[str, Any]) -> None:
    """InputError unless file `name` is what was written, naming the newest other checkpoint."""
    path = checkpoint / name
    problem = None
    if not path.is_file():
        problem = f"{name} is missing"
    elif _sha256(path) != state.get("sha256", {}).get(name):
        problem = f"{name} has another checksum"
    if problem:
        raise InputError(f"checkpoint {checkpoint} is damaged", got=problem, fix=others_named(checkpoint))


def others_named(checkpoint: Path) -> str:
    """What to resume from instead."""
    others = [path.name for path in list_checkpoints(checkpoint.parent) if path != checkpoint]
    return (
        f"resume from {others[-1]} with --resume {checkpoint.parent / others[-1]}" if others else "start anew"
    )


class _OnSomeRank(Exception):
    """A rank failed; raised on all, with its words."""


@contextlib.contextmanager
def _agreed(ranks: Ranks, clean_up: Path | None = None) -> Iterator[None]:
    """Runs the block on each rank; if it failed on one, all raise what that one said, `clean_up` removed."""
    caught: Exception | None = None
    try:
        yield
    except (OSError, SafetensorError, InputError) as error:
        caught = error
    message = first_error(caught)
    if message is None:
        return
    if ranks.is_main and clean_up is not None:
        shutil.rmtree(clean_up, ignore_errors=True)
    raise _OnSomeRank(message) from caught


def _write_tensors(folder: Path, engine: Any, ranks: Ranks) -> dict[str, str]:
    """Writes model and moments, one optimizer file per rank; the checksums of all files, on every rank."""
    optimizer = OptimizerState(engine)
    owner_of = _spread({name: optimizer.shape(name) for name in optimizer.names}, ranks.size)
    weights, own_moments = {}, {}
    for name, value in gather_masters(engine, optimizer):
        if ranks.is_main:
            weights[name] = value.cpu()
    for name in optimizer.names:
        for moment in MOMENTS:
            value = optimizer.gather(name, moment)
            if owner_of[name] == ranks.rank:
                own_moments[f"{moment}/{name}"] = value.cpu()
    written = [f"optimizer-{ranks.rank + 1:05d}-of-{ranks.size:05d}.safetensors"]
    checksums: dict[str, str] = {}
    with _agreed(ranks, folder):
        save_file(own_moments, folder / written[0])
        if ranks.is_main:
            save_model(engine.module, folder, weights=weights)
            written += [WEIGHTS_FILE, CONFIG_FILE]
        for name in written:
            _flush(folder / name)
            checksums[name] = _sha256(folder / name)
    everyone: list[dict[str, str]] = [{}] * ranks.size
    dist.all_gather_object(everyone, checksums)
    return {name: value for part in everyone for name, value in part.items()}


def _read_tensors(checkpoint: Path, engine: Any, state: dict[str, Any]) -> None:
    optimizer, experts = OptimizerState(engine), dict(expert_parameters(engine.module))
    trained = set(optimizer.names)
    for name, value in _tensors(checkpoint / WEIGHTS_FILE):
        set_weight(engine, name, value, experts)
        if optimizer.stage and name in trained:
            optimizer.scatter(name, value.float())
    if not state["adam_step"]:
        return
    optimizer.prepare(state["adam_step"])
    for path in sorted(checkpoint.glob("optimizer-*.safetensors")):
        for key, value in _tensors(path):
            moment, _, name = key.partition("/")
            optimizer.scatter(name, value, moment)


def _check_fits(checkpoint: Path, engine: Any) -> None:
    """InputError unless names and shapes on disk are those of this run's model."""
    experts = dict(expert_parameters(engine.module))
    parameters = dict(engine.module.named_parameters())
    wanted = {
        name: full_shape(parameters.get(name, value), experts.get(name))
        for name, value in engine.module.state_dict().items()
    }
    with safe_open(checkpoint / WEIGHTS_FILE, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    wrong = [
        f"{name}: {found.get(name, 'missing')} on disk, {wanted.get(name, 'nothing')} in the model"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if wrong:
        raise InputError(
            f"checkpoint {checkpoint} does not fit this run",
            got="; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            expected="the model it was saved from: see run.preset and run.model in its state.json",
            fix="resume with the settings it was started with, or give another --set output=…",
        )


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys()):  # the same order on all ranks
            yield key, file.get_tensor(key)


def _spread(shapes: dict[str, tuple[int, ...]], files: int) -> dict[str, int]:
    """Parameter -> file, largest first, each to the file with the least so far."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    load, owner_of = [0] * files, {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        owner_of[name] = load.index(min(load))
        load[owner_of[name]] += sizes[name]
    return owner_of


def put_in_place(temporary: Path, final: Path) -> None:
    """Renames a whole checkpoint to its name; one of that name goes aside, for `tidy_up` to remove. Removed
    in its place, a kill could leave half of it looking complete."""
    if final.exists():
        final.rename(final.with_name(f".writing-over-{final.name}"))
    temporary.rename(final)
    _flush(final.parent)


def tidy_up(folder: Path, newest: Path, keep: int, best_step: int | None) -> None:
    """Removes what need not be kept. What cannot be removed is only reported: `newest` is saved."""
    try:
        _remove_superseded(folder, newest, keep, best_step)
    except OSError as error:
        logger.warning("%s is saved, but what it replaces could not be removed: %s", newest.name, error)


def _remove_superseded(folder: Path, newest: Path, keep: int, best_step: int | None) -> None:
    for replaced in folder.glob(".writing-*"):
        shutil.rmtree(replaced)
    complete = list_checkpoints(folder)
    kept = set(complete[: complete.index(newest) + 1][-keep:])
    if best_step is not None:
        kept.add(folder / f"{_PREFIX}{best_step:06d}")
    for other in complete:
        if other not in kept:
            (other / STATE_FILE).unlink()  # first, so that a kill leaves nothing that looks complete
            shutil.rmtree(other)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
