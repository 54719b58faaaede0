"""Earth-Adapter's parts against formulas written out naively, and putting it on and taking it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossearth_sar import CrossEarthSAR, InputError, build_model, load_model, save_model
from crossearth_sar.peft import (
    EarthAdapter,
    EarthAdapterConfig,
    attach_earth_adapter,
    detach_earth_adapter,
    freeze_backbone,
)
from crossearth_sar.peft.earth_adapter import FrequencyAdapter, SpatialAdapter, frequency_split
from crossearth_sar.vit import VisionTransformer, ViTConfig

CONFIG = EarthAdapterConfig(rank=4, fft_layers=(0, 2))
MODEL: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64},
    "decoder": {"num_queries": 8, "pixel_layers": 1, "query_layers": 1, "num_points": 64},
    "crop_size": 64,
    "crop_stride": 40,
}


def micro() -> CrossEarthSAR:
    return build_model("crossearth_sar_tiny", 3, changes=MODEL)


def naive_split(x_BND: Tensor, grid: tuple[int, int], cutoff: float) -> tuple[Tensor, Tensor]:
    """Shifted full spectrum, a square of ones about its centre, the rest high; the real part of each."""
    rows, columns = grid
    spectrum = torch.fft.fftshift(torch.fft.fft2(x_BND.unflatten(1, grid), dim=(1, 2)), dim=(1, 2))
    half = int(min(rows, columns) * cutoff // 2)
    mask = torch.zeros(rows, columns, 1)
    mask[rows // 2 - half : rows // 2 + half, columns // 2 - half : columns // 2 + half] = 1
    parts = [torch.fft.ifftshift(spectrum * m, dim=(1, 2)) for m in (mask, 1 - mask)]
    low, high = (torch.fft.ifft2(part, dim=(1, 2)).real.flatten(1, 2) for part in parts)
    return low, high


GRIDS = [(8, 8), (32, 32), (7, 7), (9, 5), (8, 13), (3, 20), (1, 1), (2, 3)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("cutoff", [0.0, 0.3, 0.5, 1.0])
def test_frequency_split_is_the_shifted_square_and_sums_to_the_input(
    grid: tuple[int, int], cutoff: float
) -> None:
    x_BND = torch.randn(2, grid[0] * grid[1], 3)
    low, high = frequency_split(x_BND, grid, cutoff)
    torch.testing.assert_close(low + high, x_BND, rtol=0, atol=1e-5)
    for got, expected in zip((low, high), naive_split(x_BND, grid, cutoff), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_constant_is_low_and_a_checkerboard_is_high() -> None:
    constant = torch.full((1, 64, 2), 3.0)
    low, high = frequency_split(constant, (8, 8), 0.5)
    torch.testing.assert_close(low, constant, rtol=0, atol=1e-5)
    checkerboard = (1.0 - 2.0 * (torch.arange(8)[:, None] + torch.arange(8)).remainder(2)).view(1, 64, 1)
    low, high = frequency_split(checkerboard, (8, 8), 0.5)
    torch.testing.assert_close(high, checkerboard, rtol=0, atol=1e-5)


def test_half_precision_is_transformed_in_float32() -> None:
    x_BND = torch.randn(1, 15, 4).bfloat16()
    low, high = frequency_split(x_BND, (3, 5), 0.9)
    assert low.dtype == high.dtype == torch.bfloat16
    expected = frequency_split(x_BND.float(), (3, 5), 0.9)[0]
    torch.testing.assert_close(low.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_frequency_block_is_the_formula_written_out() -> None:
    layer = FrequencyAdapter(6, EarthAdapterConfig(rank=3, cutoff=0.5, scale=0.7))
    x_BND = torch.randn(2, 35, 6)
    low, high = naive_split(x_BND, (5, 7), 0.5)
    weight = torch.softmax(x_BND @ layer.router.weight.T + layer.router.bias, dim=-1)
    expected = torch.zeros_like(x_BND)
    for i, (network, seen) in enumerate(((layer.spatial, x_BND), (layer.low, low), (layer.high, high))):
        down, _, up = network
        hidden = torch.relu(seen @ down.weight.T + down.bias)
        expected += weight[..., i, None] * (hidden @ up.weight.T + up.bias)
    torch.testing.assert_close(layer(x_BND, (5, 7)), 0.7 * expected, rtol=1e-4, atol=1e-5)


def test_kinds_of_layers_and_the_class_token() -> None:
    adapter = EarthAdapter(8, 4, CONFIG)
    kinds = [type(layer) for layer in adapter.layers]
    assert kinds == [FrequencyAdapter, SpatialAdapter, FrequencyAdapter, SpatialAdapter]
    x_BTD = torch.randn(2, 1 + 12, 8)
    for index in range(4):
        y_BTD = adapter(index, x_BTD, (3, 4))
        assert torch.equal(y_BTD[:, 0], x_BTD[:, 0]), "CLS is left alone"
        assert bool((y_BTD[:, 1:] != x_BTD[:, 1:]).any())


@pytest.mark.parametrize(("layers", "millions"), [(tuple(range(24)), 9.59), (tuple(range(6)), 4.78)])
def test_parameters_at_the_size_of_vit_l(layers: tuple[int, ...], millions: float) -> None:
    """Published as about 9.6M: three networks in every block, whether its frequencies are split or not."""
    with torch.device("meta"):
        adapter = EarthAdapter(1024, 24, EarthAdapterConfig(fft_layers=layers))
    count = sum(p.numel() for p in adapter.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("field", ["rank=0", "cutoff=1.5", "fft_layers=(1, 1)", "fft_layers=(-1,)"])
def test_settings_out_of_range(field: str) -> None:
    with pytest.raises(InputError, match=field.split("=")[0]):
        eval(f"EarthAdapterConfig({field})")


def test_a_block_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"(?s)fft_layers.*4 blocks.*0 \.\. 3"):
        EarthAdapter(8, 4, EarthAdapterConfig())


# --- on and off -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_scale_zero_is_the_identity_and_another_scale_is_not(size: tuple[int, int]) -> None:
    model = micro().eval()
    image = torch.rand(2, 1, *size)
    before = model.features(image)
    adapter = attach_earth_adapter(model, CONFIG)
    changed = model.features(image)
    for layer in adapter.layers:
        layer.scale.zero_()
    same = model.features(image)
    assert not torch.allclose(changed.tokens, before.tokens, atol=1e-3)
    for got, expected in zip(same.feature_maps, before.feature_maps, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_gradients_reach_every_adapter_parameter_and_nothing_of_the_backbone() -> None:
    model = micro()
    adapter = attach_earth_adapter(model, CONFIG)
    model.features(torch.rand(2, 1, 64, 64)).tokens.square().mean().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()), name
    frozen = [p for n, p in model.backbone.named_parameters() if not n.startswith("adapter.")]
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_detaching_leaves_no_trace() -> None:
    model = micro()
    model.backbone.norm.weight.requires_grad_(False)  # frozen by its owner: it stays so
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    state, image = {k: v.clone() for k, v in model.state_dict().items()}, torch.rand(1, 1, 64, 64)
    model.eval()
    expected = model.features(image).tokens
    attached = attach_earth_adapter(model, CONFIG)
    assert model.config.adapter == CONFIG
    assert detach_earth_adapter(model) is attached
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert model.config.adapter is None
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.features(image).tokens, expected)
    with pytest.raises(InputError, match="no Earth-Adapter"):
        detach_earth_adapter(model)


def test_twice_or_onto_something_else_is_refused() -> None:
    model = micro()
    attach_earth_adapter(model, CONFIG)
    with pytest.raises(InputError, match="adapter already"):
        attach_earth_adapter(model, CONFIG)
    with pytest.raises(InputError, match=r"(?s)no place.*Linear"):
        attach_earth_adapter(nn.Linear(2, 2))


def test_a_transformer_alone_takes_one() -> None:
    config = ViTConfig(dim=16, depth=4, num_heads=2, out_blocks=(0, 1, 2, 3), patch_size=8, image_size=32)
    backbone = VisionTransformer(config)
    attach_earth_adapter(backbone, CONFIG)
    assert backbone(torch.rand(1, 3, 24, 40)).tokens.shape == (1, 16, 16)
    detach_earth_adapter(backbone)
    assert all(p.requires_grad for n, p in backbone.named_parameters() if n != "mask_token")


@torch.no_grad()
def test_saved_and_loaded_with_the_model(tmp_path: Path) -> None:
    model = micro().eval()
    attach_earth_adapter(model, CONFIG)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.adapter == CONFIG
    image = torch.rand(1, 1, 64, 64)
    assert torch.equal(loaded.features(image).tokens, model.features(image).tokens)


def test_freezing_returns_what_had_trained() -> None:
    model = micro()
    names = freeze_backbone(model)
    assert "blocks.0.attn.qkv.weight" in names
    assert "mask_token" not in names
    assert freeze_backbone(model) == []
    assert all(p.requires_grad for p in model.decoder.parameters())
