"""What is called saved has reached the disk, a power cut later: each file, then the folder with its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_save_kills import run_of

from crossearth_sar.engine.checkpoint import save_checkpoint
from crossearth_sar.model_files import write_model_files
from crossearth_sar.whole import write_text


def flushes_and_renames(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> list[str]:
    """In their order: `flush NAME`, and `rename NAME` for what a file or folder is called then."""
    seen: list[str] = []
    fsync = os.fsync

    def flushed(descriptor: int) -> None:
        seen.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def watched(rename: Callable[..., Any]) -> Callable[..., Any]:
        def renamed(source: Any, target: Any, **options: Any) -> Any:
            done = rename(source, target, **options)
            seen.append(f"rename {Path(target).name}")
            return done

        return renamed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flushed)
        for name in ("rename", "replace"):
            patch.setattr(os, name, watched(getattr(os, name)))
        work()
    return seen


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = flushes_and_renames(monkeypatch, lambda: void(write_text(tmp_path / "a.txt", "a")))
    assert seen == ["flush a.txt", "rename a.txt", f"flush {tmp_path.name}"]


def test_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = flushes_and_renames(
        monkeypatch, lambda: write_model_files(tmp_path, {"a": torch.zeros(1)}, {"a": 1})
    )
    assert seen[:5] == [
        "flush model.safetensors", "flush config.json", "flush .model-writing", "rename .model-written",
        f"flush {tmp_path.name}",
    ]  # fmt: skip
    assert seen[5:] == ["rename model.safetensors", "rename config.json", f"flush {tmp_path.name}"]


def test_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path)
    state = {"step": 3, "best": None, "run": {}}

    def save() -> None:
        save_checkpoint(run.checkpoints, run.executor, run.objective, state, 1)

    seen = flushes_and_renames(monkeypatch, save)
    run.close()
    (done,) = (i for i, word in enumerate(seen) if word == "rename step-000003")
    files = {path.name for path in (run.checkpoints / "step-000003").iterdir()}
    assert {f"flush {name}" for name in files} <= {*seen[:done]}
    assert seen[done - 1] == "flush .writing-step-000003", "their names, once all are there"
    assert seen[done + 1] == "flush checkpoints"


def void(_: object) -> None:
    """For a lambda that is to give nothing."""
