"""The light executor beside DeepSpeed on a segmentation run: the same losses, on one rank and on two."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mean_image import LearnTheMeanImage
from ranks import begin, micro_run, shared_pool

from crossearth_sar.engine.checkpoint_files import list_checkpoints
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.executors.choose import make_executor
from crossearth_sar.engine.log import read_csv
from crossearth_sar.engine.run import Run
from crossearth_sar.errors import InputError


def fitted(config: RunConfig) -> list[float]:
    """The losses of a run, trained to the end and reported."""
    run = begin(config)
    assert run.fit()
    run.finish()
    return [float(row["loss"]) for row in read_csv(Path(config.output) / "train.csv")]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_segmentation_run_has_one_curve(ranks: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    found: dict[str, list[float]] = {}
    for executor in ("deepspeed", "local"):
        changes: dict[str, Any] = {"executor": executor, "parallel.ep_size": 1, "accumulation": 2}
        config = micro_run(tmp_path / executor, steps=4, **changes)
        found[executor], *others = shared_pool(ranks)(fitted, config)
        assert all(losses == found[executor] for losses in others)
    assert len(found["local"]) == 4
    assert found["local"] == pytest.approx(found["deepspeed"], rel=2e-4)


def small(output: Path) -> RunConfig:
    return RunConfig(output=str(output), executor="local", steps=4, batch_size=2, save_every=2)


def run_of(config: RunConfig, resume: str | None = None) -> Run:
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = Run(config, ranks, LearnTheMeanImage(), make_executor(config, ranks))
    run.start(resume)
    return run


def rewritten(checkpoint: Path, **changes: Any) -> None:
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    (checkpoint / "state.json").write_text(json.dumps({**state, **changes}), encoding="utf-8")


def test_checkpoints_of_earlier_versions_are_read_or_refused_with_words(tmp_path: Path) -> None:
    run = run_of(replace(small(tmp_path), steps=2))
    assert run.fit()
    run.close()
    (checkpoint,) = list_checkpoints(tmp_path / "checkpoints")
    rewritten(checkpoint, format=2)  # of pre-training: the same files
    again = run_of(small(tmp_path), "auto")
    assert again.step == 2
    again.close()
    rewritten(checkpoint, sha256={"trained.safetensors": "", "optimizer.pt": ""})
    with pytest.raises(InputError, match=r"format 2 of fine-tuning[\s\S]*start a new run"):
        run_of(small(tmp_path), "auto")
