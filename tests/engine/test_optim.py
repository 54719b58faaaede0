"""What decays and what does not, the groups DeepSpeed is given, and the learning-rate schedule."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from crossearth_sar.engine.config import OptimConfig
from crossearth_sar.engine.optim import learning_rate, make_optimizer, moments_of, parameter_groups
from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR, build_model

SMALL = {
    "vit": {"dim": 32, "num_heads": 2, "stem": ()},
    "decoder": {"kind": "mask2former", "channels": 32, "num_heads": 2, "pixel_layers": 1, "query_layers": 1},
}


@pytest.fixture(scope="module")
def model() -> CrossEarthSAR:
    return build_model("crossearth_sar_tiny", 3, changes=SMALL)


def by_decay(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters with and without decay."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for group in parameter_groups(model, 0.05):
        assert group["weight_decay"] in (0.0, 0.05)
        sides[group["weight_decay"] > 0] |= {name_of[id(p)] for p in group["params"]}
    return sides[True], sides[False]


def test_the_model_names_what_must_not_decay(model: CrossEarthSAR) -> None:
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert model.no_weight_decay() & trained == by_decay(model)[1]


@pytest.mark.parametrize("sparse", [True, False])
def test_every_trainable_parameter_is_in_exactly_one_group(sparse: bool) -> None:
    model = build_model("crossearth_sar_tiny", 3, changes=SMALL, sparse=sparse)
    model.backbone.blocks[0].attn.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert not set(grouped) & {id(p) for p in model.backbone.blocks[0].attn.parameters()}


def test_what_must_not_decay(model: CrossEarthSAR) -> None:
    decay, no_decay = by_decay(model)
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    embeddings = {
        "backbone.cls_token",
        "backbone.pos_embed",
        "decoder.head.pixel_decoder.level_embed",
        "decoder.head.transformer_module.level_embed.weight",
        "decoder.head.transformer_module.queries_embedder.weight",
        "decoder.head.transformer_module.queries_features.weight",
    }
    scales = {f"backbone.blocks.{i}.ls{n}.gamma" for i in range(4) for n in (1, 2)}
    moe_biases = {
        f"backbone.blocks.{i}.mlp.{name}"
        for i in range(4)
        for name in ("experts.b1", "experts.b2", "router.bias")
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert any(name.endswith("in_proj_bias") for name in biases), "attention of torch is part of the decoder"
    for expected in (norms, embeddings, scales, moe_biases, biases):
        assert expected
        assert expected <= no_decay
        assert not expected & decay


def test_what_decays(model: CrossEarthSAR) -> None:
    decay, no_decay = by_decay(model)
    weights = {
        f"{prefix}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    experts = {f"backbone.blocks.{i}.mlp.experts.{name}" for i in range(4) for name in ("w1", "w2")}
    routers = {f"backbone.blocks.{i}.mlp.router.weight" for i in range(4)}
    attention = {name for name, _ in model.named_parameters() if name.endswith("in_proj_weight")}
    assert attention
    assert decay == weights | experts | routers | attention
    dimensions = {name: p.ndim for name, p in model.named_parameters()}
    assert all(dimensions[name] >= 2 for name in decay)
    assert not decay & no_decay


def test_group_names_of_a_plain_model(model: CrossEarthSAR) -> None:
    groups = parameter_groups(model, 0.1)
    assert sorted(group["name"] for group in groups) == ["decay", "no_decay"]
    assert not any("moe" in group for group in groups)


def test_expert_parallel_parameters_have_groups_of_their_own() -> None:
    model = build_model("crossearth_sar_tiny", 3, changes=SMALL)
    tagged = {name: p for name, p in model.named_parameters() if ".experts." in name}
    for parameter in tagged.values():
        parameter.allreduce, parameter.group_name = False, "ep_size_2"  # type: ignore[attr-defined]
    groups = parameter_groups(model, 0.1)
    moe = [group for group in groups if group.get("moe")]
    assert [group["name"] for group in moe] == ["ep_size_2"] * 2
    assert sorted(group["weight_decay"] for group in moe) == [0.0, 0.1]
    assert {id(p) for group in moe for p in group["params"]} == {id(p) for p in tagged.values()}
    assert sorted(g["name"] for g in groups if not g.get("moe")) == ["decay", "no_decay"]


def test_the_optimizer_starts_at_rate_zero(model: CrossEarthSAR) -> None:
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.3, beta1=0.8, beta2=0.95))
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"]) == (0.0, (0.8, 0.95))
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.3]


def test_sgd_is_torchs_and_counts_its_steps() -> None:
    own, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(own.state_dict())
    optimizer = make_optimizer(own, OptimConfig(kind="sgd", momentum=0.8, weight_decay=0.0))
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(3):
        for model, stepped in ((own, optimizer), (theirs, reference)):
            stepped.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            stepped.step()
    for one, other in zip(own.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}
    assert moments_of(optimizer) == ("momentum_buffer",)


def test_no_decay_on_batch_norm() -> None:
    groups = parameter_groups(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)), 0.1)
    assert {group["name"]: len(group["params"]) for group in groups} == {"decay": 1, "no_decay": 2}


def test_the_cosine_falls_from_the_rate_to_nothing() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=0, decay="cosine")
    assert [learning_rate(config, step, 4) for step in range(5)] == pytest.approx(
        [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0]
    )


@pytest.mark.parametrize(("warmup", "steps"), [(10, 100), (0, 5), (1, 2), (0, 1), (99, 100)])
def test_schedule(warmup: int, steps: int) -> None:
    config = OptimConfig(lr=2e-3, warmup_steps=warmup)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    rise, fall = rates[:warmup], rates[warmup:]
    assert rise == pytest.approx([2e-3 * (i + 1) / warmup for i in range(warmup)])
    assert fall[0] == pytest.approx(2e-3)
    assert max(rates) == pytest.approx(2e-3)
    assert all(later < earlier for earlier, later in itertools.pairwise(fall))
    assert min(rates) > 0, "no step is for nothing"


def test_schedule_follows_the_power() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=20, decay_power=0.9)
    assert learning_rate(config, 60, 100) == pytest.approx(0.5**0.9)
    linear = OptimConfig(lr=1.0, warmup_steps=0, decay_power=1.0)
    assert [learning_rate(linear, step, 4) for step in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_a_run_shorter_than_its_warmup_only_rises() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=10)
    assert [learning_rate(config, step, 3) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0.0), ("beta1", 1.0), ("beta2", -0.1), ("weight_decay", -1), ("warmup_steps", -1)],
)
def test_config_refuses(key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"optim.{key}"):
        OptimConfig(**{key: value})  # type: ignore[arg-type]
