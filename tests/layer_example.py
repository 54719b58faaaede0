"""README's layer example, literally as printed: what test_layer_example.py runs, here and under torchrun.

torchrun … tests/layer_example.py OUT     writes OUT.RANK: the losses and the weights

The block is run once as it stands. Then its lines from the forward on train three steps, over a model that is
wrapped in DistributedDataParallel where there are several processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from documents import blocks
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

MARK = "every expert starts as the FFN it replaces"
FORWARD = "with moe.batch(physics):"
STEPS, PARTS = 3, 2


def downloaded(name: str) -> Dinov2Model:
    """A small model of the form of what the name would download."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    return Dinov2Model(Dinov2Config(**sizes)).train()


def part_of_batch(step: int, part: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(PARTS * step + part)
    return {
        "pixels": torch.randn(2, 3, 28, 28, generator=draw),
        "physics": torch.randn(2, 3, generator=draw),
    }


def train(parts: Sequence[int], *, wrapped: bool) -> dict[str, Any]:
    """The means of these parts' losses, step by step, and the weights after the last."""
    (block,) = (block for block in blocks("python") if MARK in block.text)
    names: dict[str, Any] = {"task_loss": lambda tokens: tokens.square().mean(), **part_of_batch(0, 0)}
    exec(compile(block.text, str(block), "exec"), names)
    model = names["model"]
    with torch.no_grad():
        for layer in names["moe"].layers.values():  # routers that part their tokens
            layer.router.weight.normal_(generator=torch.Generator().manual_seed(1))
    if wrapped:
        names["model"] = torch.nn.parallel.DistributedDataParallel(model)
    forward_and_loss = compile(block.text[block.text.index(FORWARD) :], str(block), "exec")
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(0.0)
        for part in parts:
            names.update(part_of_batch(step, part))
            exec(forward_and_loss, names)
            (names["loss"] / len(parts)).backward()
            losses[-1] += float(names["loss"].detach()) / len(parts)
        optimizer.step()
    return {"losses": losses, "weights": torch.cat([p.detach().flatten() for p in model.parameters()])}


def train_as_rank() -> dict[str, Any]:
    """As one of the processes that a launcher started, in DistributedDataParallel."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    original = Dinov2Model.from_pretrained
    Dinov2Model.from_pretrained = downloaded
    try:
        return train([torch.distributed.get_rank()], wrapped=True)
    finally:
        Dinov2Model.from_pretrained = original


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = train_as_rank()
    torch.save(found, f"{sys.argv[1]}.{torch.distributed.get_rank()}")
    torch.distributed.destroy_process_group()
