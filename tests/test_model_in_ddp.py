"""A whole CrossEarthSAR in somebody's own DistributedDataParallel: every parameter gets a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from micro_model import MICRO, amplitude, label, micro
from ranks import shared_pool
from torch import Tensor

from crossearth_sar import CrossEarthSAR, build_model

STEPS = 2


@pytest.mark.parametrize("kind", ["mask2former", "fpn", "upernet", "linear", "dense"])
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    decoder = {} if kind in ("mask2former", "dense") else {"decoder": {"kind": kind}}
    model = build_model(
        "crossearth_sar_tiny", 3, changes={**MICRO, **decoder}, sparse=kind != "dense"
    ).train()
    model.loss(model(amplitude(2, 1, 64, 64)), label()).total.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "DDP would wait for these"
    norm = model.backbone.norm.weight.grad
    assert norm is not None
    assert not bool(norm.any()), "what serves features alone is not trained by a task that looks elsewhere"


def small() -> CrossEarthSAR:
    torch.manual_seed(0)
    model = build_model("crossearth_sar_tiny", 3, changes={**MICRO, "decoder": {"kind": "fpn"}}).train()
    model.standardizer.eval()  # its statistics are of all ranks' batches, here as in the halves below
    return model


def halves(step: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(step)
    images = amplitude(4, 1, 64, 64)
    return [(images[:2], label()), (images[2:], label())]


def train_alone() -> tuple[list[float], CrossEarthSAR]:
    """One process, the mean of the halves' losses."""
    model, losses = small(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = torch.stack([model.loss(model(image), mask).total for image, mask in halves(step)]).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, model


def train_together() -> tuple[list[float], float]:
    """On each rank: its losses, and how far its weights end from those of one process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank, model, losses = torch.distributed.get_rank(), small(), []
    parallel: Any = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        image, mask = halves(step)[rank]
        loss = model.loss(parallel(image), mask).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    pairs = zip(model.parameters(), train_alone()[1].parameters(), strict=True)
    return losses, max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def test_two_ranks_are_one_process() -> None:
    (first, apart), (second, apart_too) = shared_pool(2)(train_together)
    together = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert together == pytest.approx(train_alone()[0], rel=1e-6)
    assert max(apart, apart_too) < 1e-6


def test_what_is_reached_changes_no_output() -> None:
    model, image = micro().eval(), amplitude(1, 1, 64, 64)
    features = model.features(image)
    expected = model.require_decoder()(features.feature_maps)
    for got, want in zip(model(image).decoder[:2], expected[:2], strict=True):
        assert torch.equal(got, want)
