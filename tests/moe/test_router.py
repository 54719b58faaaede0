"""The router: eq. (8)-(10), its gates, its ties, and which gradients it gets."""

from __future__ import annotations

import pytest
import torch

from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends import BACKENDS, REFERENCE, Backend
from crossearth_sar.moe.router import GATES, PhysicsGuidedRouter


def make(gate: str = "normalized", top_k: int = 1, **kwargs: int) -> PhysicsGuidedRouter:
    router = PhysicsGuidedRouter(8, 6, top_k=top_k, gate=gate, **kwargs)  # type: ignore[arg-type]
    torch.nn.init.normal_(router.weight)
    torch.nn.init.normal_(router.bias)
    return router


def test_probabilities_equal_those_of_the_concatenation() -> None:
    router, x, d = make(), torch.randn(3, 5, 8), torch.randn(3, 3)
    joined = torch.cat([x, d[:, None].expand(-1, 5, -1)], dim=-1)
    expected = (joined @ router.weight.T + router.bias).softmax(-1)
    torch.testing.assert_close(router.probability(x, d), expected)


@pytest.mark.parametrize("backend", [REFERENCE, BACKENDS["grouped_mm"]])
def test_descriptors_per_token_equal_the_concatenation_too(backend: Backend) -> None:
    router, x, d = make(), torch.randn(3, 5, 8), torch.randn(3, 5, 3)
    expected = (torch.cat([x, d], dim=-1) @ router.weight.T + router.bias).softmax(-1)
    got = router.probability(x, d, backend)
    torch.testing.assert_close(got, expected)
    by_image = router.probability(x, d[:, 0])
    torch.testing.assert_close(router.probability(x, d[:, :1].expand(-1, 5, -1)), by_image)
    weight = torch.randn_like(got)
    gradients = [torch.autograd.grad((pi * weight).sum(), router.weight)[0] for pi in (got, expected)]
    torch.testing.assert_close(*gradients)
    assert router.probability(x[:0], d[:0]).shape == (0, 5, 6)
    assert router.probability(x[:, :0], d[:, :0]).shape == (3, 0, 6)


def test_descriptors_of_one_image_do_not_reach_another() -> None:
    router, x, d = make(), torch.randn(2, 5, 8), torch.randn(2, 3)
    other = d.clone()
    other[1] += 5
    assert torch.equal(router.probability(x, d)[0], router.probability(x, other)[0])
    assert not torch.equal(router.probability(x, d)[1], router.probability(x, other)[1])


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_ties_go_to_the_lower_index(top_k: int) -> None:
    router = make(top_k=top_k)
    torch.nn.init.zeros_(router.weight)
    torch.nn.init.zeros_(router.bias)
    routing = router(torch.randn(2, 4, 8), torch.randn(2, 3))
    assert routing.expert_index.unique(dim=-1).shape[-1] == top_k
    assert torch.equal(routing.expert_index, torch.arange(top_k).expand(2, 4, top_k))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_gate_values(gate: str, top_k: int) -> None:
    router, x, d = make(gate, top_k), torch.randn(2, 7, 8), torch.randn(2, 3)
    routing, pi = router(x, d), router.probability(x, d)
    chosen = pi.topk(top_k).values
    expected = chosen if gate == "probability" else chosen / chosen.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.gate, expected)
    if top_k == 1 and gate != "probability":
        assert torch.equal(routing.gate.detach(), torch.ones_like(routing.gate))


@pytest.mark.parametrize(
    ("gate", "top_k", "learns"),
    [
        ("normalized", 1, False),
        ("normalized", 2, True),
        ("straight_through", 1, True),
        ("probability", 1, True),
    ],
)
def test_which_gates_let_the_task_teach_the_router(gate: str, top_k: int, learns: bool) -> None:
    router = make(gate, top_k)
    routing = router(torch.randn(2, 7, 8), torch.randn(2, 3))
    task = (routing.gate * torch.randn_like(routing.gate)).sum() + 0 * router.weight.sum()
    task.backward()
    assert router.weight.grad is not None
    assert bool(router.weight.grad.any()) is learns


def test_straight_through_gradient_is_that_of_pi_over_its_value() -> None:
    router, x, d = make("straight_through"), torch.randn(2, 7, 8), torch.randn(2, 3)
    weight = torch.randn(2, 7, 1)
    (router(x, d).gate * weight).sum().backward()
    got = router.weight.grad.clone()  # type: ignore[union-attr]
    router.zero_grad()
    pi = router.probability(x, d).max(-1, keepdim=True).values
    (pi / pi.detach() * weight).sum().backward()
    torch.testing.assert_close(got, router.weight.grad)


def test_an_underflowing_second_choice_gives_no_nan() -> None:
    router = make("straight_through", 2)
    with torch.no_grad():
        router.bias.copy_(torch.tensor([0.0, -500.0, -500.0, -500.0, -500.0, -500.0]))
        router.weight.zero_()
    routing = router(torch.randn(1, 3, 8))
    routing.gate.sum().backward()
    assert torch.isfinite(routing.gate).all()
    assert torch.isfinite(router.weight.grad).all()  # type: ignore[arg-type]


def test_balance_loss_of_balanced_and_of_collapsed_routing() -> None:
    router = make()
    routing = router(torch.randn(4, 50, 8), torch.randn(4, 3))
    f, p = routing.expert_fraction, routing.expert_probability.detach()
    torch.testing.assert_close(routing.balance_loss(0.005), 0.005 * 6 * (f * p).sum())
    assert float(f.sum()) == pytest.approx(1)
    assert float(p.sum()) == pytest.approx(1)
    with torch.no_grad():
        router.weight.zero_()
        router.bias.copy_(torch.tensor([50.0, 0, 0, 0, 0, 0]))
    assert router(torch.randn(1, 9, 8)).balance_loss(0.005).item() == pytest.approx(0.03)


def test_no_descriptors_and_none_given_count_as_zeros() -> None:
    router, x = make(), torch.randn(2, 5, 8)
    assert torch.equal(router.probability(x), router.probability(x, torch.zeros(2, 3)))
    assert make(num_descriptors=0).weight.shape == (6, 8)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="one row per image"):
        make()(torch.randn(2, 5, 8), torch.randn(3, 3))
    with pytest.raises(InputError, match="or one per token"):
        make()(torch.randn(2, 5, 8), torch.randn(2, 4, 3))
    for arguments in ({"top_k": 7}, {"top_k": 0}, {"gate": "hard"}):
        with pytest.raises(InputError):
            make(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_tokens_are_routed_in_float32(autocast: bool) -> None:
    """Against float64 on the same bfloat16 numbers: products in bfloat16 would be off by a hundredth."""
    torch.manual_seed(0)
    router = PhysicsGuidedRouter(64, 5, num_descriptors=3)
    torch.nn.init.normal_(router.weight)
    if not autocast:
        router.bfloat16()
    x, physics = torch.randn(2, 9, 64).bfloat16(), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        routing = router(x, physics)
    weight, bias = router.weight.double(), router.bias.double()
    logits = x.double() @ weight[:, :64].T + (physics.double() @ weight[:, 64:].T)[:, None] + bias
    exact = logits.softmax(-1)
    torch.testing.assert_close(
        routing.expert_probability.double(), exact.flatten(0, 1).mean(0), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(routing.expert_index[..., 0], exact.argmax(-1))
