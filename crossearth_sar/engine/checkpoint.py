"""Checkpoints: folders that are either complete or not there, hold tensors and JSON only, and know no ranks.

    checkpoints/step-000200/
        model.safetensors, config.json            the whole model in float32, experts joined: for load_model
        optimizer-00001-of-00002.safetensors …    Adam's moments, whole parameters spread over the files
        objective.safetensors                     what the objective keeps beside them, if anything
        state.json                                step, best, the run's settings, checksums of the files

Where a part of the network is frozen, trained.safetensors stands in place of model.safetensors: trained
parameters and buffers. The frozen ones are not copied; they come from where the run took them, and a
fingerprint in state.json says whether they are the same. `engine/export.py` joins the two.

Any executor and layout of ranks (number, ep_size, ZeRO stage, offload) reads what any other wrote. Each rank
writes one optimizer file, so the folder must be on storage that all ranks see.

A checkpoint is written under a temporary name, flushed to disk and renamed, so a kill or a full disk at any
moment leaves the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from crossearth_sar.engine.checkpoint_files import (
    OBJECTIVE_FILE,
    TRAINED_FILE,
    WRITING,
    check_intact,
    put_in_place,
    read_state,
    sha256_of,
    tidy_up,
    weights_file,
    write_flushed,
)
from crossearth_sar.engine.checkpoint_state import STATE_FILE, sealed, step_name
from crossearth_sar.engine.distributed import Ranks, first_error, of_all_ranks, wait_for_all
from crossearth_sar.engine.executors.base import Executor
from crossearth_sar.engine.objectives.base import Objective
from crossearth_sar.engine.optim import MOMENTS
from crossearth_sar.errors import InputError
from crossearth_sar.model_files import save_file
from crossearth_sar.whole import flush


class SaveError(RuntimeError):
    """A checkpoint could not be written; those that were there still are. The same on all ranks."""


def save_checkpoint(
    folder: Path, executor: Executor, objective: Objective, state: dict[str, Any], keep: int
) -> Path:
    """Writes `folder`/step-N, N = state["step"] optimizer steps done, and removes what need not be kept.

    Kept are the `keep` newest and the one of state["best"]["step"], if that is given. Those of later steps
    go: they are of a run that went on from here otherwise. A collective call of all ranks.

    Raises:
        SaveError: on all ranks, when one cannot write its part; nothing is left of the attempt.
    """
    ranks, final = executor.ranks, folder / step_name(state["step"])
    temporary = folder / f"{WRITING}{final.name}"
    try:
        with _agreed(ranks, temporary):
            if ranks.is_main:
                for leftover in folder.glob(f"{WRITING}*"):
                    shutil.rmtree(leftover, ignore_errors=leftover != temporary)
                temporary.mkdir(parents=True)
        checksums, frozen = _write_tensors(temporary, executor, objective)
        with _agreed(ranks, temporary):
            if ranks.is_main:
                content = {
                    **state,
                    "adam_step": executor.state().adam_step,
                    "moments": list(executor.state().moments),
                    **executor.facts(),
                    "frozen": frozen,
                    "sha256": checksums,
                }
                write_flushed(temporary / STATE_FILE, sealed(content))
                flush(temporary)
                put_in_place(temporary, final)
    except _OnSomeRank as error:
        raise SaveError(f"checkpoint {final.name} could not be written: {error}") from error
    if ranks.is_main:
        tidy_up(folder, final, keep, (state.get("best") or {}).get("step"))
    wait_for_all()
    return final


def load_checkpoint(checkpoint: Path, executor: Executor, objective: Objective) -> dict[str, Any]:
    """Restores weights, optimizer and objective in place, at whatever layout of ranks; returns the state.

    A collective call of all ranks; each checks its share of the files.

    Raises:
        InputError: on all ranks, for another model, other frozen weights, or a file that is damaged or
            missing.
    """
    ranks, state = executor.ranks, {}
    try:
        with _agreed(ranks):
            state = read_state(checkpoint)
            for name in sorted(state["sha256"])[ranks.rank :: ranks.size]:
                check_intact(checkpoint, name, state)
        with _agreed(ranks):
            _check_fits(checkpoint, executor, objective.frozen(executor.module), state)
        frozen = _frozen_fingerprint(executor, objective)
        with _agreed(ranks):
            _check_frozen(checkpoint, state, frozen)
        _read_tensors(checkpoint, executor, state)
        if OBJECTIVE_FILE in state["sha256"]:
            objective.load_state(load_file(checkpoint / OBJECTIVE_FILE))
    except _OnSomeRank as error:
        raise InputError(str(error)) from error
    return state


@torch.no_grad()
def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Puts the checkpoint's weights into a plain whole network whose frozen parts are in place.

    Raises:
        InputError: for a damaged checkpoint.
    """
    state = read_state(checkpoint)
    name = weights_file(state)
    check_intact(checkpoint, name, state)
    own = model.state_dict()
    for key, value in _tensors(checkpoint / name):
        own[key].copy_(value)


