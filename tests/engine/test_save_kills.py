"""A kill at every file-system event of a save, under the light executor: nothing complete is lost, and
nothing half done stays for ever."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import in_a_child
from mean_image import LearnTheMeanImage

from crossearth_sar.engine import checkpoint
from crossearth_sar.engine.checkpoint_files import check_intact, list_checkpoints, read_state
from crossearth_sar.engine.config import OptimConfig, RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.executors.choose import make_executor
from crossearth_sar.engine.run import Run

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.fsync"}
WITHIN_RMTREE = {"os.remove", "os.rmdir", "os.fsync"}
"""Their paths are relative to an open folder."""
STEPS, SAVE = 6, 4
"""The save of step 4 is watched: it replaces that of step 2, with one to keep."""


class Frozen(LearnTheMeanImage):
    """With a frozen part, whose weights a checkpoint leaves out."""

    def build(self, *, from_start: bool) -> torch.nn.Module:
        model = super().build(from_start=from_start)
        model.shelf = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        return model

    def frozen(self, model: torch.nn.Module) -> set[str]:
        return {"shelf"}

    def score(self, model: torch.nn.Module) -> None:
        return None


def run_of(output: Path, resume: str | None = None) -> Run:
    config = RunConfig(
        output=str(output), executor="local", steps=STEPS, batch_size=2, save_every=2, keep_checkpoints=1,
        optim=OptimConfig(lr=0.1, warmup_steps=1),
    )  # fmt: skip
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = Run(config, ranks, Frozen(), make_executor(config, ranks))
    run.start(resume)
    return run


def die_at(output: Path, event: int) -> None:
    """A run that kills itself before file-system event number `event` of the save of step 4."""
    run = run_of(output)
    seen, watching = [0], [False]
    save, folder = run._save, str(output / "checkpoints")

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        below = folder in str(arguments[0] if arguments else "") or name in WITHIN_RMTREE
        if watching[0] and name in EVENTS and below:
            seen[0] += 1
            if seen[0] == event:
                os.kill(os.getpid(), signal.SIGKILL)

    def watched(*arguments: Any, **named: Any) -> None:
        watching[0] = run.step == SAVE
        save(*arguments, **named)
        watching[0] = False

    # safetensors writes without Python's knowing: killed before and, with the file there, after.
    write = checkpoint.save_file

    def write_file(tensors: Any, path: Path) -> None:
        audit("open", (str(path),))
        write(tensors, path)
        audit("open", (str(path),))

    flush = os.fsync

    def flush_file(descriptor: int) -> None:
        audit("os.fsync", ())
        flush(descriptor)

    checkpoint.save_file = write_file
    os.fsync = flush_file
    sys.addaudithook(audit)
    run._save = watched  # type: ignore[method-assign]
    run.fit()
    (output / "events").write_text(str(seen[0]), encoding="utf-8")


def go_on(output: Path) -> None:
    run = run_of(output, "auto")
    run.fit()


def complete(output: Path) -> list[str]:
    """Names of checkpoints that are whole, every file of them."""
    found = list_checkpoints(output / "checkpoints")
    for path in found:
        state = read_state(path)
        for name in state["sha256"]:
            check_intact(path, name, state)
    return [path.name for path in found]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks of a process with threads
def test_every_kill_point_of_a_save(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert in_a_child(lambda: die_at(whole, 0)) == 0
    events = int((whole / "events").read_text(encoding="utf-8"))
    assert events > 20, "the save is seen"
    losses = (whole / "train.csv").read_text(encoding="utf-8").splitlines()
    for event in range(1, events + 1):
        output = tmp_path / str(event)
        assert in_a_child(lambda: die_at(output, event)) == -signal.SIGKILL, event  # noqa: B023 - run at once
        left = complete(output)
        assert left, f"event {event}: nothing to go on from"
        assert "step-000002" in left or "step-000004" in left
        assert in_a_child(lambda: go_on(output)) == 0, event  # noqa: B023 - as above
        assert complete(output) == ["step-000006"], event
        assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-000006"], (
            f"event {event}: litter"
        )
        again = (output / "train.csv").read_text(encoding="utf-8").splitlines()
        assert [row.split(",")[:2] for row in again] == [row.split(",")[:2] for row in losses], event
