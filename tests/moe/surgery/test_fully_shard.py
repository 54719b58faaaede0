"""A replaced model under FSDP2 (`fully_shard`): two ranks with half the batch each are one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import shared_pool
from test_data_parallel import STEPS, halves, loss_of, replaced, train_alone
from torch import Tensor, nn

from crossearth_sar.moe import ReplacedFFN

BALANCE, RATE = 0.1, 0.05


def shard(model: nn.Module, moe: ReplacedFFN, kind: str) -> None:
    """Blocks and the whole, as FSDP2's documents do it; of kind «experts» each stack of experts first."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh("cpu", (2,))
    options: dict[str, Any] = {"mesh": mesh}
    if kind == "mixed":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if kind == "experts":
        for layer in moe.layers.values():
            fully_shard(layer.experts, **options)
    for block in model.encoder.layer:  # type: ignore[union-attr]
        fully_shard(block, **options)
    fully_shard(model, **options)


def whole_weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().full_tensor() for p in model.parameters()]  # type: ignore[operator]


def trained_together(kind: str) -> tuple[nn.Module, ReplacedFFN, list[float]]:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank, (model, moe), losses = torch.distributed.get_rank(), replaced(), []
    shard(model, moe, kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, moe, halves(step)[rank], BALANCE)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, moe, losses


def train_together(kind: str) -> tuple[list[float], list[Tensor]]:
    model, _, losses = trained_together(kind)
    return losses, whole_weights(model)


def train_alone_in_bfloat16() -> tuple[list[float], list[Tensor]]:
    """One process with float32 weights, of which each forward takes a copy in bfloat16."""
    model, moe = replaced()
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def call(pixels: Tensor) -> Any:
        copies = {name: p.bfloat16() for name, p in model.named_parameters()}
        return torch.func.functional_call(model, copies, (pixels.bfloat16(),))

    for step in range(STEPS):
        optimizer.zero_grad()
        parts = [loss_of(call, moe, half, BALANCE) / 2 for half in halves(step)]
        for part in parts:
            part.backward()
        optimizer.step()
        losses.append(float(sum(part.detach().float() for part in parts)))
    return losses, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["blocks", "experts", "mixed"])
def test_two_ranks_are_one_process(kind: str) -> None:
    (first, weights), (second, _) = shared_pool(2)(train_together, kind)
    losses, expected = train_alone_in_bfloat16() if kind == "mixed" else train_alone(BALANCE)
    together = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert together == pytest.approx(losses, rel=1e-6)
    for got, want in zip(weights, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def save_and_load(folder: str) -> dict[str, Any]:
    """Trains, saves by torch.distributed.checkpoint, and loads into a model that was not trained."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model, moe, _ = trained_together("experts")
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder)
    fresh, fresh_moe = replaced()
    shard(fresh, fresh_moe, "experts")
    state = {"model": get_model_state_dict(fresh)}
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(fresh, state["model"])
    pixels, physics = halves(0)[0]
    outputs = []
    for run, handle in ((model, moe), (fresh, fresh_moe)):
        with torch.no_grad(), handle.batch(physics):
            outputs.append(run.eval()(pixels).last_hidden_state)
    return {"trained": outputs[0], "loaded": outputs[1]}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_distributed_checkpoint_loads_on_two_ranks_and_on_one_process(tmp_path: Any) -> None:
    import torch.distributed.checkpoint as dcp

    for found in shared_pool(2)(save_and_load, str(tmp_path)):
        assert torch.equal(found["loaded"], found["trained"])
    model, moe = replaced()
    pixels, physics = halves(0)[0]
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    model.load_state_dict(state["model"])
    with torch.no_grad(), moe.batch(physics):
        loaded = model.eval()(pixels).last_hidden_state
    torch.testing.assert_close(loaded, found["trained"], rtol=0, atol=1e-6)
