"""Backbone weights from files: DINOv2's S, B and L, transformers' folders, models of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dinov2_files import official_state, transformers_model
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from crossearth_sar import CrossEarthSAR, InputError, PhysicsGuidedMoE, build_model, save_model
from crossearth_sar.peft import EarthAdapterConfig

DECODER = {"num_queries": 4, "pixel_layers": 1, "query_layers": 1, "channels": 32, "num_heads": 4}
TINY: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "stem": ()},
    "decoder": DECODER,
    "crop_size": 64,
    "crop_stride": 40,
}
SIZES = {  # name -> width, heads, blocks built here (S whole; B and L shortened), experts
    "crossearth_sar_s": (384, 6, 12, 6),
    "crossearth_sar_b": (768, 12, 4, 2),
    "crossearth_sar_l": (1024, 16, 4, 2),
}


def tiny(**options: Any) -> CrossEarthSAR:
    return build_model("crossearth_sar_tiny", 3, changes=TINY, **options)


def write(state: dict[str, Any], folder: Path, name: str = "weights.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


def routers_at_random(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, PhysicsGuidedMoE):
            nn.init.normal_(module.router.weight)


def bicubic(state: dict[str, Tensor], patch: int, grid: int) -> dict[str, Tensor]:
    """Kernel and positions interpolated here, by the calls the optical code makes."""
    positions = state["pos_embed"]
    side = round((positions.shape[1] - 1) ** 0.5)
    square = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    patches = square.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)
    kernel = F.interpolate(state["patch_embed.proj.weight"], size=(patch, patch), mode="bicubic")
    resized = {"pos_embed": torch.cat([positions[:, :1], patches], 1), "patch_embed.proj.weight": kernel}
    return {**state, **resized}


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_official_weights_load_convert_and_upcycle(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are left uninitialised (NaN in tests) before loading: one that is not loaded shows."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **options: tensor)
    dim, heads, depth, experts = SIZES[name]
    state = official_state(dim, depth)
    path = write(state, tmp_path)
    shape = {"depth": depth, "out_blocks": list(range(depth - 4, depth))}
    changes: dict[str, Any] = {"vit": shape, "decoder": DECODER, "moe": {"num_experts": experts}}
    sparse = build_model(name, 3, changes=changes, weights=path).eval()
    changes.pop("moe")
    dense = build_model(name, 3, changes=changes, weights=path, sparse=False).eval()
    image, physics = torch.randn(1, 3, 224, 160), torch.randn(1, 3)
    reference = transformers_model(bicubic(state, 16, 32), heads, patch=16, grid=32)
    expected = reference(image).last_hidden_state
    tokens = dense.backbone(image).tokens
    assert float((tokens - expected).abs().max()) <= 1e-4
    routers_at_random(sparse)
    upcycled = sparse.backbone(image, physics)
    assert max(r.expert_index.unique().numel() for r in upcycled.routing) > 1
    assert float((upcycled.tokens - tokens).abs().max()) <= 1e-5


@torch.no_grad()
def test_a_folder_of_transformers(tmp_path: Path) -> None:
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, patch_size=14, image_size=70
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    model = tiny(weights=tmp_path, sparse=False).eval()
    theirs = Dinov2Model.from_pretrained(tmp_path).state_dict()
    qkv = torch.cat([theirs[f"encoder.layer.2.attention.{p}_proj.weight"] for p in "qkv"])
    assert torch.equal(model.backbone.state_dict()["blocks.2.attn.qkv.weight"], qkv)
    assert model.backbone.pos_embed.shape == (1, 65, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "dinov2_with_registers"}, "dinov2_with_registers"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ({"num_attention_heads": 4}, r"(?s)attention heads.*4.*set vit.num_heads to 4"),
        ({"hidden_act": "gelu_new"}, "gelu_new"),
    ],
)
def test_a_folder_of_another_model(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56)
    Dinov2Model(config).save_pretrained(tmp_path)
    mapping = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**mapping, **change}), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        tiny(weights=tmp_path)


def test_expert_noise_parts_the_experts_and_leaves_the_rest(tmp_path: Path) -> None:
    path = write(official_state(32, 4), tmp_path)
    plain, noisy = tiny(weights=path).state_dict(), tiny(weights=path, expert_noise=0.05).state_dict()
    different = {key for key in plain if not torch.equal(plain[key], noisy[key])}
    loaded = {key for key in different if key.startswith("backbone.") and ".router." not in key}
    assert loaded == {
        f"backbone.blocks.{i}.mlp.experts.{name}" for i in range(4) for name in ("w1", "b1", "w2", "b2")
    }


# --- models of this package -------------------------------------------------------------------------------


@torch.no_grad()
def test_own_backbone_with_its_statistics_for_other_classes(tmp_path: Path) -> None:
    source = build_model("crossearth_sar_tiny", 7, changes=TINY)
    source.standardizer.mean.add_(2.0)  # type: ignore[operator, union-attr]
    save_model(source, tmp_path)
    model = tiny(weights=tmp_path)
    for key, value in source.state_dict().items():
        if key.startswith(("backbone.", "standardizer.")):
            assert torch.equal(model.state_dict()[key], value), key


@torch.no_grad()
def test_own_dense_backbone_is_upcycled(tmp_path: Path) -> None:
    dense = build_model("crossearth_sar_tiny", 3, changes=TINY, sparse=False).eval()
    save_model(dense, tmp_path)
    sparse = tiny(weights=tmp_path).eval()
    image = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(sparse.features(image).tokens, dense.features(image).tokens, rtol=0, atol=1e-5)


def test_an_adapter_of_the_model_stays_new_and_one_of_the_weights_is_not_swallowed(tmp_path: Path) -> None:
    adapter = {"adapter": {"rank": 4, "fft_layers": [0]}}
    save_model(tiny(), tmp_path / "plain")
    model = build_model("crossearth_sar_tiny", 3, changes={**TINY, **adapter}, weights=tmp_path / "plain")
    assert model.config.adapter == EarthAdapterConfig(rank=4, fft_layers=(0,))
    save_model(model, tmp_path / "adapted")
    with pytest.raises(InputError, match=r"(?s)unknown: adapter.layers.0"):
        tiny(weights=tmp_path / "adapted")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vit": {"num_heads": 4}}, "num_heads 2"),
        ({"moe": {"descriptors": ["roughness", "enl", "entropy"]}}, "moe.descriptors"),
        ({"moe": {"num_experts": 3}}, r"24 misshaped: .*router.weight \(6, 35\) for \(3, 35\)"),
    ],
)
def test_own_weights_of_another_function_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save_model(tiny(), tmp_path)
    merged = {**TINY, **{key: {**TINY.get(key, {}), **value} for key, value in changes.items()}}
    with pytest.raises(InputError, match=words):
        build_model("crossearth_sar_tiny", 3, changes=merged, weights=tmp_path)


# --- what can be wrong with a file ------------------------------------------------------------------------


def test_all_wrong_keys_come_in_one_message(tmp_path: Path) -> None:
    state = official_state(32, 4)
    del state["blocks.1.norm2.bias"], state["patch_embed.proj.weight"], state["pos_embed"]
    state["norm.weight"] = torch.zeros(31)
    state["neck.weight"] = torch.zeros(10, 32)
    with pytest.raises(InputError) as caught:
        tiny(weights=write(state, tmp_path))
    message = str(caught.value)
    assert "1 unknown: neck.weight" in message
    for key in ("blocks.1.norm2.bias", "patch_embed.proj.weight", "pos_embed"):
        assert key in message
    assert "3 missing" in message
    assert "1 misshaped: norm.weight (31,) for (32,)" in message


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda: official_state(48, 4), r"48 wide with 4 blocks, the model 32 with 4: choose the preset"),
        (lambda: {**official_state(32, 4), "register_tokens": torch.zeros(1, 4, 32)}, "use those without"),
        (lambda: official_state(32, 4, grid=6) | {"pos_embed": torch.zeros(1, 8, 32)}, r"pos_embed \(1, 8"),
        (lambda: {"teacher": official_state(32, 4)}, r"(?s)more than named tensors.*'teacher' \(dict\)"),
        (lambda: [torch.zeros(1)], "no named tensors"),
        (lambda: {"a": PhysicsGuidedMoE(16)}, "would run code when read are refused"),
    ],
    ids=["width", "registers", "grid", "nested", "list", "object"],
)
def test_files_that_are_no_such_weights(state: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        tiny(weights=write(state(), tmp_path))


def test_a_file_that_is_missing_damaged_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is fetched"):
        tiny(weights=tmp_path / "dinov2_vits14_pretrain.pth")
    whole = write(official_state(32, 4), tmp_path).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.pth cannot be read"):
        tiny(weights=tmp_path / "cut.pth")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.bin"):
        tiny(weights=tmp_path / "weights.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"(?s)folder.*config.json is missing"):
        tiny(weights=tmp_path / "empty")


def test_an_export_without_the_unused_mask_token_is_taken(tmp_path: Path) -> None:
    state = official_state(32, 4)
    del state["mask_token"]
    assert not bool(tiny(weights=write(state, tmp_path)).backbone.mask_token.any())


def test_heads_of_the_official_sizes(tmp_path: Path) -> None:
    changes = {"vit": {"num_heads": 8, "depth": 4, "out_blocks": [0, 1, 2, 3]}, "decoder": DECODER}
    path = write(official_state(384, 4), tmp_path)
    with pytest.raises(InputError, match=r"(?s)attention heads.*6.*num_heads 8"):
        build_model("crossearth_sar_s", 3, changes=changes, weights=path, sparse=False)


def test_noise_where_nothing_is_upcycled_is_refused(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    with pytest.raises(InputError, match="sparse weights"):
        tiny(weights=tmp_path, expert_noise=0.1)
    with pytest.raises(InputError, match="dense model"):
        tiny(weights=write(official_state(32, 4), tmp_path), expert_noise=0.1, sparse=False)
