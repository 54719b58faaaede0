"""Where a run goes on: which checkpoint, and what to say about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crossearth_sar.config import to_mapping
from crossearth_sar.data.domain import Domain
from crossearth_sar.data.domain_fingerprint import changes, fingerprint
from crossearth_sar.engine.checkpoint_files import list_checkpoints, read_state, without_state
from crossearth_sar.engine.checkpoint_state import STATE_FILE, step_name
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.errors import InputError
from crossearth_sar.presets import ModelConfig
from crossearth_sar.pretrained import function_of

_log = logging.getLogger(__name__)

PLACES = ("output", "data_root", "changed_data")
"""Settings that do not say what is computed."""


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


def about_run(model: ModelConfig, data: Mapping[str, Domain]) -> dict[str, Any]:
    """What a checkpoint says of a run besides its settings, for `require_same_run`."""
    return {
        "model": function_of(model),
        "data": {name: fingerprint(domain) for name, domain in data.items()},
    }


def require_same_run(before: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig) -> None:
    """InputError where what `about_run` said when a checkpoint was made is not so now."""
    _require_same_function(before["model"], now["model"])
    _require_same_data(before["data"], now["data"], go_on=config.changed_data == "go_on")


def _require_same_function(before: dict[str, Any], now: dict[str, Any]) -> None:
    """InputError where a checkpoint's weights would fit this model and mean something else in it."""
    different = [key for key in sorted(now) if before.get(key) != now[key]]
    if different:
        raise InputError(
            "the checkpoint is of a model that computes something else",
            got=", ".join(f"{key} {now[key]}" for key in different),
            expected=", ".join(f"{key} {before.get(key)}" for key in different),
            fix="resume with the settings that the run began with, or start another",
        )


def _require_same_data(before: dict[str, Any], now: dict[str, Any], *, go_on: bool) -> None:
    """InputError where data differ from those of the checkpoint; a warning where the run is to go on."""
    said = [words for key in now for words in changes(before.get(key, {}), now[key], key)]
    if not said:
        return
    if go_on:
        _log.warning("the data are not those that the run began with: %s", "; ".join(said))
        return
    raise InputError(
        "the data are not those that the run began with",
        got="; ".join(said),
        expected="the same files in the same order: a step draws its images by their numbers",
        fix="put them back, or go on with these: --set changed_data=go_on",
    )
