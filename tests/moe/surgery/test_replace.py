"""replace_ffn in transformers' Dinov2, in a transformer with timm's Mlp, and what it refuses.

timm itself is not imported (it needs torchvision): `Mlp` below has the structure of timm.layers.Mlp.
"""

from __future__ import annotations

import copy
import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Dinov2Config, Dinov2Model

import crossearth_sar
from crossearth_sar import InputError, replace_ffn
from crossearth_sar.moe import ReplacedFFN

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "dinov2_to_moe.py"
DINOV2 = "encoder.layer.*.mlp"
DIM, LAYERS = 32, 3


class Mlp(nn.Module):
    """The structure of timm.layers.Mlp."""

    def __init__(self, dim: int = DIM, hidden: int = 48, act: nn.Module | None = None, drop: float = 0.0,
                 bias: bool = True, norm: nn.Module | None = None) -> None:  # fmt: skip
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.act = act or nn.GELU()
        self.drop1 = nn.Dropout(drop)
        self.norm = norm or nn.Identity()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class Block(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(DIM), mlp

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Transformer(nn.Module):
    """Blocks without attention, with timm's forward_features, optionally checkpointed."""

    def __init__(self, make: Callable[[], nn.Module] = Mlp, layers: int = LAYERS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(make()) for _ in range(layers))
        self.reentrant: bool | None = None
        self.context_fn: Callable[[], object] | None = None

    def forward_features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            elif self.context_fn is not None:
                x = checkpoint(block, x, use_reentrant=False, context_fn=self.context_fn)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)


def dinov2(**changes: object) -> Dinov2Model:
    sizes = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    model = Dinov2Model(Dinov2Config(**{**sizes, "image_size": 28, "patch_size": 7, **changes})).eval()
    with torch.no_grad():  # away from the fresh weights: every bias 0, every FFN nearly linear
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def large_routers(moe: ReplacedFFN) -> None:
    """So that tokens part, and descriptors matter."""
    for layer in moe.layers.values():
        nn.init.normal_(layer.router.weight)


def part_experts(moe: ReplacedFFN) -> None:
    """As after some training: which expert a token takes shows in the output."""
    with torch.no_grad():
        for layer in moe.layers.values():
            layer.experts.w2.add_(0.3 * torch.randn_like(layer.experts.w2))


@torch.no_grad()
@pytest.mark.parametrize(("gate", "top_k"), [("normalized", 1), ("straight_through", 1), ("normalized", 2)])
@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "gelu_new", "relu"])
def test_dinov2_computes_what_it_did(gate: str, top_k: int, activation: str) -> None:
    model, pixels = dinov2(hidden_act=activation), torch.randn(2, 3, 28, 28)
    before = model(pixels).last_hidden_state
    moe = replace_ffn(model, DINOV2, num_experts=5, top_k=top_k, gate=gate)  # type: ignore[arg-type]
    large_routers(moe)
    assert moe.routing() == ()
    torch.testing.assert_close(model(pixels).last_hidden_state, before, rtol=0, atol=1e-5)
    assert list(moe.layers) == [f"encoder.layer.{i}.mlp" for i in range(LAYERS)]
    assert [tuple(r.expert_index.shape) for r in moe.routing()] == [(2, 17, top_k)] * LAYERS
    assert all(r.expert_index.unique().numel() > 1 for r in moe.routing())
    assert {layer.experts.expert.activation for layer in moe.layers.values()} == {
        {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}.get(activation, activation)
    }


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_timms_mlp_computes_what_it_did(bias: bool) -> None:
    model, x = Transformer(lambda: Mlp(bias=bias)), torch.randn(2, 7, DIM)
    before = model(x)
    large_routers(replace_ffn(model, "blocks.*.mlp", num_descriptors=0))
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_in_rows_and_columns() -> None:
    model, x = Transformer(), torch.randn(2, 3, 5, DIM)
    before = model(x)
    moe = replace_ffn(model, ["blocks.0.mlp", "blocks.2.m*"])
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
    assert list(moe.layers) == ["blocks.0.mlp", "blocks.2.mlp"]
    assert [r.expert_index.shape for r in moe.routing()] == [(2, 15, 1)] * 2
    with pytest.raises(InputError, match="tokens do not fit"):
        model(torch.randn(3, DIM))


def test_dtype_mode_and_frozen_weights_follow_the_dense_ffn() -> None:
    model = Transformer().bfloat16().eval()
    model.blocks[0].mlp.fc1.requires_grad_(False)
    first, second, _ = replace_ffn(model, "*.mlp").layers.values()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())
    frozen = {name for name, p in first.named_parameters() if not p.requires_grad}
    assert frozen == {"experts.w1", "experts.b1"}
    assert all(p.requires_grad for p in second.parameters())
    assert model(torch.randn(1, 3, DIM).bfloat16()).dtype == torch.bfloat16


