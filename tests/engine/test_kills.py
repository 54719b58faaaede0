"""kill -9 at any moment, saving included: every resume works, and the run is the undisturbed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import slow

DRIVER = Path(__file__).with_name("kills.py")


def drive(folder: Path, steps: int, kills: int, seed: int, ranks: int = 1) -> str:
    pytest.importorskip("deepspeed")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    arguments = [sys.executable, str(DRIVER), str(folder), *map(str, (steps, kills, seed, ranks))]
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, check=False, timeout=580
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_three_kills(tmp_path: Path) -> None:
    said = drive(tmp_path, steps=10, kills=3, seed=1)
    for words in ("kill 0: save", "kill 1: prune", "kill 2: anywhere"):
        assert words in said


@slow
@pytest.mark.slow
def test_kills_of_one_of_two_ranks(tmp_path: Path) -> None:
    """The first in the second rank's own part of a save, while the other writes its."""
    said = drive(tmp_path, steps=20, kills=6, seed=3, ranks=2)
    for words in ("kill 0: save", "kill 1: prune", "kill 2: anywhere"):
        assert words in said


@slow
@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    said = drive(tmp_path, steps=60, kills=20, seed=2)
    print(said)
    assert "kill 19" in said
