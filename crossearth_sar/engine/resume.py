"""Where a run goes on: which checkpoint, and what to say about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossearth_sar.config import to_mapping
from crossearth_sar.engine.checkpoint_files import list_checkpoints, read_state, without_state
from crossearth_sar.engine.checkpoint_state import STATE_FILE, step_name
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.errors import InputError

PLACES = ("output", "data_root")
"""Settings that say where things are, not what is computed."""


def find_checkpoint(config: RunConfig, resume: str | None, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from: none for a new run, the newest for "auto", else the one at that path.

    Raises:
        InputError: for a new run in a folder that holds one, or a newest checkpoint that is damaged.
    """
    output = Path(config.output)
    existing = list_checkpoints(output / "checkpoints")
    for path in without_state(output / "checkpoints"):
        say(f"note: {path} has no {STATE_FILE} and does not count as a checkpoint")
    if resume is None:
        if existing:
            raise InputError(
                f"{output} holds a run already",
                got=f"{existing[-1].name}",
                expected="a new output folder, or --resume",
                fix="add --resume to go on with it, or --set output=runs/other",
            )
        return None
    if resume != "auto":
        _note_later(Path(resume), existing, say)
        return Path(resume)
    if not existing:
        say(f"no complete checkpoint below {output}: starting from step 0")
        return None
    _note_changes(read_state(existing[-1])["run"], config, say)
    return existing[-1]


def best_of(state: dict[str, Any], folder: Path) -> dict[str, float] | None:
    """The best validation so far, as long as its checkpoint is still there."""
    best = state.get("best")
    if best is None or folder / step_name(int(best["step"])) not in list_checkpoints(folder):
        return None
    return best


def go_on_words(config: RunConfig) -> str:
    """How to go on after a failure, in one phrase."""
    existing = list_checkpoints(Path(config.output) / "checkpoints")
    if not existing:
        return "start again; nothing is saved yet"
    return f"the same command with --resume auto goes on from {existing[-1].name}"


def _note_later(chosen: Path, existing: list[Path], say: Callable[[str], None]) -> None:
    here = [path for path in existing if path.resolve() == chosen.resolve()]
    later = existing[existing.index(here[0]) + 1 :] if here else []
    if later:
        names = ", ".join(path.name for path in later)
        say(f"note: {names} are of later steps; the next save removes them. To keep them, set another output")


def _note_changes(before: dict[str, Any], config: RunConfig, say: Callable[[str], None]) -> None:
    now = to_mapping(config)
    changed = [key for key in now if before.get(key) != now[key] and key not in PLACES]
    if changed:
        say(f"note: resumed with another {', '.join(changed)} than before; the run is not a repetition")
