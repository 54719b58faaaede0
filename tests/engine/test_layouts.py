"""One run, however it lies on ranks: losses, gradient norms and weights of every layout agree.

The reference is one rank with the whole batch.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import (
    begin,
    micro_run,
    optimizer_for_comparison,
    same_points_for_every_mask,
    shared_pool,
    slow,
    targets_matched_in_order,
)

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.executors.deepspeed.optimizer_state import OptimizerState, gather_weights
from crossearth_sar.moe.expert_parallel import ExpertParallelExperts

STEPS = 5
COMPARABLE = {"parallel.balance": "global", "validate_every": 10_000, "save_every": 10_000}


def every_step(config: RunConfig) -> dict[str, Any]:
    long = targets_matched_in_order() if config.steps > STEPS else contextlib.nullcontext()
    with same_points_for_every_mask(), optimizer_for_comparison(), long:
        trainer = begin(config)
        rows = []
        for batch in trainer._batches():
            rows.append(trainer._train_step(batch))
            trainer.step += 1
        weights = gather_weights(trainer.executor.engine)
        optimizer = OptimizerState(trainer.executor.engine)
        moments = {name: optimizer.gather(name, "exp_avg_sq") for name in optimizer.names}
    experts = trainer.executor.engine.module.backbone.blocks[0].mlp.experts.w1
    return {
        **{key: [row[key] for row in rows] for key in ("loss", "grad_norm", "loss_balance")},
        "weights": {name: value.detach().float().numpy().copy() for name, value in weights.items()},
        "moments": {name: value.numpy().copy() for name, value in moments.items()},
        "stepped": {n: optimizer._fragment(p).numel for n, p in optimizer._parameters.items()},
        "split": isinstance(
            trainer.executor.engine.module.backbone.blocks[0].mlp.experts, ExpertParallelExperts
        ),
        "experts here": getattr(experts, "ds_shape", experts.shape)[0],
    }


_runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}


def run(folder: Path, ranks: int, **changes: Any) -> list[dict[str, Any]]:
    """Each rank's findings; run once for the same arguments."""
    key = (ranks, *sorted(changes.items()))
    if key not in _runs:
        dotted = {name.replace("__", "."): value for name, value in changes.items()}
        config = micro_run(folder / "run", **{"steps": STEPS, **COMPARABLE, **dotted})
        _runs[key] = shared_pool(ranks)(every_step, config)
    return _runs[key]


