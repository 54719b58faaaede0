"""The planner's arithmetic against what small runs were seen to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import begin, micro_run, shared_pool

from crossearth_sar.__main__ import main
from crossearth_sar.config import merge
from crossearth_sar.engine.memory import activation_bytes, count_parameters, state_bytes
from crossearth_sar.engine.planner import make_plans, parse_memory, recommend
from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.presets import ModelConfig, model_preset

WIDER: dict[str, Any] = {"model.vit.dim": 96, "model.vit.num_heads": 3, "train.name": "planned"}
"""Wide enough that padding and scalars do not count."""


def held_bytes(output: str, changes: dict[str, Any]) -> dict[str, float]:
    """A task of the ranks: unique bytes of weights and optimizer states, and of gradients at their most."""
    trainer = begin(micro_run(Path(output), steps=2, **changes))
    engine, seen = trainer.engine, {}
    parameters = list(engine.module.parameters())
    # ZeRO 1 holds all gradients until it reduces them; ZeRO 2 reduces while they come, bucket by bucket.
    moment = (
        "overlapping_partition_gradients_reduce_epilogue" if changes["parallel.zero_stage"] == 1 else "step"
    )
    original = getattr(engine.optimizer, moment)

    def look(*arguments: Any, **named: Any) -> Any:
        averaged = getattr(engine.optimizer, "averaged_gradients", None) or {}
        flat = [gradient for group in averaged.values() for gradient in (group or [])]
        seen["gradients"] = unique_bytes([*(p.grad for p in parameters), *flat])
        return original(*arguments, **named)

    setattr(engine.optimizer, moment, look)
    trainer.fit()
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [t for state in inner.state.values() for t in state.values() if torch.is_tensor(t)]
    masters = getattr(engine.optimizer, "single_partition_of_fp32_groups", [])
    return {**seen, "weights": unique_bytes(parameters), "optimizer": unique_bytes([*moments, *masters])}


def unique_bytes(tensors: list[Any]) -> float:
    """Not of whole storages: gradients may be views of a communication bucket."""
    held = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if t is not None}
    return float(sum(held.values()))


@pytest.mark.parametrize(("stage", "ep_size"), [(0, 1), (1, 1), (1, 2), (2, 2)])
def test_states_are_within_a_tenth_of_what_two_ranks_hold(tmp_path: Path, stage: int, ep_size: int) -> None:
    changes = {**WIDER, "parallel.zero_stage": stage, "parallel.ep_size": ep_size}
    measured = shared_pool(2)(held_bytes, str(tmp_path), changes)
    config = merge(model_preset("crossearth_sar_tiny", 6), micro_run(tmp_path, **changes).model, "model")
    planned = state_bytes(count_parameters(config), ranks=2, ep_size=ep_size, zero_stage=stage, bf16=False)
    for rank in measured:
        for kind, got in rank.items():
            assert got == pytest.approx(getattr(planned, kind), rel=0.1), kind


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_a_real_forward(checkpointing: bool) -> None:
    config = model_preset("crossearth_sar_tiny", 7)
    model = CrossEarthSAR(config)
    model.backbone.activation_checkpointing = checkpointing
    saved: dict[int, int] = {}
    kept = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(torch.rand(2, 1, 128, 128) + 0.1)
    assert output.routing
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    real = sum(size for storage, size in saved.items() if storage not in own)
    planned = activation_bytes(config, bf16=False, checkpointing=checkpointing, images=2)
    assert planned == pytest.approx(real, rel=0.03)


def test_the_large_model_has_the_papers_size() -> None:
    count = count_parameters(model_preset("crossearth_sar_l", 7))
    assert count.backbone == pytest.approx(1.31e9, rel=0.005)
    assert count.active_backbone == pytest.approx(304e6, rel=0.005)


def small_plans(memory: float) -> list[Any]:
    config: ModelConfig = model_preset("crossearth_sar_tiny", 7)
    return make_plans(config, ranks=6, memory=memory, bf16=True)


def test_recommends_the_simplest_that_fits_and_nothing_when_none_does() -> None:
    plans = small_plans(memory=3e9)
    best = recommend(plans, images=1)
    assert best is not None
    assert (best.zero_stage, best.ep_size, best.checkpointing) == (1, 1, False)
    most = max(plan.images for plan in plans)
    crowded = recommend(plans, images=most)
    assert crowded is not None
    assert crowded.images == most
    assert recommend(plans, images=most + 1) is None
    assert {plan.ep_size for plan in plans} == {1, 2, 3, 6}


def test_offloading_moves_the_optimizer_to_the_host() -> None:
    plain, offloaded = (
        next(
            p
            for p in small_plans(3e9)
            if p.zero_stage == 1 and p.ep_size == 1 and p.offload_optimizer == flag
        )
        for flag in (False, True)
    )
    assert offloaded.states.host == plain.states.optimizer
    assert offloaded.states.device == pytest.approx(plain.states.device - plain.states.optimizer)


@pytest.mark.parametrize(("text", "value"), [("80GB", 80e9), ("24 GiB", 24 * 2**30), ("512mb", 512e6)])
def test_memory_in_words(text: str, value: float) -> None:
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["80", "GB", "eighty GB", "80TBs"])
def test_memory_not_understood(text: str) -> None:
    with pytest.raises(InputError, match="GiB"):
        parse_memory(text)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "tiny", "--gpus", "2", "--memory", "4GB"]) == 0
    assert "Take --set parallel.zero_stage=1 parallel.ep_size=1" in capsys.readouterr().out
    assert main(["plan", "--preset", "tiny", "--gpus", "2", "--memory", "100MB"]) == 1
    assert "Nothing takes" in capsys.readouterr().out
    assert main(["plan", "--preset", "tyny", "--gpus", "2", "--memory", "4GB"]) == 2
    assert "crossearth_sar_tiny" in capsys.readouterr().err
