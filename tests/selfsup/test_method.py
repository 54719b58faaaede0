"""The losses of DI3CL against a deliberately dumb form in double precision, and every gradient of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from view_batches import SIZE, Batch, micro_di3cl, view_batch

from crossearth_sar.selfsup.di3cl import DI3CL
from crossearth_sar.selfsup.heads import BatchNormOfRanks, Head
from crossearth_sar.selfsup.losses import info_nce, unit


def double(module: DI3CL) -> tuple[torch.nn.Module, torch.nn.Module, Head | None, Head | None]:
    """Query, key, predictor and edge head in float64; of the query the names of parameters stay."""
    return tuple(copy.deepcopy(part).double() for part in (module.query, module.key)) + tuple(
        None if part is None else copy.deepcopy(part).double()
        for part in (module.predictor, module.edge_head)
    )  # type: ignore[return-value]


def head_by_rows(head: Head, rows: list[Tensor]) -> list[Tensor]:
    """Two linear layers, row by row; batch statistics over the rows given."""
    hidden = [head.first.weight @ row.double() + head.first.bias for row in rows]
    if isinstance(head.norm, torch.nn.LayerNorm):
        norm = head.norm
        hidden = [
            (h - h.mean()) / (h.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
            for h in hidden
        ]
    elif isinstance(head.norm, BatchNormOfRanks):
        norm, together = head.norm, torch.stack(hidden)
        mean, variance = together.mean(0), together.var(0, unbiased=False)
        hidden = [(h - mean) / (variance + norm.epsilon).sqrt() * norm.weight + norm.bias for h in hidden]
    return [head.last.weight @ h.clamp(min=0) + head.last.bias for h in hidden]


def box_mean(map_Dhw: Tensor, box: list[float]) -> Tensor:
    total, area, cell = torch.zeros(map_Dhw.shape[0], dtype=torch.float64), 0.0, SIZE / map_Dhw.shape[1]
    for row in range(map_Dhw.shape[1]):
        for column in range(map_Dhw.shape[2]):
            across = min(box[2], (column + 1) * cell) - max(box[0], column * cell)
            down = min(box[3], (row + 1) * cell) - max(box[1], row * cell)
            if across > 0 and down > 0:
                total = total + across * down * map_Dhw[:, row, column]
                area += across * down
    return total / area


def maps_of(network: Any, batch: Batch, view: str) -> tuple[Tensor, Tensor]:
    """Deep and shallow map of every image, by the encoder in double precision."""
    model = network.encoder.model
    output = model.features(*(batch[f"{view}_{name}"].double() for name in ("image", "mean", "std")))
    side = SIZE // 8
    deep = output.tokens[:, 1:].transpose(1, 2).reshape(len(batch["valid"]), -1, side, side)
    shallow = network.encoder.shallow_norm
    if shallow is None:
        return deep, deep
    cells = output.feature_maps[1].permute(0, 2, 3, 1)
    return deep, shallow(cells).permute(0, 3, 1, 2)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum() / (one.norm() * other.norm())


def nce(queries: list[Tensor], keys: list[Tensor], queue_KD: Tensor, temperature: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for query, key in zip(queries, keys, strict=True):
        own = torch.exp(cosine(query, key) / temperature)
        others = sum(torch.exp(cosine(query, negative.double()) / temperature) for negative in queue_KD)
        total = total - torch.log(own / (own + others))
    return total / len(queries)


def oracle(module: DI3CL, batch: Batch) -> tuple[dict[str, Tensor], torch.nn.Module, Head | None]:
    """The losses by loops; with the float64 query network and predictor, for their gradients."""
    query, key, predictor, _ = double(module)
    config, images = module.config, range(len(batch["valid"]))
    (deep_q, shallow_q), (deep_k, shallow_k) = maps_of(query, batch, "query"), maps_of(key, batch, "key")
    terms = {name: torch.zeros((), dtype=torch.float64) for name in ("global", "contour", "region")}
    for name, head, maps_q, maps_k in (
        ("global", "global_head", deep_q, deep_k),
        ("contour", "contour_head", shallow_q, shallow_k),
    ):
        if getattr(query, head) is None:
            continue
        queries, keys = (
            head_by_rows(getattr(network, head), [maps[n].mean((1, 2)) for n in images])
            for network, maps in ((query, maps_q), (key, maps_k))
        )
        queue_KD = module.state()[f"queue.{name}"]
        terms[name] = nce(queries, [k.detach() for k in keys], queue_KD, config.temperature)
    pairs = [(n, k) for n in images for k in range(10) if batch["valid"][n, k]]
    if predictor is not None and pairs:
        rows_q = [box_mean(deep_q[n], batch["query_boxes"][n, k].tolist()) for n, k in pairs]
        rows_k = [box_mean(deep_k[n], batch["key_boxes"][n, k].tolist()).detach() for n, k in pairs]
        predicted = head_by_rows(predictor, head_by_rows(query.region_projector, rows_q))  # type: ignore[arg-type]
        targets = head_by_rows(key.region_projector, rows_k)  # type: ignore[arg-type]
        agreements = [2 - 2 * cosine(p, z.detach()) for p, z in zip(predicted, targets, strict=True)]
        terms["region"] = torch.stack(agreements).mean()
    return terms, query, predictor


def apart(module: DI3CL) -> DI3CL:
    """Query and key made unlike, as after some steps."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


