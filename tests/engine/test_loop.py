"""Training under DeepSpeed on real ranks: the same run however experts and optimizer states are split."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankPool, begin, micro_run, shared_pool
from safetensors.torch import load_file

from crossearth_sar.engine.checkpoint_files import list_checkpoints
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.log import TensorBoard, read_csv
from crossearth_sar.engine.objectives.domains import evaluate_together
from crossearth_sar.engine.optim import learning_rate
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.evaluate import evaluate

STEPS = 5


@pytest.fixture
def two_ranks() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(2)


@pytest.fixture
def one_rank() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(1)


def every_step(trainer: Any) -> list[dict[str, float]]:
    rows = []
    for batch in trainer._batches():
        rows.append(trainer._train_step(batch))
        trainer.step += 1
    return rows


def accumulate(config: RunConfig) -> dict[str, Any]:
    trainer = begin(config)
    rows = every_step(trainer)
    inner = getattr(trainer.executor.engine.optimizer, "optimizer", trainer.executor.engine.optimizer)
    return {
        "rows": rows,
        "global_steps": trainer.executor.engine.global_steps,
        "micro_steps": trainer.executor.engine.micro_steps,
        "adam_steps": {int(state["step"]) for state in inner.state.values()},
    }


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_accumulation_makes_one_optimizer_step_of_several_passes(
    one_rank: RankPool, tmp_path: Path, zero: int
) -> None:
    found = {}
    for accumulation in (1, 2):
        changes = {"batch_size": 8, "accumulation": accumulation, "parallel.zero_stage": zero}
        config = micro_run(tmp_path / "run", steps=3, **changes)
        (found[accumulation],) = one_rank(accumulate, config)
        assert found[accumulation]["global_steps"] == 3
        assert found[accumulation]["micro_steps"] == 3 * accumulation
        assert found[accumulation]["adam_steps"] == {3}
        rates = [learning_rate(config.optim, step, 3) for step in range(3)]
        assert [row["lr"] for row in found[accumulation]["rows"]] == rates
        assert [row["step"] for row in found[accumulation]["rows"]] == [0, 1, 2]
    whole, halves = (found[a]["rows"] for a in (1, 2))
    for a, b in zip(whole, halves, strict=True):  # the loss samples other points, so only about the same
        assert b["loss"] == pytest.approx(a["loss"], rel=0.1)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=0.35), "a mean over passes, not a sum"


def closed(board: TensorBoard) -> bool:
    return getattr(board._writer, "file_writer", None) is None  # also where TensorBoard is not installed


def whole_run(config: RunConfig) -> dict[str, Any]:
    trainer = begin(config)
    finished = trainer.fit()
    model, held_out = trainer.executor.whole(), trainer.objective.domains.validation
    shared = evaluate_together(model, held_out, trainer.ranks)
    alone = evaluate(model, held_out, range(len(held_out)))
    at_most = evaluate_together(model, held_out, trainer.ranks, 3)
    try:
        begin(config)
        refused = ""
    except InputError as error:
        refused = str(error)
    return {
        "finished": finished,
        "step": trainer.step,
        "same counts": torch.equal(shared.confusion.counts, alone.confusion.counts),
        "same tokens": torch.equal(shared.tokens_LE, alone.tokens_LE),
        "pixels": (int(shared.confusion.counts.sum()), int(at_most.confusion.counts.sum())),
        "refused": refused,
        "events written": not trainer.ranks.is_main or closed(trainer.log.tensorboard),
    }


def test_a_whole_run_on_two_ranks(two_ranks: RankPool, tmp_path: Path) -> None:
    changes = {"save_every": 2, "validate_every": 2, "validation_samples": 3, "keep_checkpoints": 2}
    config = micro_run(tmp_path / "run", steps=STEPS, **changes)
    for found in two_ranks(whole_run, config):
        assert found["finished"]
        assert found["step"] == STEPS
        assert found["same counts"], "an evaluation shared among ranks is the whole one"
        assert found["same tokens"]
        assert found["pixels"] == (5 * 64 * 64, 3 * 64 * 64)
        assert "holds a run already" in found["refused"]
        assert found["events written"], "TensorBoard's writer is closed, so its last events are on disk"
        assert "--resume" in found["refused"]
    output = tmp_path / "run"
    rows = read_csv(output / "train.csv")
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert [float(row["lr"]) for row in rows] == [learning_rate(config.optim, s, STEPS) for s in range(STEPS)]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(
            sum(float(row[f"loss_{part}"]) for part in ("class", "mask", "dice", "balance")), rel=1e-5
        )
        assert float(row["grad_norm"]) > 0
        assert 1 / 6 <= float(row["largest_expert_share"]) <= 1
        assert float(row["tokens_per_second"]) == pytest.approx(17 * float(row["images_per_second"]))
        assert 0 <= float(row["data_wait"]) < 1
        assert float(row["expert_balance"]) == pytest.approx(6 * float(row["largest_expert_share"]))
        assert 1 <= float(row["max_rank_load"]) <= 2
    assert [row["step"] for row in read_csv(output / "validation.csv")] == ["2", "4", "5"]
    scores = {int(row["step"]): float(row["miou"]) for row in read_csv(output / "validation.csv")}
    best = max(scores, key=lambda step: (scores[step], -step))
    kept = {f"step-{step:06d}" for step in (best, 4, 5)}
    assert {path.name for path in list_checkpoints(output / "checkpoints")} == kept


def bf16_run(config: RunConfig) -> dict[str, Any]:
    trainer = begin(config)
    trainer.fit()
    trainer.finish()
    return {name: value.numpy().copy() for name, value in trainer.executor.replica.state_dict().items()}


def test_what_is_scored_and_left_are_the_masters(one_rank: RankPool, tmp_path: Path) -> None:
    """Not the rounded weights that bf16 trains with: the last model is that of the last checkpoint."""
    output = tmp_path / "run"
    scored = one_rank(bf16_run, micro_run(output, steps=2, precision="bf16"))
    saved = load_file(output / "checkpoints" / "step-000002" / "model.safetensors")
    left = load_file(output / "model" / "model.safetensors")
    assert saved.keys() == left.keys() == scored[0].keys()
    rounded = [name for name, value in saved.items() if torch.equal(value, value.bfloat16().float())]
    assert len(rounded) < len(saved) / 2, "masters have more digits than bf16"
    for name, value in saved.items():
        assert torch.equal(left[name], value), name
        assert all((value.numpy() == there[name]).all() for there in scored), name


def stop_at(config: RunConfig, at_step: int, on_rank: int) -> tuple[bool, int]:
    trainer = begin(config)
    step = trainer._train_step

    def interrupted(batch: dict[str, Any]) -> dict[str, float]:
        if trainer.step == at_step and dist.get_rank() == on_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer._train_step = interrupted  # type: ignore[method-assign]
    return trainer.fit(), trainer.step


def test_a_signal_to_one_rank_stops_all_after_the_step(two_ranks: RankPool, tmp_path: Path) -> None:
    config = micro_run(tmp_path / "run")
    assert two_ranks(stop_at, config, 2, 1) == [(False, 3)] * 2
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000003"]
    assert len(read_csv(tmp_path / "run" / "train.csv")) == 3


def one_step_norm(config: RunConfig) -> tuple[float, float]:
    """The logged norm of the first step, and that of all gradients as backward left them."""
    trainer = begin(config)
    seen = []
    step = trainer.executor.engine.step

    def watch() -> None:
        gradients = [p.grad for p in trainer.executor.engine.module.parameters() if p.grad is not None]
        seen.append(float(torch.nn.utils.get_total_norm(gradients)))
        step()

    trainer.executor.engine.step = watch
    return trainer._train_step(next(iter(trainer._batches())))["grad_norm"], seen[0]


def test_the_gradient_norm_is_logged_without_zero_too(one_rank: RankPool, tmp_path: Path) -> None:
    ((logged, direct),) = one_rank(one_step_norm, micro_run(tmp_path / "run", **{"parallel.zero_stage": 0}))
    assert logged == pytest.approx(direct)
    assert logged > 0
