"""What state.json says, and that it says what was written: a hash of its own content, and types.

One flipped bit in `step` or `adam_step` would be another run that nobody notices.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from crossearth_sar.config import read_json
from crossearth_sar.errors import InputError

STATE_FILE = "state.json"
FORMAT = 4
READABLE = (2, 3, 4)
"""2 is that of pre-training before fine-tuning wrote the same; 4 has the hash."""
_SEAL = "sha256_of_this"
_NAME = re.compile(r"step-(\d{6}|[1-9]\d{6,})")


def step_name(step: int) -> str:
    """What the checkpoint of that many steps is called."""
    return f"step-{step:06d}"


def is_step_name(name: str) -> bool:
    """Whether `step_name` gives such names; a copy beside a checkpoint, step-000010.bak say, is nobody's
    business."""
    return _NAME.fullmatch(name) is not None


def sealed(content: dict[str, Any]) -> str:
    """The text of a state.json."""
    plain = json.loads(json.dumps({"format": FORMAT, **content}))
    return json.dumps({**plain, _SEAL: _hash_of(plain)}, indent=2) + "\n"


def state_in(checkpoint: Path, others: str) -> dict[str, Any]:
    """The content of a checkpoint's state.json.

    Args:
        others: what to do where it is damaged.

    Raises:
        InputError: there is none, it is of another format, or it is not what was written.
    """
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise InputError(
            f"no checkpoint at {checkpoint}",
            got=f"a folder without {STATE_FILE}" if checkpoint.is_dir() else "no such folder",
            fix="give a folder that holds state.json, or --resume for the newest",
        )
    try:
        state = read_json(path)
    except InputError as error:
        raise InputError(f"checkpoint {checkpoint} is damaged", got=str(error), fix=others) from error
    found = state.get("format", 1)
    if found not in READABLE or _is_old_finetuning(state):
        raise InputError(
            f"checkpoint {checkpoint} has another format",
            got=f"format {found}" + (" of fine-tuning" if found in READABLE else ""),
            expected=f"format {FORMAT} or 3, or 2 of pre-training",
            fix="start a new run; load_model still reads the weights in its model folder",
        )
    problem = _problem(state, checkpoint.name)
    if problem:
        raise InputError(f"checkpoint {checkpoint} is damaged", got=f"{STATE_FILE}: {problem}", fix=others)
    return state


def _problem(state: dict[str, Any], folder: str) -> str | None:
    """What is wrong with a state of a known format."""
    seal = state.pop(_SEAL, None)
    if state["format"] >= 4 and seal != _hash_of(state):
        return "it is not what was written"
    best, files = state.get("best"), state.get("sha256")
    checks = {
        "step": _is_count(state.get("step")),
        "adam_step": _is_count(state.get("adam_step")),
        "best": best is None or (isinstance(best, dict) and _is_count(best.get("step"))),
        "run": isinstance(state.get("run"), dict),
        "sha256": isinstance(files, dict)
        and all(isinstance(value, str) and Path(name).name == name for name, value in files.items()),
    }
    wrong = [key for key, fits in checks.items() if not fits]
    if wrong:
        return f"{', '.join(wrong)} cannot be {', '.join(repr(state.get(key))[:80] for key in wrong)}"
    if is_step_name(folder) and folder != step_name(state["step"]):
        return f"it is of step {state['step']}, in a folder called {folder}"
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_old_finetuning(state: dict[str, Any]) -> bool:
    """Its optimizer state was one pickled file."""
    return state.get("format") == 2 and "optimizer.pt" in (state.get("sha256") or {})


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
