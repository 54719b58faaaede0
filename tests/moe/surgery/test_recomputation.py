"""A replaced model whose blocks are computed again in backward: the same gradients, and the routing once."""

from __future__ import annotations

import pytest
import torch
from test_replace import DIM, DINOV2, LAYERS, Transformer, dinov2, large_routers, part_experts
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossearth_sar import InputError, replace_ffn
from crossearth_sar.moe import ReplacedFFN


def gradients(
    model: Transformer, moe: ReplacedFFN, batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Of the sum of all batches' losses; every forward comes before the one backward."""
    model.zero_grad()
    losses = []
    for x, descriptors in batches:
        with moe.batch(descriptors):
            losses.append(model(x).square().mean() + moe.balance_loss(0.1))
    with torch.no_grad(), moe.batch(torch.full_like(batches[0][1], 5.0)):
        model(batches[0][0])  # as for a validation picture between forward and backward
    torch.stack(losses).sum().backward()
    assert len(moe.routing()) == LAYERS, "recomputation must not add to it"
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def checkpointed_model() -> tuple[Transformer, ReplacedFFN, list[tuple[Tensor, Tensor]]]:
    model = Transformer()
    moe = replace_ffn(model, "*.mlp", gate="probability")
    large_routers(moe)
    part_experts(moe)
    return model, moe, [(torch.randn(2, 7, DIM), 3 * torch.randn(2, 3)) for _ in range(2)]


def test_checkpointing_changes_no_gradient_and_doubles_no_routing() -> None:
    model, moe, batches = checkpointed_model()
    expected = gradients(model, moe, batches[:1])
    model.reentrant = False
    torch.testing.assert_close(gradients(model, moe, batches[:1]), expected)


def test_checkpointing_with_two_forwards_before_one_backward() -> None:
    model, moe, batches = checkpointed_model()
    expected = gradients(model, moe, batches)
    model.reentrant, model.context_fn = False, moe.checkpoint_context
    torch.testing.assert_close(gradients(model, moe, batches), expected)
    model.context_fn = None
    mixed_up = gradients(model, moe, batches)
    assert not all(torch.allclose(mixed_up[name], expected[name]) for name in expected), (
        "or the descriptors matter so little here that the test proves nothing"
    )


def test_the_whole_model_checkpointed() -> None:
    def describe(_: nn.Module, x: Tensor) -> Tensor:
        return x.mean(1)[:, :3] * 10

    model, x = Transformer(), torch.randn(2, 7, DIM, requires_grad=True)
    moe = replace_ffn(model, "*.mlp", descriptors=describe, gate="probability")
    model(x).square().mean().backward()
    expected = x.grad
    x.grad = None
    loss = checkpoint(model, x, use_reentrant=False).square().mean()
    routing = moe.routing()
    loss.backward()
    torch.testing.assert_close(x.grad, expected)
    assert moe.routing() == routing


def test_reentrant_checkpointing_cannot_carry_the_balance_loss() -> None:
    model = Transformer()
    moe = replace_ffn(model, "*.mlp")
    model.reentrant = True
    y = model(torch.randn(2, 7, DIM, requires_grad=True))
    with pytest.raises(InputError, match="use_reentrant=False"):
        moe.balance_loss()
    y.sum().backward()
    assert len(moe.routing()) == LAYERS


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # the name in 5.0
def test_transformers_own_gradient_checkpointing() -> None:
    model, pixels = dinov2(), torch.randn(1, 3, 28, 28)
    moe = replace_ffn(model, DINOV2)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    (model(pixels).last_hidden_state.square().mean() + moe.balance_loss()).backward()
    assert len(moe.routing()) == LAYERS
    assert all(layer.router.weight.grad.abs().sum() > 0 for layer in moe.layers.values())
    assert all(layer.experts.w1.grad.abs().sum() > 0 for layer in moe.layers.values())


@pytest.mark.parametrize("own_context", [False, True])
def test_compiled_blocks_within_checkpoints(own_context: bool) -> None:
    model, moe, batches = checkpointed_model()
    blocks = [torch.compile(block, backend="aot_eager", fullgraph=True) for block in model.blocks]
    options = {"context_fn": moe.checkpoint_context} if own_context else {}
    for x, descriptors in batches:  # the second takes the graphs of the first
        expected = gradients(model, moe, [(x, descriptors)])
        model.zero_grad()
        y = x
        with moe.batch(descriptors):
            for block in blocks:
                y = checkpoint(block, y, use_reentrant=False, **options)
        (y.square().mean() + moe.balance_loss(0.1)).backward()
        assert len(moe.routing()) == LAYERS, "recomputation must not add to it"
        torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, expected)
