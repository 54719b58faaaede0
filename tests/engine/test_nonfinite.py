"""NaN and infinity: the layer is named, the step left out or the run ended, and nothing else is touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, begin, micro_run, shared_pool
from torch import nn

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.executors.deepspeed.optimizer_state import OptimizerState, gather_weights
from crossearth_sar.engine.log import read_csv
from crossearth_sar.engine.nonfinite import NonFiniteError, all_finite, first_nonfinite_layer

PLACE = "backbone.blocks.2.attn.proj"


class Poisoned(nn.Module):
    """Puts a NaN into what goes through it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(x.shape[-1]) == 1, torch.nan, x)


def test_the_first_and_innermost_layer_is_named() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Poisoned(), nn.Linear(3, 3)), nn.Linear(3, 3)
    )
    assert first_nonfinite_layer(model, lambda: model(torch.ones(2, 3))) == "1.1 (Poisoned)"
    model[1][1] = nn.Identity()
    assert first_nonfinite_layer(model, lambda: model(torch.ones(2, 3))) is None
    with torch.no_grad():
        model[1][2].weight[0, 0] = torch.inf
    found = first_nonfinite_layer(model, lambda: model(torch.ones(2, 3)))
    assert found == "1.2 (Linear), its weight too"
    assert not any(module._forward_hooks for module in model.modules())


def test_finite_looks_into_containers() -> None:
    nan, integers = torch.tensor([1.0, torch.nan]), torch.tensor([1])
    assert all_finite({"a": [torch.ones(2), (integers, None)], "b": "text"})
    assert not all_finite({"a": [torch.ones(2), (nan,)]})


@contextlib.contextmanager
def poison(trainer: Any, steps: tuple[int, ...], kind: str) -> Iterator[None]:
    """On rank 1, or the only one: a NaN in a layer's output, or in its gradient alone, at these steps."""

    def now() -> bool:
        return trainer.step in steps and trainer.ranks.rank == trainer.ranks.size - 1

    def output(module: nn.Module, inputs: Any, value: torch.Tensor) -> torch.Tensor | None:
        return value * torch.nan if now() else None

    def gradient(module: nn.Module, inputs: Any, value: torch.Tensor) -> None:
        if now() and value.requires_grad:
            value.register_hook(lambda grad: grad * torch.nan)

    layer = trainer.executor.engine.module.get_submodule(PLACE)
    handle = layer.register_forward_hook(output if kind == "output" else gradient)
    try:
        yield
    finally:
        handle.remove()


def meet(config: RunConfig, steps: tuple[int, ...], kind: str) -> dict[str, Any]:
    """A run that meets NaN: what it said, and what it holds after."""
    trainer = begin(config)
    said: list[str] = []
    trainer.say = said.append  # type: ignore[method-assign]
    error = None
    with poison(trainer, steps, kind):
        try:
            trainer.fit()
        except NonFiniteError as caught:
            error = str(caught)
    optimizer = OptimizerState(trainer.executor.engine)
    state = {
        **gather_weights(trainer.executor.engine),
        **{n: optimizer.gather(n, "exp_avg_sq") for n in optimizer.names},
    }
    return {
        "error": error,
        "said": " ".join(said),
        "step": trainer.step,
        "adam_step": optimizer.adam_step,
        "finite": all(all_finite(value) for value in state.values()),
    }


LAYOUTS = [
    (1, {"parallel.zero_stage": 0}, "output"),
    (2, {"parallel.zero_stage": 0, "parallel.ep_size": 1}, "gradient"),
    (2, {"parallel.zero_stage": 1}, "output"),
    (2, {"parallel.zero_stage": 2}, "gradient"),
    (2, {"parallel.zero_stage": 3, "accumulation": 2}, "output"),
]


@pytest.mark.parametrize(("ranks", "changes", "kind"), LAYOUTS)
def test_a_step_is_left_out(tmp_path: Path, ranks: int, changes: dict[str, Any], kind: str) -> None:
    pytest.importorskip("deepspeed")
    config = micro_run(tmp_path / "run", steps=4, nonfinite="skip", **changes)
    for found in shared_pool(ranks)(meet, config, (1, 2), kind):
        assert found["error"] is None
        assert (found["step"], found["adam_step"]) == (4, 2), "two of four steps were left out"
        assert found["finite"]
        assert "step 1: loss" in found["said"]
        if kind == "output":
            assert f"first in {PLACE} (Linear) on rank {ranks - 1}" in found["said"]
        else:
            assert "a gradient overflowed" in found["said"]
    rows = read_csv(tmp_path / "run" / "train.csv")
    assert [row["skipped"] for row in rows] == ["0.0", "1.0", "1.0", "0.0"]


@pytest.fixture
def two_ranks() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(2)


def test_stop_is_the_default(two_ranks: RankPool, tmp_path: Path) -> None:
    for found in two_ranks(meet, micro_run(tmp_path / "run", save_every=1), (2,), "output"):
        assert f"first in {PLACE} (Linear) on rank 1" in found["error"]
        assert "--resume auto goes on from step-000002" in found["error"]
        assert found["step"] == 2
        assert found["finite"]


def test_too_many_in_a_row_stop(two_ranks: RankPool, tmp_path: Path) -> None:
    config = micro_run(tmp_path / "run", nonfinite="skip", nonfinite_limit=2)
    for found in two_ranks(meet, config, (1, 3, 4, 5), "output"):
        assert "2 such steps in a row" in found["error"]
        assert found["step"] == 4, "the one at step 1 stood alone"
