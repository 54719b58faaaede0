"""Experts split among real ranks against the plain layer on the joined tokens: values and every gradient."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import RankPool
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crossearth_sar import PhysicsGuidedMoE
from crossearth_sar.errors import InputError
from crossearth_sar.moe.backends import BACKENDS
from crossearth_sar.moe.dispatch import DispatchPlan
from crossearth_sar.moe.expert_parallel import (
    ExpertParallelExperts,
    _plan_of_arrived,
    full_state_dict,
    load_full_state_dict,
)

DIM = 12
EXPERTS = 6
_groups: dict[int, Any] = {}


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    """Three ranks; a case of two leaves the third out."""
    pool = RankPool(3)
    yield pool
    pool.close()


def group_of(size: int) -> Any:
    """The group of the first `size` ranks; a collective call of all."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    if size not in _groups:
        _groups[size] = dist.new_group(range(size))
    return _groups[size]


def make(top_k: int, gate: str = "probability") -> PhysicsGuidedMoE:
    torch.manual_seed(7)
    layer = PhysicsGuidedMoE(DIM, 20, num_experts=EXPERTS, top_k=top_k, gate=gate, backend="reference")  # type: ignore[arg-type]
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def tokens_of(rank: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, descriptors and the gradient that comes back: others on every rank."""
    generator = torch.Generator().manual_seed(100 + rank)
    x, upstream = (torch.randn(1, count, DIM, generator=generator) for _ in range(2))
    return x, torch.randn(1, 3, generator=generator), upstream


def run(layer: PhysicsGuidedMoE, x: Tensor, descriptors: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y, _ = layer(x, descriptors)
    y.backward(upstream)
    assert x.grad is not None
    return y.detach(), x.grad


def favour(layer: PhysicsGuidedMoE, experts: tuple[int, ...]) -> None:
    """Only these experts are ever chosen."""
    with torch.no_grad():
        layer.router.bias.fill_(-1e4)
        layer.router.bias[list(experts)] = 0


def compare(size: int, counts: tuple[int, ...], top_k: int, favoured: tuple[int, ...]) -> list[str] | None:
    """On a rank: the names of everything that differs from the plain layer; None on a rank left out."""
    group = group_of(size)
    rank = dist.get_rank()
    if rank >= size:
        return None
    plain, split = make(top_k), make(top_k)
    for layer in (plain, split):
        favour(layer, favoured)
    split.experts = ExpertParallelExperts(split.experts, group)
    y, x_grad = run(split, *tokens_of(rank, counts[rank]))
    own = [run(plain, *tokens_of(r, counts[r])) for r in range(size)][rank]  # gradients add up over ranks
    pairs = {"y": (y, own[0]), "x.grad": (x_grad, own[1])}
    for name, parameter in split.experts.named_parameters():
        whole = plain.experts.get_parameter(name).grad
        assert whole is not None
        first = rank * EXPERTS // size
        assert parameter.grad is not None, "a rank without rows has zero gradients, not missing ones"
        pairs[name] = (parameter.grad, whole[first : first + EXPERTS // size])
    return [name for name, (got, want) in pairs.items() if not torch.allclose(got, want, atol=1e-5)]


ALL = tuple(range(EXPERTS))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    ("size", "counts", "favoured"),
    [
        (2, (13, 8), ALL),
        (3, (5, 17, 9), ALL),
        (2, (11, 0), ALL),
        (3, (0, 0, 7), ALL),
        (2, (0, 0), ALL),
        (2, (9, 12), (1, 2, 3, 5)),
        (2, (9, 12), (3, 5)),
        (3, (9, 12, 4), (0, 1)),
    ],
    ids=[
        "2 ranks",
        "3 ranks",
        "a rank without tokens",
        "one rank with tokens",
        "no tokens",
        "experts without tokens",
        "all to the last rank",
        "all to the first rank",
    ],
)
def test_equals_the_plain_layer(
    ranks: RankPool, size: int, counts: tuple[int, ...], favoured: tuple[int, ...], top_k: int
) -> None:
    assert ranks(compare, size, counts, top_k, favoured)[:size] == [[]] * size


def save_and_load(size: int) -> list[str] | None:
    """On a rank: what went wrong between a split model and its joined weights."""
    group = group_of(size)
    if dist.get_rank() >= size:
        return None
    wrong = []
    plain = nn.Sequential(make(1), nn.Linear(DIM, DIM), make(2))
    split, other = (nn.Sequential(make(1), nn.Linear(DIM, DIM), make(2)) for _ in range(2))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
        for parameter in other.parameters():
            parameter.zero_()
    split.load_state_dict(plain.state_dict())
    for model in (split, other):
        for layer in (model[0], model[2]):
            layer.experts = ExpertParallelExperts(layer.experts, group)
    joined = full_state_dict(split)
    for name, value in plain.state_dict().items():
        if not torch.equal(joined[name], value):
            wrong.append(f"{name} joined")
    if list(joined) != list(plain.state_dict()):
        wrong.append("names")
    load_full_state_dict(other, joined)
    for name, value in split.state_dict().items():
        if not torch.equal(other.state_dict()[name], value):
            wrong.append(f"{name} split again")
    fresh = nn.Sequential(make(1), nn.Linear(DIM, DIM), make(2))
    load_full_state_dict(fresh, joined)
    x = torch.randn(1, 5, DIM)
    if not torch.equal(fresh[0](x)[0], plain[0](x)[0]):
        wrong.append("output of the plain model")
    if any(p.data_ptr() == joined[n].data_ptr() for n, p in other.named_parameters()):
        wrong.append("loaded parameters are the saved tensors")
    return wrong


@pytest.mark.parametrize("size", [2, 3])
def test_joined_weights_are_those_of_the_plain_model(ranks: RankPool, size: int) -> None:
    assert ranks(save_and_load, size)[:size] == [[]] * size


def refusal() -> str:
    group = group_of(3)
    full = PhysicsGuidedMoE(DIM, 20, num_experts=4, backend="reference").experts
    try:
        ExpertParallelExperts(full, group)
    except InputError as error:
        return str(error)
    return "accepted"


def test_refuses_ranks_that_do_not_divide_the_experts(ranks: RankPool) -> None:
    for message in ranks(refusal):
        assert "ep_size 3" in message
        assert "num_experts = 4" in message


@pytest.mark.parametrize(("senders", "experts"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 1)])
def test_plan_of_arrived_rows_by_brute_force(senders: int, experts: int) -> None:
    sent = DispatchPlan(None, torch.zeros(1, dtype=torch.int32), 2, BACKENDS["grouped_mm"])
    for trial in range(20):
        counts = torch.randint(0, 4 if trial else 1, (senders, experts), dtype=torch.int32)
        rows = [(s, e, n) for s in range(senders) for e in range(experts) for n in range(int(counts[s, e]))]
        plan = _plan_of_arrived(counts, len(rows), sent)
        assert plan.source_row is not None
        grouped = [rows[i] for i in plan.source_row.tolist()]
        assert grouped == sorted(rows, key=lambda row: (row[1], row[0], row[2]))
        bounds = plan.offsets.tolist()
        assert [[r[1] for r in grouped[lo:hi]] for lo, hi in pairwise(bounds)] == [
            [e] * int(counts[:, e].sum()) for e in range(experts)
        ]
        assert (plan.top_k, plan.backend) == (1, BACKENDS["grouped_mm"])
        kernels_want = (torch.int32, torch.int32)
        assert (plan.source_row.dtype, plan.offsets.dtype) == kernels_want


class HostReads(TorchFunctionMode):
    """Names of the calls that would make a host wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        unknown_size = name == "repeat_interleave" and kwargs.get("output_size") is None
        if unknown_size or name in WAITING:
            self.seen.append(name)
        return func(*args, **kwargs)


WAITING = {
    *("tolist", "item", "cpu", "numpy", "nonzero", "unique", "masked_select"),
    *("__bool__", "__int__", "__float__", "__index__"),
}


def host_reads() -> list[str]:
    """Of a forward and backward of the split experts, around a backend that has none of its own."""
    split = ExpertParallelExperts(make(2).experts, group_of(3))
    x_TD = torch.randn(7, DIM, requires_grad=True)
    generator = torch.Generator().manual_seed(dist.get_rank())
    index_BTK = torch.randint(EXPERTS, (1, 7, 2), generator=generator)
    plan = BACKENDS["grouped_mm"].make_plan(index_BTK, EXPERTS)
    with HostReads() as reads:
        split(x_TD, torch.rand(1, 7, 2), plan).sum().backward()
    assert x_TD.grad is not None
    return reads.seen


def test_the_host_waits_once(ranks: RankPool) -> None:
    assert ranks(host_reads) == [["tolist"]] * 3
