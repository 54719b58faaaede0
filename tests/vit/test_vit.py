"""The transformer's own promises: which feature maps, which routing, which configs. Parity is elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.vit import DenseFFN, VisionTransformer, ViTConfig

CONFIG = ViTConfig(
    dim=16, depth=5, num_heads=2, out_blocks=(0, 1, 3, 4), patch_size=8, image_size=32, layer_scale=1.0
)


class CountingFFN(DenseFFN):
    """Reports as routing how many blocks were built before it and the descriptors it saw."""

    built = 0

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.shape, self.index = (dim, hidden_dim), CountingFFN.built
        CountingFFN.built += 1

    def forward(self, x_BTD: Tensor, descriptors_BP: Tensor | None = None) -> tuple[Tensor, object]:  # type: ignore[override]
        return super().forward(x_BTD)[0], (self.index, descriptors_BP)


def test_shapes_on_a_grid_that_is_not_square() -> None:
    out = VisionTransformer(CONFIG)(torch.randn(2, 3, 24, 40))
    assert out.tokens.shape == (2, 1 + 3 * 5, 16)
    assert [tuple(f.shape) for f in out.feature_maps] == [(2, 16, 3, 5)] * 4
    assert out.routing == [None] * 5


def test_the_last_feature_map_holds_the_patch_tokens_before_the_norm() -> None:
    vit = VisionTransformer(CONFIG)
    out = vit(torch.randn(2, 3, 24, 40))
    torch.testing.assert_close(vit.norm(out.feature_maps[-1].flatten(2).transpose(1, 2)), out.tokens[:, 1:])


def test_feature_maps_are_those_of_the_out_blocks() -> None:
    """Of a transformer cut after block i, the last map is map i of the whole one."""
    vit, image = VisionTransformer(CONFIG), torch.randn(1, 3, 32, 32)
    whole = vit(image)
    cut = VisionTransformer(replace(CONFIG, depth=4, out_blocks=(0, 1, 2, 3)))
    cut.load_state_dict(vit.state_dict(), strict=False)
    torch.testing.assert_close(cut(image).feature_maps[3], whole.feature_maps[2])
    assert not torch.equal(whole.feature_maps[2], whole.feature_maps[3])


def test_ffns_are_injected_in_order_and_see_the_descriptors() -> None:
    CountingFFN.built = 0
    vit, descriptors = VisionTransformer(replace(CONFIG, ffn_ratio=3.0), CountingFFN), torch.randn(1, 3)
    out = vit(torch.randn(1, 3, 32, 32), descriptors)
    assert [index for index, _ in out.routing] == [0, 1, 2, 3, 4]
    assert all(seen is descriptors for _, seen in out.routing)
    assert all(block.mlp.shape == (16, 48) for block in vit.blocks)


def test_fresh_weights_are_small_and_only_the_mask_token_is_frozen() -> None:
    vit = VisionTransformer(CONFIG)
    assert [name for name, p in vit.named_parameters() if not p.requires_grad] == ["mask_token"]
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            assert 0.01 < float(module.weight.detach().std()) < 0.03
            assert not bool(module.bias.any())
    assert 0.01 < float(vit.pos_embed.detach().std()) < 0.03


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out_blocks": (0, 1, 2, 5)}, "four rising block indices below depth 5"),
        ({"out_blocks": (0, 2, 1, 3)}, "four rising"),
        ({"out_blocks": (0, 1, 1, 3)}, "four rising"),
        ({"out_blocks": (-1, 1, 2, 3)}, "four rising"),
        ({"out_blocks": (1, 2, 3)}, "four rising"),
        ({"num_heads": 3}, "divisor of 16"),
        ({"num_heads": 0}, "vit.num_heads"),
        ({"patch_size": 0}, "vit.patch_size"),
        ({"depth": 0}, "vit.depth"),
        ({"image_size": 36}, "a multiple of patch_size 8"),
    ],
)
def test_config_refuses_with_words(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(CONFIG, **change)  # type: ignore[arg-type]
