"""Two ranks with half the batch each compute what one computes on all of it; so do two passes on one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import RankPool, shared_pool
from torch import Tensor, nn
from view_batches import every, micro_di3cl, micro_encoder, micro_resnet, view_batch

from crossearth_sar import InputError
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.selfsup.di3cl import DI3CL
from crossearth_sar.selfsup.key_network import KeyNetwork
from crossearth_sar.selfsup.ranks import rank_and_size, sum_over_ranks

IMAGES, STEPS = 4, 3


@pytest.fixture
def two_ranks() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(2)


def mean_of(values: Tensor) -> Tensor:
    return sum_over_ranks(values.detach().clone()) / rank_and_size()[1]


def run(changes: dict[str, Any], without: tuple[int, ...], passes: int) -> dict[str, Any]:
    """Some steps of plain descent, gradients averaged over ranks and passes as an executor does it."""
    module, (rank, size) = micro_di3cl(queue_length=2 * IMAGES, **changes), rank_and_size()
    rows: dict[str, Any] = {"losses": [], "gradients": []}
    for step in range(STEPS):
        batch = every(view_batch(IMAGES, without=without, seed=step), rank, size)
        parts = [every(batch, part, passes) for part in range(passes)]
        mean_boxes = mean_of(batch["valid"].sum().float()) / passes
        module.begin_step()
        module.zero_grad()
        for part in parts:
            terms = module({**part, "mean_boxes": mean_boxes} if passes > 1 else part)
            (terms.total / passes).backward()
            rows["losses"].append(
                [float(mean_of(t)) for t in (terms.total, terms.global_, terms.contour, terms.region)]
            )
            rows["std"] = float(terms.values["embedding_std"])
        for parameter in module.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, "one graph on every rank"
                parameter.grad = mean_of(parameter.grad)
        trained = [p for p in module.parameters() if p.requires_grad]
        rows["gradients"].append(torch.cat([p.grad.flatten() for p in trained]))  # type: ignore[union-attr]
        with torch.no_grad():
            for parameter in trained:
                parameter.sub_(0.05 * parameter.grad)  # type: ignore[arg-type, operator]
        module.push_keys()
        module.update_keys(0.9)
    rows["state"] = {name: value.clone() for name, value in module.state().items()}
    return rows


def on_ranks(changes: dict[str, Any], without: tuple[int, ...]) -> dict[str, Any]:
    from crossearth_sar.engine.distributed import start_ranks

    start_ranks()
    return run(changes, without, passes=1)


def near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5)


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, ()),
        ({"head_norm": "batch", "region_norm": "batch"}, (1,)),
        ({"region_norm": "batch"}, (1, 3)),  # rank 1 has no box at all
        ({}, (0, 1, 2, 3)),
        ({"contour": "edges", "contour_weight": 1.0}, (0, 2)),
        ({"contour_weight": 0.0, "region_weight": 0.0}, ()),
    ],
    ids=str,
)
def test_two_ranks_are_as_one(two_ranks: RankPool, changes: dict[str, Any], without: tuple[int, ...]) -> None:
    alone = run(changes, without, passes=1)
    for rows in two_ranks(on_ranks, changes, without):
        assert near(torch.tensor(rows["losses"]), torch.tensor(alone["losses"]))
        for got, expected in zip(rows["gradients"], alone["gradients"], strict=True):
            assert near(got, expected)
        assert rows["std"] == pytest.approx(alone["std"], abs=1e-6)
        for name, expected in alone["state"].items():
            got = rows["state"][name]
            if name.startswith("queue"):  # in rank order: images 0, 2 of rank 0, then 1, 3 of rank 1
                got = got.view(2, 2, 2, -1).transpose(1, 2).reshape(expected.shape)
            assert near(got, expected), name
    assert float(alone["gradients"][0].norm()) > 0.01


@pytest.mark.parametrize("without", [(), (1, 3)])
def test_two_passes_are_as_one(without: tuple[int, ...]) -> None:
    """Of heads without batch statistics; with them a pass has its own, and the embeddings differ."""
    alone, parted = run({}, without, passes=1), run({}, without, passes=2)
    for got, expected in zip(parted["gradients"], alone["gradients"], strict=True):
        assert near(got, expected)
    totals = torch.tensor(parted["losses"]).view(STEPS, 2, 4).mean(1)
    assert near(totals, torch.tensor(alone["losses"]))
    with_batch_norm = [run({"region_norm": "batch"}, (), passes)["gradients"][0] for passes in (1, 2)]
    assert not near(*with_batch_norm)


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm in a ViT, for want of a ResNet: over the tokens of all images of a pass."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return super().forward(x_BTD.flatten(0, 1)).view_as(x_BTD)


def with_batch_norm(**changes: Any) -> DI3CL:
    encoder = micro_encoder()
    encoder.backbone.norm = TokenBatchNorm(16)  # type: ignore[assignment]
    return DI3CL(encoder, DI3CLConfig(queue_length=8, hidden_dim=12, output_dim=6, **changes)).train()


def key_vectors(module: DI3CL, images: int, mode: bool) -> tuple[Tensor, list[Tensor]]:
    """The key network's image vectors of this rank's share, and the images of each of its passes."""
    rank, size = rank_and_size()
    batch = every(view_batch(images), rank, size)
    seen: list[Tensor] = []
    hook = module.key.encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].mean((1, 2, 3)))
    )
    module.key.train(mode)
    torch.manual_seed(3 + rank)
    pooled = KeyNetwork.pool(module._key, module.query, batch, batch["key_boxes"])
    hook.remove()
    return pooled.vector, seen


def shuffled_on_ranks() -> tuple[Any, ...]:
    from crossearth_sar.engine.distributed import start_ranks

    start_ranks()
    kept, own = key_vectors(with_batch_norm(), 8, mode=False)
    trained, _ = key_vectors(with_batch_norm(), 8, mode=True)
    return kept, own, trained


def test_keys_are_shuffled_over_ranks_and_come_back_in_order(two_ranks: RankPool) -> None:
    module = with_batch_norm(shuffle_keys=False)
    expected, (all_images,) = key_vectors(module, 8, mode=False)
    answers = two_ranks(shuffled_on_ranks)
    for rank, (vectors, _, trained) in enumerate(answers):
        assert near(vectors, expected[rank::2]), "statistics that do not depend on the pass: nothing moves"
        share = every(view_batch(8), rank, 2)
        module.key.train()
        own = module._key._pool(*(share[f"key_{name}"] for name in ("image", "mean", "std", "boxes"))).vector
        assert not near(trained, own), "the statistics are those of other images"
    passes = [own[0] for _, own, _ in answers]
    assert near(torch.cat(passes).sort().values, all_images.sort().values), "each image once"
    homes = [sorted((all_images - value).abs().argmin().item() % 2 for value in own) for own in passes]
    assert homes[0] != [0, 0, 0, 0], "rank 0 computes images of rank 1 too"


def test_groups_on_one_rank() -> None:
    module = with_batch_norm(key_group=2)
    expected, _ = key_vectors(with_batch_norm(shuffle_keys=False), 6, mode=False)
    kept, seen = key_vectors(module, 6, mode=False)
    assert [len(images) for images in seen] == [2, 2, 2]
    assert near(kept, expected)
    grouped, together = (key_vectors(m, 6, mode=True)[0] for m in (module, with_batch_norm()))
    assert not near(grouped, together)


def test_words_of_batch_norm() -> None:
    assert "key_group=8" in with_batch_norm().words()[-1]
    assert "shuffle_keys is off" in with_batch_norm(shuffle_keys=False).words()[-1]
    assert len(with_batch_norm(key_group=2).words()) == 1


def test_a_resnet_goes_through_with_its_own_defaults() -> None:
    config = DI3CLConfig(queue_length=8, hidden_dim=12, output_dim=6, key_group=2)
    module, batch = DI3CL(micro_resnet(), config).train(), view_batch(4, size=64)
    assert module.smallest_box == 32
    assert module.query.encoder.shallow_dim == 4 * 16, "the third stage"
    assert module.query.region_norm == "batch"
    assert not [name for name in module.state() if "shallow_norm" in name]
    before = module.encoder.state_dict()["backbone.embedder.embedder.normalization.running_mean"].clone()
    terms = module(batch)
    terms.total.backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
    module.push_keys()
    module.update_keys(0.9)
    name = "encoder.model.backbone.embedder.embedder.normalization.running_mean"
    own, query = module.key.state_dict()[name], module.query.state_dict()[name]
    assert not torch.equal(query, before)
    assert not torch.equal(own, query), "the key network's statistics are its own"
    with pytest.raises(InputError, match="no CLS token"):
        DI3CL(micro_resnet(), DI3CLConfig(image_vector="cls"))


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_without_batch_statistics_nothing_is_shuffled(norm: str) -> None:
    module = DI3CL(micro_resnet(norm), DI3CLConfig(queue_length=8, hidden_dim=4, output_dim=4))
    assert len(module.words()) == 1
    assert not module._key.batch_norm
