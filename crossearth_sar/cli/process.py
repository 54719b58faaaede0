"""What every command asks of its process: tools beside the interpreter, logging, and which rank speaks."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

RANK_VARIABLES = ("RANK", "SLURM_PROCID")
"""Where launchers say which rank this process is, before ranks have met."""


def find_own_tools() -> None:
    """Puts the interpreter's folder on PATH: DeepSpeed and torch look for `ninja` there.

    So every command works without activating the environment: `.venv/bin/crossearth-sar …`.
    """
    own = str(Path(sys.executable).parent)
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if own not in folders:
        os.environ["PATH"] = os.pathsep.join([own, *folders])


def start_logging() -> None:
    """Bare messages on stderr: warnings of everybody, and what this package says of its work."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("crossearth_sar").setLevel(logging.INFO)


def speaks() -> bool:
    """Whether this is the rank that prints: before ranks have met, each finds the same."""
    return next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0") == "0"


def look_in_working_folder() -> None:
    """Lets modules be imported from where the command was typed, as `python -m` does."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
