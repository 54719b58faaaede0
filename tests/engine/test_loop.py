"""Training under DeepSpeed on real ranks: the same run however experts and optimizer states are split."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankPool, micro_run, shared_pool

from crossearth_sar.engine import loop
from crossearth_sar.engine.checkpoint import list_checkpoints
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import start_ranks
from crossearth_sar.engine.log import read_csv
from crossearth_sar.engine.loop import Trainer
from crossearth_sar.engine.optim import learning_rate, make_optimizer
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.evaluate import evaluate
from crossearth_sar.moe.expert_parallel import full_state_dict

STEPS = 5


@pytest.fixture
def two_ranks() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(2)


@pytest.fixture
def one_rank() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(1)


def begin(config: RunConfig, resume: str | None = None) -> Trainer:
    """A trainer on this rank, ready to fit, with one thread."""
    ranks = start_ranks()
    torch.set_num_threads(1)
    trainer = Trainer(config, ranks)
    trainer.start(resume)
    return trainer


def every_step(trainer: Trainer) -> list[dict[str, float]]:
    rows = []
    for batch in trainer._batches():
        rows.append(trainer._train_step(batch))
        trainer.step += 1
    return rows


def optimizer_for_comparison(model: Any, config: Any) -> torch.optim.AdamW:
    """AdamW whose epsilon drowns rounding: a bias whose true gradient is 0 would follow the sign of noise.

    Experts get weights that make their gradients a good part of the whole norm.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".experts.w1", ".experts.w2")):
                parameter.mul_(8)
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["eps"] = 1e-3
    return optimizer


def compare_layouts(config: RunConfig) -> dict[str, Any]:
    loop.make_optimizer = optimizer_for_comparison
    try:
        trainer = begin(config)
    finally:
        loop.make_optimizer = make_optimizer
    start = {name: value.clone() for name, value in full_state_dict(trainer.engine.module).items()}
    rows = every_step(trainer)
    end = full_state_dict(trainer.engine.module)
    split = trainer.engine.module.backbone.blocks[0].mlp.experts.w1.shape[0]
    return {
        "loss": [row["loss"] for row in rows],
        "grad_norm": [row["grad_norm"] for row in rows],
        "weights": {name: value.detach().numpy().copy() for name, value in end.items()},
        "moved": float(
            (end["backbone.blocks.0.mlp.experts.w1"] - start["backbone.blocks.0.mlp.experts.w1"]).abs().max()
        ),
        "experts here": split,
    }


_layouts: dict[tuple[int, int, float], list[dict[str, Any]]] = {}


def run_layout(
    two_ranks: RankPool, tmp_path: Path, ep_size: int, zero: int, clip: float
) -> list[dict[str, Any]]:
    key = (ep_size, zero, clip)
    if key not in _layouts:
        changes = {"parallel.ep_size": ep_size, "parallel.zero_stage": zero, "optim.clip_norm": clip}
        _layouts[key] = two_ranks(compare_layouts, micro_run(tmp_path / "run", steps=STEPS, **changes))
    return _layouts[key]


@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize(("ep_size", "zero"), [(1, 0), (1, 2), (2, 1), (2, 2)])
def test_every_layout_of_ranks_is_the_same_run(
    two_ranks: RankPool, tmp_path: Path, ep_size: int, zero: int, clip: float
) -> None:
    plain = run_layout(two_ranks, tmp_path, 1, 1, clip)[0]
    first, second = run_layout(two_ranks, tmp_path, ep_size, zero, clip)
    assert first["experts here"] == 6 // ep_size
    assert first["moved"] > 1e-5, "experts learn"
    for name in ("loss", "grad_norm"):
        assert first[name] == second[name], "the log's numbers are those of all ranks"
        assert first[name] == pytest.approx(plain[name], rel=1e-4), name
    for name, value in first["weights"].items():
        assert (value == second["weights"][name]).all(), f"ranks differ in {name}"
        torch.testing.assert_close(
            torch.from_numpy(value), torch.from_numpy(plain["weights"][name]), rtol=1e-5, atol=1e-5
        )


def accumulate(config: RunConfig) -> dict[str, Any]:
    trainer = begin(config)
    rows = every_step(trainer)
    inner = getattr(trainer.engine.optimizer, "optimizer", trainer.engine.optimizer)
    return {
        "rows": rows,
        "global_steps": trainer.engine.global_steps,
        "micro_steps": trainer.engine.micro_steps,
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


def whole_run(config: RunConfig) -> dict[str, Any]:
    trainer = begin(config)
    finished = trainer.fit()
    shared = trainer.evaluate(trainer.validation)
    alone = evaluate(trainer.replica, trainer.validation, range(len(trainer.validation)))
    at_most = trainer.evaluate(trainer.validation, 3)
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
    assert [row["step"] for row in read_csv(output / "validation.csv")] == ["2", "4", "5"]
    assert [path.name for path in list_checkpoints(output / "checkpoints")] == ["step-000004", "step-000005"]


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
    step = trainer.engine.step

    def watch() -> None:
        gradients = [p.grad for p in trainer.engine.module.parameters() if p.grad is not None]
        seen.append(float(torch.nn.utils.get_total_norm(gradients)))
        step()

    trainer.engine.step = watch
    return trainer._train_step(next(trainer._batches()))["grad_norm"], seen[0]


def test_the_gradient_norm_is_logged_without_zero_too(one_rank: RankPool, tmp_path: Path) -> None:
    ((logged, direct),) = one_rank(one_step_norm, micro_run(tmp_path / "run", **{"parallel.zero_stage": 0}))
    assert logged == pytest.approx(direct)
    assert logged > 0
