"""The planner's arithmetic against what small runs were seen to hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import begin, micro_run, shared_pool

from crossearth_sar.cli.main import main
from crossearth_sar.config import merge
from crossearth_sar.engine.planning import layout, memory
from crossearth_sar.engine.planning.memory import (
    StateBytes,
    activation_bytes,
    count_parameters,
    count_selfsup,
    state_bytes,
)
from crossearth_sar.engine.planning.planner import make_plans, parse_memory, recommend
from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.presets import ModelConfig, model_preset
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.di3cl import DI3CL

WIDER: dict[str, Any] = {"model.vit.dim": 96, "model.vit.num_heads": 3, "train.name": "planned"}
"""Wide enough that padding and scalars do not count."""


def held_bytes(output: str, changes: dict[str, Any], live: int) -> dict[str, float]:
    """A task of the ranks: unique bytes of weights and gradients at their most, and of optimizer states.

    Where the optimizer is offloaded its tensors are the host's, whatever the device.
    """
    with at_most_live(live):
        trainer = begin(micro_run(Path(output), steps=2, **changes))
    engine, inside = (
        trainer.executor.engine,
        getattr(trainer.executor.engine.optimizer, "optimizer", trainer.executor.engine.optimizer),
    )
    parameters = list(engine.module.parameters())
    most = {"weights": 0.0, "gradients": 0.0}

    def look(*_: Any) -> None:
        divided = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
        most["weights"] = max(most["weights"], unique_bytes([*parameters, *divided]))

    for block in engine.module.backbone.blocks:  # where ZeRO 3 has fetched what is large, both ways
        block.mlp.router.register_forward_hook(look)
        block.mlp.experts.w1.register_post_accumulate_grad_hook(look)
    at_reduction(engine, lambda: most.update(gradients=unique_bytes(gradients_of(engine, parameters))))
    for batch in trainer._batches():
        trainer._train_step(batch)
        trainer.step += 1
    moments = [t for state in inside.state.values() for t in state.values() if torch.is_tensor(t)]
    states = unique_bytes([*moments, *listed(engine.optimizer, *MASTERS)])
    if "parallel.offload_optimizer" not in changes:
        return {**most, "optimizer": states}
    kept = listed(engine.optimizer, *MASTERS, "param_buffer_of_bit16_for_cpu_offload_groups")
    flat = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    return {**most, "host": unique_bytes([*moments, *kept, *(t.grad for t in kept), flat])}


MASTERS = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")


def listed(optimizer: Any, *names: str) -> list[torch.Tensor]:
    return [tensor for name in names for tensor in getattr(optimizer, name, [])]


def gradients_of(engine: Any, parameters: list[Any]) -> list[Any]:
    averaged = getattr(engine.optimizer, "averaged_gradients", None) or {}
    flat = [gradient for group in averaged.values() for gradient in (group or [])]
    if hasattr(engine.optimizer, "grad_partitions_flat_buffer"):  # ZeRO 3, whose others are views of it
        flat = [] if engine.zero_cpu_offload() else [engine.optimizer.grad_partitions_flat_buffer]
    return [*(p.grad for p in parameters), *flat]


def at_reduction(engine: Any, look: Callable[[], None]) -> None:
    """Calls `look` when most gradients are there.

    ZeRO 1 holds all of them until it reduces them; ZeRO 2 and 3 reduce while they come, bucket by bucket.
    """
    stage = engine.zero_optimization_stage()
    moment = "overlapping_partition_gradients_reduce_epilogue" if stage == 1 else "step"
    original = getattr(engine.optimizer, moment)

    def first_look(*arguments: Any, **named: Any) -> Any:
        look()
        return original(*arguments, **named)

    setattr(engine.optimizer, moment, first_look)


@contextlib.contextmanager
def at_most_live(elements: int) -> Iterator[None]:
    """Runs that begin in here let ZeRO 3 hold so many parameters whole, and none for being small."""
    with pytest.MonkeyPatch.context() as patch:
        if elements:
            patch.setattr(layout, "LIVE_ELEMENTS", elements)
            patch.setattr(layout, "PERSISTENT_ELEMENTS", 0)
        yield


def unique_bytes(tensors: list[Any]) -> float:
    """Not of whole storages: gradients may be views of a communication bucket."""
    held = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if t is not None and t.numel()}
    return float(sum(held.values()))


def measured_and_planned(
    folder: Path, stage: int, ep_size: int, precision: str = "fp32", offload: bool = False, live: int = 0
) -> tuple[list[dict[str, float]], StateBytes]:
    changes = {**WIDER, "parallel.zero_stage": stage, "parallel.ep_size": ep_size, "precision": precision}
    if offload:
        changes["parallel.offload_optimizer"] = "cpu"
    measured = shared_pool(2)(held_bytes, str(folder), changes, live)
    config = merge(model_preset("crossearth_sar_tiny", 6), micro_run(folder, **changes).model, "model")
    planned = state_bytes(
        count_parameters(config),
        ranks=2,
        ep_size=ep_size,
        zero_stage=stage,
        bf16=precision == "bf16",
        offload_optimizer=offload,
    )
    return measured, planned


@pytest.mark.parametrize(
    ("stage", "ep_size", "precision", "offload"),
    [
        (0, 1, "fp32", False),
        (1, 1, "fp32", False),
        (1, 2, "bf16", False),
        (2, 2, "fp32", False),
        (2, 1, "bf16", True),
        (3, 1, "bf16", False),
        (3, 1, "bf16", True),
    ],
)
def test_states_are_within_a_tenth_of_what_two_ranks_hold(
    tmp_path: Path, stage: int, ep_size: int, precision: str, offload: bool
) -> None:
    measured, planned = measured_and_planned(tmp_path, stage, ep_size, precision, offload)
    for rank in measured:
        for kind, got in rank.items():
            assert got == pytest.approx(getattr(planned, kind), rel=0.1), kind


def test_zero_3_holds_no_more_whole_than_it_is_let(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, unlimited = measured_and_planned(tmp_path, 3, 1, live=400_000)
    monkeypatch.setattr(memory, "LIVE_ELEMENTS", 400_000)
    monkeypatch.setattr(memory, "PERSISTENT_ELEMENTS", 0)
    config = merge(model_preset("crossearth_sar_tiny", 6), micro_run(tmp_path, **WIDER).model, "model")
    planned = state_bytes(count_parameters(config), ranks=2, ep_size=1, zero_stage=3, bf16=False)
    for rank in measured:
        assert rank["weights"] < planned.weights < 0.7 * unlimited.weights
        assert rank["weights"] > 0.7 * planned.weights


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
    parameters = count_parameters(model_preset("crossearth_sar_tiny", 7)).total
    assert offloaded.states.host == (4 + 4 + 4 + 4 + 2) * parameters / 6, "master, moments, gradient, weight"
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


def test_self_supervised_training_is_counted_with_its_key_network(capsys: pytest.CaptureFixture[str]) -> None:
    config = merge(model_preset("crossearth_sar_tiny", 1), {"moe": None, "decoder": None})
    method = DI3CLConfig(queue_length=512, hidden_dim=256, output_dim=64)
    network = DI3CL(CrossEarthSAR(config), method)
    count, beside = count_selfsup(config, method)
    assert count.total == sum(p.numel() for p in network.parameters())
    queues = 2 * 512 * 64
    keys = sum(value.numel() for name, value in network.state().items() if name.startswith("key."))
    assert beside == pytest.approx(2 * 4 * (keys + queues), rel=1e-5)
    plans = make_plans(config, ranks=4, memory=16e9, bf16=True, method=method)
    assert {(plan.zero_stage, plan.ep_size) for plan in plans} == {(1, 1), (2, 1)}
    plain = make_plans(config, ranks=4, memory=16e9, bf16=True)
    assert plans[0].states.replica > plain[0].states.replica + 2 * 4 * keys
    assert plans[0].images < plain[0].images
    asked = ["plan", "--preset", "tiny", "--selfsup", "--crop", "96", "--gpus", "4", "--memory", "16GB"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "crops of 96 pixels" in said
    assert "key network" in said
