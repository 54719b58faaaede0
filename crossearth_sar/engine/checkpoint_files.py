"""Checkpoint folders as files: which are complete, what they say of themselves, how one is put in place.

A folder counts once its state.json lies in a folder of exact name; it is written aside, flushed and renamed,
and what it replaces loses its name before it is removed, so that a kill at any moment leaves no half one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from crossearth_sar.engine.checkpoint_state import STATE_FILE, is_step_name, state_in, step_name
from crossearth_sar.errors import InputError
from crossearth_sar.model_files import WEIGHTS_FILE
from crossearth_sar.whole import flush

logger = logging.getLogger("crossearth_sar")

TRAINED_FILE, OBJECTIVE_FILE = "trained.safetensors", "objective.safetensors"
WRITING = ".writing-"
"""Before the names of folders that are not, or no longer, checkpoints; the next save removes them."""
_OVER, _OLD = f"{WRITING}over-", f"{WRITING}old-"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first. Only names that `step_name` gives count."""
    named = [path for path in folder.glob("step-*") if is_step_name(path.name)]
    complete = [path for path in named if (path / STATE_FILE).is_file()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")))


def without_state(folder: Path) -> list[Path]:
    """Folders called like checkpoints, with files in them and no state.json: they do not count."""
    named = [path for path in folder.glob("step-*") if is_step_name(path.name) and path.is_dir()]
    return sorted(path for path in named if not (path / STATE_FILE).is_file() and any(path.iterdir()))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as state, and the Adam step, ranks and checksums; errors as
    `checkpoint_state.state_in`."""
    return state_in(checkpoint, others_named(checkpoint))


def weights_file(state: dict[str, Any]) -> str:
    """Which file of a checkpoint has the weights."""
    return TRAINED_FILE if TRAINED_FILE in state["sha256"] else WEIGHTS_FILE


def check_intact(checkpoint: Path, name: str, state: dict[str, Any]) -> None:
    """InputError unless file `name` is what was written, naming the newest other checkpoint."""
    path = checkpoint / name
    problem = None
    if not path.is_file():
        problem = f"{name} is missing"
    elif sha256_of(path) != state.get("sha256", {}).get(name):
        problem = f"{name} has another checksum"
    if problem:
        raise InputError(f"checkpoint {checkpoint} is damaged", got=problem, fix=others_named(checkpoint))


def others_named(checkpoint: Path) -> str:
    """What to resume from instead."""
    others = [path.name for path in list_checkpoints(checkpoint.parent) if path != checkpoint]
    return (
        f"resume from {others[-1]} with --resume {checkpoint.parent / others[-1]}" if others else "start anew"
    )


def put_in_place(temporary: Path, final: Path) -> None:
    """Renames a whole checkpoint to its name; one of that name goes aside, for `tidy_up` to remove. Removed
    in its place, a kill could leave half of it looking complete."""
    if final.exists():
        final.rename(final.with_name(f"{_OVER}{final.name}"))
    temporary.rename(final)
    flush(final.parent)


def restore_interrupted(folder: Path) -> None:
    """Gives back its name to a checkpoint that a kill caught between the two renames of `put_in_place`: what
    was to replace it is there too. Without that it is one whose removal was interrupted."""
    for aside in folder.glob(f"{_OVER}*"):
        final = folder / aside.name.removeprefix(_OVER)
        if not final.exists() and (folder / f"{WRITING}{final.name}").exists():
            aside.rename(final)


def tidy_up(folder: Path, newest: Path, keep: int, best_step: int | None) -> None:
    """Removes what need not be kept. What cannot be removed is only reported: `newest` is saved."""
    try:
        _remove_superseded(folder, newest, keep, best_step)
    except OSError as error:
        logger.warning("%s is saved, but what it replaces could not be removed: %s", newest.name, error)


def _remove_superseded(folder: Path, newest: Path, keep: int, best_step: int | None) -> None:
    for replaced in folder.glob(f"{WRITING}*"):
        shutil.rmtree(replaced)
    complete = list_checkpoints(folder)
    kept = set(complete[: complete.index(newest) + 1][-keep:])
    if best_step is not None:
        kept.add(folder / step_name(best_step))
    for other in complete:
        if other not in kept:
            # Renamed first, so that a kill leaves nothing that looks complete, nor anything for ever: the
            # next save removes such names.
            shutil.rmtree(other.rename(folder / f"{_OLD}{other.name}"))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