CASES: list[dict[str, Any]] = [
    {},
    {"head_norm": "batch", "region_norm": "batch"},
    {"head_norm": "layer", "region_norm": "none", "temperature": 0.07},
    {"contour_weight": 0.0, "region_weight": 0.0},
    {"contour_weight": 0.0},
    {"region_weight": 0.0},
    {"global_weight": 0.0, "contour_weight": 0.0},
    {"global_weight": 0.0, "region_weight": 0.0},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_losses_and_every_gradient(changes: dict[str, Any]) -> None:
    module, batch = apart(micro_di3cl(**changes)), view_batch(3, without=(1,))
    terms = module(batch)
    expected, query, predictor = oracle(module, batch)
    for name, got in (("global", terms.global_), ("contour", terms.contour), ("region", terms.region)):
        assert got.item() == pytest.approx(expected[name].item(), rel=1e-5, abs=1e-6), name
    config = module.config
    total = (
        config.global_weight * expected["global"]
        + config.contour_weight * expected["contour"]
        + config.region_weight * expected["region"]
    )
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-5)
    terms.total.backward()
    total.backward()
    wanted = {f"query.{name}": p.grad for name, p in query.named_parameters()}
    if predictor is not None:
        wanted |= {f"predictor.{name}": p.grad for name, p in predictor.named_parameters()}
    compared = 0
    for name, parameter in module.named_parameters():
        gradient = wanted[name]
        if gradient is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        bound = 2e-4 * float(gradient.norm()) + 2e-6  # under batch statistics a bias has none
        assert float((parameter.grad.double() - gradient).norm()) < bound, name
        compared += bool(gradient.any())
    assert compared > 30


def test_what_is_switched_off_is_not_there() -> None:
    names = {
        name.split(".")[1] for name, _ in micro_di3cl(contour_weight=0, region_weight=0).named_parameters()
    }
    assert names == {"encoder", "global_head"}
    state = micro_di3cl(contour_weight=0, region_weight=0).state()
    assert not [name for name in state if "contour" in name or "region" in name or "shallow" in name]


def test_no_gradient_reaches_the_keys_and_none_of_the_query_goes_missing() -> None:
    module = micro_di3cl()
    module(view_batch(2)).total.backward()
    assert all(p.grad is None for p in module.key.parameters())
    without = {name for name, p in module.named_parameters() if p.requires_grad and p.grad is None}
    assert not without


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("boxes", [0, 1])
def test_no_box_and_one_box(norm: str, boxes: int) -> None:
    batch = view_batch(2, without=(0, 1))
    if boxes:
        batch["valid"][1, 3] = True
        batch["query_boxes"][1, 3] = batch["key_boxes"][1, 3] = torch.tensor([4.0, 8, 20, 30])
    module = apart(micro_di3cl(region_norm=norm))
    terms = module(batch)
    assert float(terms.region) == pytest.approx(float(oracle(module, batch)[0]["region"]), rel=1e-5)
    assert (float(terms.region) > 0) == bool(boxes)
    terms.total.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert terms.values["boxes"] == boxes / 2
    assert terms.values["without_boxes"] == (1 if not boxes else 0.5)


