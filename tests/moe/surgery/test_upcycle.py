"""Sparse upcycling: the sparse model computes what the dense one did, whatever its routers say."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from crossearth_sar import CrossEarthSAR, InputError, PhysicsGuidedMoE, build_model
from crossearth_sar.moe import upcycle_state_dict
from crossearth_sar.vit import VisionTransformer, ViTConfig

CONFIG = ViTConfig(
    dim=32, depth=4, num_heads=2, out_blocks=(0, 1, 2, 3), patch_size=8, image_size=64, layer_scale=1.0
)
MODEL: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64},
    "decoder": {
        "kind": "mask2former",
        "channels": 64,
        "num_heads": 4,
        "num_queries": 8,
        "pixel_layers": 1,
        "query_layers": 2,
        "num_points": 64,
    },
    "crop_size": 64,
    "crop_stride": 40,
}


def randomise(model: torch.nn.Module) -> None:
    """Away from the fresh weights, where biases are zero and every FFN is nearly linear."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def randomise_routers(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, PhysicsGuidedMoE):
            torch.nn.init.normal_(module.router.weight)
            torch.nn.init.normal_(module.router.bias)


def sparse_from(dense: VisionTransformer, gate: str) -> VisionTransformer:
    sparse = VisionTransformer(CONFIG, partial(PhysicsGuidedMoE, num_experts=6, gate=gate))  # type: ignore[arg-type]
    missing, unexpected = sparse.load_state_dict(upcycle_state_dict(dense.state_dict(), 6), strict=False)
    routers = {f"blocks.{i}.mlp.router.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert set(missing) == routers
    assert unexpected == []
    randomise_routers(sparse)
    return sparse


def test_names_shapes_and_values() -> None:
    state = {
        "blocks.0.mlp.fc1.weight": torch.randn(8, 2),
        "blocks.0.mlp.fc1.bias": torch.randn(8),
        "blocks.0.mlp.fc2.weight": torch.randn(2, 8),
        "blocks.0.mlp.fc2.bias": torch.randn(2),
        "blocks.0.norm2.weight": torch.randn(2),
    }
    sparse = upcycle_state_dict(state, 3)
    names = {"fc1.weight": "w1", "fc1.bias": "b1", "fc2.weight": "w2", "fc2.bias": "b2"}
    assert sparse.keys() == {f"blocks.0.mlp.experts.{n}" for n in names.values()} | {"blocks.0.norm2.weight"}
    for dense_name, name in names.items():
        stacked, dense = sparse[f"blocks.0.mlp.experts.{name}"], state[f"blocks.0.mlp.{dense_name}"]
        assert stacked.shape == (3, *dense.shape)
        assert all(torch.equal(expert, dense) for expert in stacked)
    stacked, before = sparse["blocks.0.mlp.experts.b2"], state["blocks.0.mlp.fc2.bias"].clone()
    stacked[0] += 1
    assert torch.equal(stacked[1], before), "experts are copies, free to part"
    assert torch.equal(state["blocks.0.mlp.fc2.bias"], before)
    assert sparse["blocks.0.norm2.weight"] is state["blocks.0.norm2.weight"]


@torch.no_grad()
@pytest.mark.parametrize("gate", ["normalized", "straight_through"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sparse_transformer_computes_what_the_dense_one_does(gate: str, seed: int) -> None:
    torch.manual_seed(seed)
    dense = VisionTransformer(CONFIG)
    randomise(dense)
    sparse = sparse_from(dense, gate)
    image, descriptors = torch.randn(2, 3, 64, 48), torch.randn(2, 3)
    expected, got = dense(image), sparse(image, descriptors)
    torch.testing.assert_close(got.tokens, expected.tokens, rtol=0, atol=1e-5)
    for ours, theirs in zip(got.feature_maps, expected.feature_maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for routing in got.routing:
        assert routing.expert_index.unique().numel() > 1, "tokens go to different experts"


@torch.no_grad()
def test_the_plain_probability_as_gate_does_change_the_output() -> None:
    dense = VisionTransformer(CONFIG)
    randomise(dense)
    image = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(sparse_from(dense, "probability")(image).tokens, dense(image).tokens, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("gate", ["normalized", "straight_through"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_whole_model_upcycled(gate: str, top_k: int) -> None:
    """In double precision: a rounding error must not flip a bit of the decoder's attention mask."""
    changes = {**MODEL, "moe": {"gate": gate, "top_k": top_k}}
    dense = build_model("crossearth_sar_tiny", 3, changes=MODEL, sparse=False).double().eval()
    randomise(dense)
    sparse: CrossEarthSAR = build_model("crossearth_sar_tiny", 3, changes=changes).double().eval()
    missing, unexpected = sparse.load_state_dict(upcycle_state_dict(dense.state_dict(), 6), strict=False)
    routers = {f"backbone.blocks.{i}.mlp.router.{kind}" for i in range(4) for kind in ("weight", "bias")}
    assert set(missing) == routers | {f"standardizer.{n}" for n in ("mean", "variance", "batches_seen")}
    assert unexpected == []
    randomise_routers(sparse)
    image = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    expected, got = dense(image), sparse(image)
    assert len(got.routing) == 4
    assert expected.routing == ()
    torch.testing.assert_close(got.decoder.class_logits, expected.decoder.class_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.decoder.mask_logits, expected.decoder.mask_logits, rtol=0, atol=1e-5)


# --- noise ------------------------------------------------------------------------------------------------

FFN = {
    "blocks.0.mlp.fc1.weight": torch.linspace(-3, 3, 64 * 48).view(64, 48),
    "blocks.0.mlp.fc2.weight": torch.linspace(0, 0.01, 48 * 64).view(48, 64),
    "blocks.0.mlp.fc1.bias": torch.full((64,), 0.5),
    "blocks.0.norm2.weight": torch.linspace(0, 1, 48),
}


def test_noise_is_relative_to_each_tensor_and_parts_the_experts() -> None:
    sparse = upcycle_state_dict(FFN, 6, expert_noise=0.1, seed=3)
    for dense_name, name in (("fc1.weight", "w1"), ("fc2.weight", "w2")):
        dense, stacked = FFN[f"blocks.0.mlp.{dense_name}"], sparse[f"blocks.0.mlp.experts.{name}"]
        noise = (stacked - dense) / dense.std()
        assert float(noise.std()) == pytest.approx(0.1, rel=0.05)
        assert float(noise.mean()) == pytest.approx(0, abs=0.005)
        correlation = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
        assert float(correlation.abs().max()) < 0.1, "experts part independently"
    constant = sparse["blocks.0.mlp.experts.b1"]
    assert torch.equal(constant, FFN["blocks.0.mlp.fc1.bias"].expand(6, -1)), "no spread, no noise"
    assert sparse["blocks.0.norm2.weight"] is FFN["blocks.0.norm2.weight"]


def test_noise_depends_on_seed_and_name_alone() -> None:
    name, key = "blocks.0.mlp.fc2.weight", "blocks.0.mlp.experts.w2"
    whole = upcycle_state_dict(FFN, 2, expert_noise=0.1, seed=3)
    torch.manual_seed(99)
    alone = upcycle_state_dict({name: FFN[name]}, 2, expert_noise=0.1, seed=3)
    assert torch.equal(alone[key], whole[key])
    assert not torch.equal(upcycle_state_dict(FFN, 2, expert_noise=0.1, seed=4)[key], whole[key])
    other = upcycle_state_dict({name.replace("0", "1", 1): FFN[name]}, 2, expert_noise=0.1, seed=3)
    assert not torch.equal(other[key.replace("0", "1", 1)], whole[key])


def test_no_noise_is_exact_and_half_precision_keeps_its_dtype() -> None:
    state = {key: value.half() for key, value in FFN.items()}
    exact = upcycle_state_dict(state, 3, expert_noise=0.0)["blocks.0.mlp.experts.w1"]
    assert all(torch.equal(expert, state["blocks.0.mlp.fc1.weight"]) for expert in exact)
    noisy = upcycle_state_dict(state, 3, expert_noise=0.05)["blocks.0.mlp.experts.w1"]
    assert noisy.dtype == torch.float16
    assert not torch.equal(noisy[0], noisy[1])


def test_negative_noise_is_refused() -> None:
    with pytest.raises(InputError, match="expert_noise"):
        upcycle_state_dict(FFN, 2, expert_noise=-0.1)