def compare(found: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
    for rank in found:
        for name in ("loss", "grad_norm"):
            assert rank[name] == found[0][name], "the log's numbers are those of all ranks"
            assert rank[name] == pytest.approx(wanted[name], rel=1e-4), name
        assert rank["loss_balance"] == pytest.approx(wanted["loss_balance"], rel=1e-4)
        assert rank["weights"].keys() == wanted["weights"].keys()
        for name, value in rank["weights"].items():
            assert (value == found[0]["weights"][name]).all(), f"ranks differ in {name}"
            np.testing.assert_allclose(value, wanted["weights"][name], rtol=1e-4, atol=2e-5, err_msg=name)
        noise = 1e-12 * max(value.max() for value in wanted["moments"].values())  # where a gradient is 0
        for name, value in rank["moments"].items():
            scale = wanted["moments"][name].max()
            np.testing.assert_allclose(
                value, wanted["moments"][name], rtol=1e-3, atol=1e-3 * scale + noise, err_msg=name
            )


def check_partition(found: list[dict[str, Any]], stage: int) -> None:
    """Every element, experts' included, is stepped by one rank alone; without ZeRO by all."""
    for name in found[0]["moments"]:
        total = sum(rank["stepped"][name] for rank in found)
        assert total == found[0]["moments"][name].size * (1 if stage else len(found)), name


@pytest.fixture
def reference(tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip("deepspeed")
    return run(tmp_path, 1, parallel__zero_stage=0)[0]


TWO_RANKS = [
    {"parallel__ep_size": 1, "parallel__zero_stage": 0},
    {"parallel__ep_size": 1, "parallel__zero_stage": 2, "parallel__offload_optimizer": "cpu"},
    {"parallel__ep_size": 1, "parallel__zero_stage": 3},
    {"parallel__ep_size": 2, "parallel__zero_stage": 1, "parallel__activation_checkpointing": "true"},
    {"parallel__ep_size": 2, "parallel__zero_stage": 2},
]


def words(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name.removeprefix('parallel__')} {value}" for name, value in changes.items())


@pytest.mark.parametrize("changes", TWO_RANKS, ids=words)
def test_two_ranks_are_one_with_the_double_batch(
    reference: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = run(tmp_path, 2, **changes)
    assert found[0]["experts here"] == 6 // changes["parallel__ep_size"]
    assert found[0]["split"] == (changes["parallel__ep_size"] > 1), "no all-to-all for one rank's experts"
    check_partition(found, changes["parallel__zero_stage"])
    compare(found, reference)


def test_four_ranks_in_two_expert_groups(reference: dict[str, Any], tmp_path: Path) -> None:
    found = run(tmp_path, 4, parallel__ep_size=2, parallel__zero_stage=1)
    assert found[0]["experts here"] == 3
    check_partition(found, 1)
    compare(found, reference)


@pytest.mark.parametrize(("ranks", "ep_size", "zero"), [(2, 2, 1), (1, 1, 3)])
def test_without_clipping(tmp_path: Path, ranks: int, ep_size: int, zero: int) -> None:
    pytest.importorskip("deepspeed")
    unclipped = {"optim__clip_norm": 0.0}
    wanted = run(tmp_path, 1, parallel__zero_stage=0, **unclipped)[0]
    compare(run(tmp_path, ranks, parallel__ep_size=ep_size, parallel__zero_stage=zero, **unclipped), wanted)


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    """Without running statistics, which see the images of a pass together."""
    pytest.importorskip("deepspeed")
    # Shares over a pass are no shares over a batch, so the balance loss is left out.
    plain = {"model__moe__standardize": "false", "model__moe__balance_weight": 0}
    wanted = run(tmp_path, 1, parallel__zero_stage=0, **plain)[0]
    compare(run(tmp_path, 1, accumulation=2, parallel__zero_stage=1, **plain), wanted)
    compare(run(tmp_path, 2, accumulation=2, parallel__ep_size=1, parallel__zero_stage=3, **plain), wanted)


def test_local_balance_is_another_loss(reference: dict[str, Any], tmp_path: Path) -> None:
    local = run(tmp_path, 2, parallel__ep_size=2, steps=1, parallel__balance="local")[0]["loss_balance"]
    assert local[0] != pytest.approx(reference["loss_balance"][0], rel=1e-4)
    assert local[0] > reference["loss_balance"][0], "shares of fewer tokens are less even"


ALL_LAYOUTS = [
    *((1, {"parallel__ep_size": 1, "parallel__zero_stage": stage}) for stage in (1, 2, 3)),
    *((2, {"parallel__ep_size": 1, "parallel__zero_stage": stage}) for stage in (0, 1, 2, 3)),
    *((2, {"parallel__ep_size": 2, "parallel__zero_stage": stage}) for stage in (1, 2)),
    *((3, {"parallel__ep_size": 3, "parallel__zero_stage": stage}) for stage in (1, 2)),
    *((4, {"parallel__ep_size": 2, "parallel__zero_stage": stage}) for stage in (1, 2)),
    (6, {"parallel__ep_size": 6, "parallel__zero_stage": 1}),
    (6, {"parallel__ep_size": 3, "parallel__zero_stage": 2}),
    (6, {"parallel__ep_size": 1, "parallel__zero_stage": 3}),
]


@slow
@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "changes"), ALL_LAYOUTS)
def test_thirty_steps_in_every_layout(tmp_path: Path, ranks: int, changes: dict[str, Any]) -> None:
    pytest.importorskip("deepspeed")
    # A rate at which rounding does not grow: at 1e-4 it doubles every step, as it would between two machines,
    # until it flips a rectifier, a side of a mask's threshold or an expert (bench/reports/LOG.md).
    long = {
        "steps": 30,
        "batch_size": 12,
        "optim__warmup_steps": 5,
        "optim__lr": 2e-5,
        "model__decoder__importance_ratio": 0,
    }
    wanted = run(tmp_path, 1, parallel__zero_stage=0, **long)[0]
    found = run(tmp_path, ranks, **changes, **long)
    assert wanted["loss"][-1] < 0.98 * wanted["loss"][0], "a run that learns nothing agrees with any other"
    for name in ("loss", "grad_norm"):
        difference = np.abs(np.array(found[0][name]) / np.array(wanted[name]) - 1).max()
        print(f"{ranks} ranks, {words(changes)}: {name} differs by at most {difference:.1e}")
    compare(found, wanted)
