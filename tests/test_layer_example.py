"""README's layer example trains as printed: on one process, and on two under torchrun to the same end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_example import PARTS, downloaded, train, train_as_rank
from ranks import shared_pool, slow
from transformers import Dinov2Model

PROGRAM = Path(__file__).with_name("layer_example.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PARTS}"]


def by_pool(place: Path) -> list[dict[str, Any]]:
    return shared_pool(PARTS)(train_as_rank)


def by_torchrun(place: Path) -> list[dict[str, Any]]:
    paths = os.pathsep.join([str(PROGRAM.parent), str(PROGRAM.parents[1])])
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(PROGRAM), str(place / "out")],
        capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(place / f"out.{rank}") for rank in range(PARTS)]


@pytest.mark.parametrize("start", [by_pool, pytest.param(by_torchrun, marks=slow)])
def test_two_processes_are_one(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = start(tmp_path)
    monkeypatch.setattr(Dinov2Model, "from_pretrained", downloaded)
    alone = train(range(PARTS), wrapped=False)
    assert len(set(alone["losses"])) > 1, "or nothing is trained"
    means = [sum(losses) / PARTS for losses in zip(*(rank["losses"] for rank in ranks), strict=True)]
    assert means == pytest.approx(alone["losses"], rel=1e-6)
    for rank in ranks:
        torch.testing.assert_close(rank["weights"], alone["weights"], rtol=0, atol=1e-5)
