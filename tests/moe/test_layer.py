"""The MoE layer against the per-token oracle: values, every gradient, odd sizes and odd routings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossearth_sar import PhysicsGuidedMoE
from crossearth_sar.errors import InputError
from crossearth_sar.moe import ExpertSpec
from crossearth_sar.moe.oracle import moe_oracle
from crossearth_sar.moe.router import GATES


def make(**kwargs: object) -> PhysicsGuidedMoE:
    layer = PhysicsGuidedMoE(16, 24, **kwargs)  # type: ignore[arg-type]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 17), (1, 1), (3, 5)])
def test_agrees_with_the_oracle(shape: tuple[int, int], top_k: int, gate: str) -> None:
    layer = make(top_k=top_k, gate=gate)
    x, d = torch.randn(*shape, 16), torch.randn(shape[0], 3)
    y, _ = layer(x, d)
    torch.testing.assert_close(y.double(), moe_oracle(layer, x, d), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 17), (1, 1), (0, 4), (2, 0)])
def test_descriptors_per_token_agree_with_the_oracle(shape: tuple[int, int]) -> None:
    layer = make()
    x, d = torch.randn(*shape, 16), torch.randn(*shape, 3)
    torch.testing.assert_close(layer(x, d)[0].double(), moe_oracle(layer, x, d), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_activations(activation: str) -> None:
    layer, x = make(activation=activation), torch.randn(1, 9, 16)
    torch.testing.assert_close(layer(x)[0].double(), moe_oracle(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_no_tokens(shape: tuple[int, int]) -> None:
    layer = make()
    y, routing = layer(torch.randn(*shape, 16), torch.randn(shape[0], 3))
    assert y.shape == (*shape, 16)
    assert torch.isfinite(routing.balance_loss())


def test_all_tokens_to_one_expert() -> None:
    layer = make()
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.bias.copy_(torch.tensor([0.0, 0, 0, 9, 0, 0]))
    x = torch.randn(2, 11, 16)
    y, routing = layer(x)
    assert routing.expert_fraction.tolist() == [0, 0, 0, 1, 0, 0]
    y.sum().backward()
    torch.testing.assert_close(y.double(), moe_oracle(layer, x), rtol=1e-5, atol=1e-5)
    grad = layer.experts.w1.grad
    assert grad is not None
    assert not bool(grad[[0, 1, 2, 4, 5]].any()), "an unused expert has a zero gradient, not a missing one"
    assert bool(grad[3].any())


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_in_double_precision(top_k: int) -> None:
    """The gate «probability» is an ordinary function of everything, so finite differences can tell."""
    layer = PhysicsGuidedMoE(4, 6, num_experts=3, top_k=top_k, gate="probability").double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    names = [name for name, _ in layer.named_parameters()]
    d = torch.randn(1, 3, dtype=torch.float64)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, d))[0]

    x = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_one_expert_is_a_dense_ffn_in_value_and_gradient() -> None:
    layer = make(num_experts=1)
    x = torch.randn(2, 9, 16, requires_grad=True)
    layer(x)[0].square().sum().backward()
    got = [x.grad, *(p.grad for p in layer.experts.parameters())]
    leaves = [
        x.detach().requires_grad_(),
        *(p.detach()[0].requires_grad_() for p in layer.experts.parameters()),
    ]
    z, w1, b1, w2, b2 = leaves
    (torch.nn.functional.gelu(z @ w1.T + b1) @ w2.T + b2).square().sum().backward()
    for ours, theirs in zip(got, leaves, strict=True):
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs.grad)  # type: ignore[union-attr]


def test_parameter_names_and_shapes_are_the_contract() -> None:
    shapes = {name: tuple(p.shape) for name, p in PhysicsGuidedMoE(8).named_parameters()}
    assert shapes == {
        "router.weight": (6, 11),
        "router.bias": (6,),
        "experts.w1": (6, 32, 8),
        "experts.b1": (6, 32),
        "experts.w2": (6, 8, 32),
        "experts.b2": (6, 8),
    }


def test_same_input_same_bits() -> None:
    layer, x, d = make(top_k=2), torch.randn(2, 40, 16), torch.randn(2, 3)
    assert torch.equal(layer(x, d)[0], layer(x, d)[0])


def test_refuses() -> None:
    with pytest.raises(InputError, match=r"\(B, T, 16\)"):
        make()(torch.randn(2, 5, 8))
    with pytest.raises(InputError, match=r"triton.*does not work here"):
        PhysicsGuidedMoE(8, backend="triton")
    with pytest.raises(InputError, match="did you mean 'reference'"):
        PhysicsGuidedMoE(8, backend="referense")


@pytest.mark.parametrize("kind", ["ffn", "swiglu"])
def test_forward_mode_is_refused_not_answered_with_zeros(kind: str) -> None:
    layer = PhysicsGuidedMoE(8, 16, num_experts=3, num_descriptors=0, expert=ExpertSpec(kind=kind))
    x = torch.randn(1, 5, 8)
    with pytest.raises(InputError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))
    with pytest.raises(InputError, match="no forward-mode derivative"):
        torch.func.jacfwd(
            lambda w: torch.func.functional_call(
                layer, {"experts.w_down" if kind == "swiglu" else "experts.w2": w}, (x,)
            )[0]
        )(layer.experts.w_down if kind == "swiglu" else layer.experts.w2)
    with torch.autograd.forward_ad.dual_level():
        layer(x)  # nothing here carries a tangent


def test_the_layer_is_exported() -> None:
    layer = PhysicsGuidedMoE(8, 16, num_experts=3).eval()
    program = torch.export.export(layer, (torch.randn(2, 5, 8), torch.randn(2, 3)))
    x, physics = torch.randn(2, 5, 8), torch.randn(2, 3)
    y, routing = program.module()(x, physics)
    expected, decided = layer(x, physics)
    assert torch.equal(y, expected)
    assert torch.equal(routing.expert_index, decided.expert_index)


@pytest.mark.parametrize("kind", ["ffn", "swiglu"])
def test_a_layer_begins_on_no_device(kind: str) -> None:
    arguments: dict[str, Any] = {"num_experts": 3, "expert": ExpertSpec(kind=kind, shared=1)}
    torch.manual_seed(1)
    expected = PhysicsGuidedMoE(8, 16, **arguments).state_dict()
    layer = PhysicsGuidedMoE(8, 16, **arguments, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    skipped = torch.nn.utils.skip_init(PhysicsGuidedMoE, 8, 16, **arguments)
    for found in (layer.to_empty(device="cpu"), skipped):
        torch.manual_seed(1)
        found.reset_parameters()
        for name, value in found.state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_a_layer_is_built_in_a_type() -> None:
    layer = PhysicsGuidedMoE(8, 16, expert=ExpertSpec(shared=1), dtype=torch.bfloat16)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer(torch.randn(1, 5, 8, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
