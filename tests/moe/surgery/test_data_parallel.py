"""A replaced model under DistributedDataParallel: two ranks with half the batch each are one process."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from ranks import shared_pool
from test_replace import DINOV2, dinov2, large_routers, part_experts
from torch import Tensor

from crossearth_sar import replace_ffn
from crossearth_sar.moe import ReplacedFFN

STEPS = 3


def replaced() -> tuple[torch.nn.Module, ReplacedFFN]:
    torch.manual_seed(0)
    model = dinov2()
    model.embeddings.mask_token.requires_grad_(False)  # unused: transformers' own, for masked images
    moe = replace_ffn(model, DINOV2, gate="straight_through")
    large_routers(moe)
    part_experts(moe)
    return model.train(), moe


def halves(step: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(step)
    pixels, physics = torch.randn(4, 3, 28, 28, generator=draw), torch.randn(4, 3, generator=draw)
    return [(pixels[:2], physics[:2]), (pixels[2:], physics[2:])]


def loss_of(model: Any, moe: ReplacedFFN, half: tuple[Tensor, Tensor], balance: float) -> Tensor:
    with moe.batch(half[1]):
        tokens = model(half[0]).last_hidden_state
    loss: Tensor = tokens.square().mean()
    return loss + moe.balance_loss(balance) if balance else loss


def train_alone(balance: float) -> tuple[list[float], list[Tensor]]:
    """One process, the mean of the halves' losses."""
    model, moe = replaced()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = [loss_of(model, moe, half, balance) / 2 for half in halves(step)]
        torch.stack(parts).sum().backward()
        optimizer.step()
        losses.append(float(sum(part.detach() for part in parts)))
    return losses, [p.detach() for p in model.parameters()]


def train_together(kind: str, balance: float) -> tuple[list[float], float]:
    """On each rank: its losses, and how far its weights end from those of one process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    model, moe = replaced()
    options: dict[str, Any] = {"plain": {}, "find_unused": {"find_unused_parameters": True}}.get(kind, {})
    if kind == "static_graph":
        options = {"static_graph": True}
    if kind == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    parallel: Any = torch.nn.parallel.DistributedDataParallel(model, **options)
    run = torch.compile(parallel, backend="aot_eager") if kind == "compile" else parallel
    rank = torch.distributed.get_rank()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        half = halves(step)[rank]
        if kind == "no_sync":  # the half in two passes, of which the last alone is exchanged
            parts = [(half[0][n : n + 1], half[1][n : n + 1]) for n in range(2)]
            total = 0.0
            for number, part in enumerate(parts):
                with parallel.no_sync() if number == 0 else contextlib.nullcontext():
                    loss = loss_of(parallel, moe, part, balance) / 2
                    loss.backward()
                total += float(loss.detach())
            losses.append(total)
        else:
            loss = loss_of(run, moe, half, balance)
            loss.backward()
            losses.append(float(loss.detach()))
        optimizer.step()
    whole = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(whole) for _ in range(2)]
    torch.distributed.all_gather(both, whole)
    assert torch.equal(both[0], both[1]), "the ranks' weights part"
    alone = torch.cat([p.flatten() for p in train_alone(balance)[1]])
    return losses, float((whole - alone).abs().max())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "balance"),
    [
        ("plain", 0.1),
        ("plain", 0.0),
        ("find_unused", 0.1),
        ("static_graph", 0.1),
        ("checkpointing", 0.1),
        ("compile", 0.1),
        ("no_sync", 0.0),  # a pass's balance loss is of its own tokens: in smaller passes another loss
    ],
)
def test_two_ranks_are_one_process(kind: str, balance: float) -> None:
    (first, apart), (second, _) = shared_pool(2)(train_together, kind, balance)
    together = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert together == pytest.approx(train_alone(balance)[0], rel=1e-6)
    assert apart < 1e-5