def test_noise_parts_the_experts_and_is_the_same_for_a_seed() -> None:
    weights = Transformer().state_dict()

    def stacked(**options: object) -> Tensor:
        model = Transformer()
        model.load_state_dict(weights)
        return replace_ffn(model, "*.mlp", **options).layers["blocks.1.mlp"].experts.w1.detach()  # type: ignore[arg-type]

    dense = weights["blocks.1.mlp.fc1.weight"]
    assert torch.equal(stacked(), dense.expand(6, -1, -1))
    noisy = stacked(expert_noise=0.1, seed=3)
    assert ((noisy - dense).std() / dense.std()).item() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy, stacked(expert_noise=0.1, seed=3))
    assert not torch.equal(noisy, stacked(expert_noise=0.1, seed=4))


@torch.no_grad()
def test_state_dict_round_trip() -> None:
    model, pixels = dinov2(), torch.randn(2, 3, 28, 28)
    large_routers(replace_ffn(model, DINOV2))
    expected = model(pixels).last_hidden_state
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = dinov2()
    moe = replace_ffn(fresh, DINOV2)
    assert {k for k in fresh.state_dict() if "layer.0.mlp" in k} == {
        f"encoder.layer.0.mlp.moe.{n}" for n in (
            "router.weight", "router.bias", "experts.w1", "experts.b1", "experts.w2", "experts.b2")
    }  # fmt: skip
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(pixels).last_hidden_state, expected)
    assert len(moe.routing()) == LAYERS