def test_what_stands_where_there_is_no_box_does_not_matter() -> None:
    batch, module = view_batch(2, without=(1,)), micro_di3cl(region_norm="batch")
    before = module(batch).total
    batch["query_boxes"] = torch.where(batch["valid"][..., None], batch["query_boxes"], 1e6)
    assert torch.equal(module(batch).total, before)


def test_sparse_encoder_adds_the_querys_balance_loss_alone() -> None:
    module, batch = micro_di3cl(sparse=True), view_batch(3)
    terms = module(batch)
    assert len(terms.routing) == 4
    weight = module.encoder.config.moe.balance_weight  # type: ignore[union-attr]
    assert float(terms.balance) == pytest.approx(float(sum(r.balance_loss(weight) for r in terms.routing)))
    config = module.config
    parts = config.global_weight * terms.global_ + config.contour_weight * terms.contour
    parts = parts + config.region_weight * terms.region
    assert float(terms.total) == pytest.approx(float(parts + terms.balance))
    seen = int(module.encoder.standardizer.batches_seen)
    assert seen == 1, "keys move no statistics"
    assert int(module.key.encoder.model.standardizer.batches_seen) == seen
    assert not module.key.encoder.model.standardizer.training


def test_log_values_by_hand() -> None:
    query, key = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.6, 0.8], [0, 1]])
    queue = torch.tensor([[0.8, 0.6], [-1, 0]])
    found = info_nce(query, key, queue, 0.5)
    first = -math.log(math.exp(1.2) / (math.exp(1.2) + math.exp(1.6) + math.exp(-2)))
    second = -math.log(math.exp(2) / (math.exp(2) + math.exp(1.2) + math.exp(0)))
    assert float(found.loss) == pytest.approx((first + second) / 2)
    assert float(found.top1) == 0.5
    assert float(found.positive) == pytest.approx(0.8)
    assert float(found.negative) == pytest.approx((0.8 - 1 + 0.6 + 0) / 4)


def test_cosine_of_boxes_is_what_the_loss_says() -> None:
    terms = micro_di3cl()(view_batch(2))
    assert float(terms.values["cosine_boxes"]) == pytest.approx(1 - float(terms.region) / 2)


def test_the_spread_of_boxes_is_that_of_the_boxes_there_are() -> None:
    module, batch = micro_di3cl(), view_batch(3, without=(1,))
    inputs = (batch[f"query_{name}"] for name in ("image", "mean", "std", "boxes"))
    with torch.no_grad():
        vectors = module.query.heads(module.query.pool(*inputs, parts=False), batch["valid"]).regions
    assert vectors is not None
    expected = vectors[batch["valid"]].var(0, unbiased=False).mean().sqrt()
    assert module(batch).values["boxes_std"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_batch_norm_of_ranks_is_torchs_on_one_rank() -> None:
    ours, theirs = BatchNormOfRanks(5), torch.nn.BatchNorm1d(5)
    for module in (ours, theirs):
        torch.manual_seed(0)
        torch.nn.init.normal_(module.weight)
        torch.nn.init.normal_(module.bias)
    rows = (3 + 2 * torch.randn(9, 5)).requires_grad_()
    counted = torch.tensor([True] * 7 + [False] * 2)
    got, expected = ours(rows, counted)[:7], theirs(rows[:7])
    assert torch.allclose(got, expected, atol=1e-5)
    weights = torch.randn(7, 5)
    inputs = (rows, ours.weight, ours.bias), (rows, theirs.weight, theirs.bias)
    gradients = [
        torch.autograd.grad((out * weights).sum(), given)
        for out, given in zip((got, expected), inputs, strict=True)
    ]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*gradients, strict=True))


def test_unit_vectors() -> None:
    assert torch.allclose(unit(torch.tensor([3.0, 4.0])), torch.tensor([0.6, 0.8]))
    assert unit(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
