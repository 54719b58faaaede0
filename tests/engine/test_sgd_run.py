"""A run whose optimizer is SGD stops and goes on as one with AdamW does, under either executor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_objective import STEPS, left, on, settings

from crossearth_sar.engine.config import OptimConfig, RunConfig
from crossearth_sar.errors import InputError


def sgd(output: Path, executor: str, **changes: Any) -> RunConfig:
    optim = OptimConfig(kind="sgd", lr=0.3, warmup_steps=1, weight_decay=0.0, decay="cosine")
    return replace(settings(output, executor, **changes), optim=optim)


@pytest.mark.parametrize("executor", ["local", "deepspeed"])
def test_it_resumes_to_the_last_bit(executor: str, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    on(executor, 1, sgd(whole, executor))
    on(executor, 1, sgd(halves, executor), None, 4)
    on(executor, 1, sgd(halves, executor), "auto")
    one, other = left(whole), left(halves)
    assert one[0] == other[0]
    assert len(one[0]) == STEPS
    assert one[2].keys() == {"momentum_buffer/image"}
    assert one[2]["momentum_buffer/image"].equal(other[2]["momentum_buffer/image"])


def test_another_optimizers_checkpoint_is_refused(tmp_path: Path) -> None:
    on("local", 1, sgd(tmp_path, "local"), None, 4)
    with pytest.raises(InputError, match=r"optim\.kind"):
        on("local", 1, settings(tmp_path, "local"), "auto")