@torch.no_grad()
def test_descriptors_reach_every_router() -> None:
    model, pixels = dinov2(), torch.randn(2, 3, 28, 28)
    seen: list[Tensor] = []

    def describe(_: nn.Module, pixel_values: Tensor) -> Tensor:
        seen.append(pixel_values)
        return pixel_values.mean((2, 3)) * 10

    moe = replace_ffn(model, DINOV2, descriptors=describe)
    large_routers(moe)

    def probabilities() -> list[Tensor]:
        return [r.expert_probability for r in moe.routing()]

    model(pixel_values=pixels)
    computed = probabilities()
    assert seen[0] is pixels
    with moe.batch(describe(model, pixels)):
        model(pixels)
        assert len(seen) == 2, "descriptors of a batch go before the computed ones"
    given = probabilities()
    with moe.batch(torch.zeros(2, 3)):
        model(pixels)
    zeros = probabilities()
    assert all(torch.equal(a, b) for a, b in zip(computed, given, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(computed, zeros, strict=True))
    plain = replace_ffn(model_without := dinov2(), DINOV2)
    model_without.load_state_dict(model.state_dict())
    model_without(pixels)
    for ours, theirs in zip(plain.routing(), zeros, strict=True):
        assert torch.equal(ours.expert_probability, theirs), "none given: zeros"
    with pytest.raises(InputError, match="descriptors do not fit"), moe.batch(torch.zeros(3, 3)):
        model(pixels)
    model(pixels)
    assert len(moe.routing()) == LAYERS, "an error leaves nothing open"


def test_routing_is_of_the_last_forward_only() -> None:
    model = Transformer()
    moe = replace_ffn(model, "*.mlp")
    model(torch.randn(2, 7, DIM))
    first = moe.routing()
    with torch.no_grad():
        model(torch.randn(4, 5, DIM))
    assert [r.expert_index.shape for r in moe.routing()] == [(4, 5, 1)] * LAYERS
    assert [r.expert_index.shape for r in first] == [(2, 7, 1)] * LAYERS, "what was handed over stays"
    assert not moe.balance_loss().requires_grad
    with moe.batch():
        model(torch.randn(1, 2, DIM))
        model(torch.randn(1, 3, DIM))
    assert len(moe.routing()) == 2 * LAYERS, "one batch, two calls"


def test_methods_other_than_the_call_need_a_batch() -> None:
    model, x = Transformer(), torch.randn(2, 7, DIM)
    moe = replace_ffn(model, "*.mlp")
    with pytest.raises(InputError, match="outside a forward"):
        model.forward_features(x)
    with moe.batch():
        model.forward_features(x)
    assert len(moe.routing()) == LAYERS
    with pytest.raises(InputError, match="batch within a batch"), moe.batch(), moe.batch():
        pass
    model(x)
    assert len(moe.routing()) == LAYERS


def test_an_error_in_the_descriptors_leaves_nothing_open() -> None:
    def broken(_: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("no descriptors today")

    model, x = Transformer(), torch.randn(2, 7, DIM)
    moe = replace_ffn(model, "*.mlp", descriptors=broken)
    with pytest.raises(RuntimeError, match="today"):
        model(x)
    with pytest.raises(RuntimeError, match="today"), moe.batch():
        model(x)
    with moe.batch(torch.zeros(2, 3)):
        model(x)
    assert len(moe.routing()) == LAYERS
    with pytest.raises(InputError, match="outside a forward"):
        model.forward_features(x)


def test_balance_loss_is_the_sum_over_layers_and_trains_the_routers() -> None:
    model = Transformer()
    moe = replace_ffn(model, "*.mlp")
    with pytest.raises(InputError, match="no routing"):
        moe.balance_loss()
    model(torch.randn(2, 7, DIM))
    loss = moe.balance_loss(0.25)
    fractions = [(r.expert_fraction, r.expert_probability) for r in moe.routing()]
    assert loss.item() == pytest.approx(sum(0.25 * 6 * float(f @ p.detach()) for f, p in fractions))
    loss.backward()
    assert all(layer.router.weight.grad.abs().sum() > 0 for layer in moe.layers.values())


def test_a_copy_has_a_handle_of_its_own() -> None:
    model, x = Transformer(), torch.randn(2, 7, DIM)
    moe = replace_ffn(model, "*.mlp")
    expected = model(x)
    copied, copied_moe = copy.deepcopy((model, moe))
    assert copied_moe.routing() == ()
    torch.testing.assert_close(copied(x[:1]), expected[:1])
    assert copied_moe.routing()[0].expert_index.shape[0] == 1
    assert moe.routing()[0].expert_index.shape[0] == 2
    assert copied_moe.layers["blocks.0.mlp"] is copied.blocks[0].mlp.moe


def test_a_shared_ffn_stays_shared() -> None:
    shared = Mlp()
    model, x = Transformer(lambda: shared), torch.randn(2, 7, DIM)
    before = model(x)
    moe = replace_ffn(model, "*.mlp")
    assert model.blocks[0].mlp is model.blocks[2].mlp
    assert list(moe.layers) == ["blocks.0.mlp"]
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
    assert len(moe.routing()) == LAYERS


def test_two_handles_on_one_model() -> None:
    model, x = Transformer(), torch.randn(2, 7, DIM)
    first, second = replace_ffn(model, "blocks.0.mlp"), replace_ffn(model, "blocks.[12].mlp", num_experts=2)
    model(x)
    assert [len(first.routing()), len(second.routing())] == [1, 2]
    with pytest.raises(InputError, match="mixture of experts already"):
        replace_ffn(model, "blocks.0.mlp")


def test_a_pattern_without_a_match_names_near_paths() -> None:
    with pytest.raises(InputError, match=r"no module matches(.|\n)*blocks\.\*\.ffn(.|\n)*blocks\.0\.mlp"):
        replace_ffn(Transformer(), ["blocks.*.mlp", "blocks.*.ffn"])
    with pytest.raises(InputError, match=r"such as a"):
        replace_ffn(nn.ModuleDict({"a": nn.Linear(2, 2)}), "b*")


def test_bad_options_leave_the_model_alone() -> None:
    model = Transformer()
    for options in ({"num_experts": 0}, {"top_k": 7}, {"gate": "none"}, {"expert_noise": -1.0}):
        with pytest.raises(InputError):
            replace_ffn(model, "*.mlp", **options)  # type: ignore[arg-type]
    assert isinstance(model.blocks[0].mlp, Mlp)


def test_the_example_runs_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    state = runpy.run_path(str(EXAMPLE))
    torch.testing.assert_close(state["tokens"], state["dense_tokens"], rtol=0, atol=1e-5)
    assert state["gradient"] > 0
    assert "4 FFNs became mixtures of 6 experts each" in capsys.readouterr().out


def test_exported() -> None:
    assert "replace_ffn" in crossearth_sar.__all__


def test_the_model_compiles_in_one_graph_and_learns_the_same() -> None:
    model = nn.Sequential(Mlp(), Mlp())
    moe = replace_ffn(model, "*", num_experts=3, descriptors=lambda _, x: x.mean(1)[:, :3])
    x = torch.randn(2, 5, DIM)
    found = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        run(x)  # the second forward's routing must not add to the first's
        loss = run(x).square().sum() + moe.balance_loss()
        assert len(moe.routing()) == 2
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(found[1], found[0])