def fingerprint(frozen: Iterator[tuple[str, Tensor]]) -> str | None:
    """16 hex digits that change with any frozen parameter: a hash of names and sums in float64; None where
    nothing is frozen."""
    digest = None
    for name, value in frozen:
        digest = digest or hashlib.sha256()
        plain = value.detach().double()
        digest.update(f"{name} {float(plain.sum())!r} {float(plain.square().sum())!r};".encode())
    return None if digest is None else digest.hexdigest()[:16]


def _frozen_fingerprint(executor: Executor, objective: Objective) -> str | None:
    """Of this run's frozen parameters; a collective call."""
    frozen = objective.frozen(executor.module)
    if not frozen:
        return None
    return fingerprint((name, value) for name, value in executor.weights() if name in frozen)


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


def _write_tensors(
    folder: Path, executor: Executor, objective: Objective
) -> tuple[dict[str, str], str | None]:
    """Writes model and moments, one optimizer file per rank; the checksums of all files, on every rank, and
    the fingerprint of what is frozen."""
    ranks, optimizer = executor.ranks, executor.state()
    owner_of = _spread({name: optimizer.shape(name) for name in optimizer.names}, ranks.size)
    weights, own_moments = {}, {}
    for name, value in executor.weights():
        if ranks.is_main:
            weights[name] = value.cpu()
    for name in optimizer.names:
        for moment in optimizer.moments:
            value = optimizer.gather(name, moment)
            if owner_of[name] == ranks.rank:
                own_moments[f"{moment}/{name}"] = value.cpu()
    kept, frozen = objective.state(), objective.frozen(executor.module)
    written = [f"optimizer-{ranks.rank + 1:05d}-of-{ranks.size:05d}.safetensors"]
    checksums: dict[str, str] = {}
    with _agreed(ranks, folder):
        save_file(own_moments, folder / written[0])
        if ranks.is_main:
            if frozen:
                trained = {name: value for name, value in weights.items() if name not in frozen}
                save_file(trained, folder / TRAINED_FILE)
                written += [TRAINED_FILE, *objective.write_config(executor.module, folder)]
            else:
                written += objective.save_model(executor.module, folder, weights)
            if kept:
                save_file({name: value.contiguous() for name, value in kept.items()}, folder / OBJECTIVE_FILE)
                written.append(OBJECTIVE_FILE)
        for name in written:
            flush(folder / name)
            checksums[name] = sha256_of(folder / name)
    everyone = {name: value for part in of_all_ranks(checksums) for name, value in part.items()}
    return everyone, fingerprint((name, weights[name]) for name in weights if name in frozen)


def _read_tensors(checkpoint: Path, executor: Executor, state: dict[str, Any]) -> None:
    optimizer = executor.state()
    trained = set(optimizer.names)
    for name, value in _tensors(checkpoint / weights_file(state)):
        executor.set_weight(name, value)
        if name in trained:
            optimizer.scatter(name, value.float())
    if not state["adam_step"]:
        return
    optimizer.prepare(state["adam_step"])
    for file in sorted(name for name in state["sha256"] if name.startswith("optimizer-")):
        for key, value in _tensors(checkpoint / file):
            moment, _, name = key.partition("/")
            optimizer.scatter(name, value, moment)


def _check_fits(checkpoint: Path, executor: Executor, frozen: set[str], state: dict[str, Any]) -> None:
    """InputError unless names and shapes on disk are those of this run's network but for what is frozen, and
    moments those of its optimizer."""
    theirs, own = state.get("moments", MOMENTS["adamw"]), executor.state().moments
    if tuple(theirs) != own:
        raise InputError(
            f"checkpoint {checkpoint} is of another optimizer",
            got=", ".join(theirs),
            expected=", ".join(own),
            fix="resume with the optim.kind that the run began with",
        )
    wanted = {name: shape for name, shape in executor.full_shapes().items() if name not in frozen}
    with safe_open(checkpoint / weights_file(state), framework="pt") as file:
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
            expected="the model it was saved from: see run.preset, run.model and run.mode in its state.json",
            fix="resume with the settings it was started with, or give another --set output=…",
        )


def _check_frozen(checkpoint: Path, state: dict[str, Any], frozen: str | None) -> None:
    if state.get("frozen") != frozen:
        raise InputError(
            f"checkpoint {checkpoint} belongs to other frozen weights or another mode",
            got=f"fingerprint {state.get('frozen')}",
            expected=str(frozen),
            fix="resume with the weights, mode and seed that the run began with",
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
