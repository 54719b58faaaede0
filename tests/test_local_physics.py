"""Models whose routers see scale-free descriptors, of the image or of each token's own patch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_model import CLASSES, MICRO, amplitude, label, micro
from torch import Tensor

from crossearth_sar import (
    CrossEarthSAR,
    InputError,
    build_model,
    load_model,
    sar_descriptors,
    save_model,
    scale_free_descriptor_map,
    scale_free_descriptors,
)
from crossearth_sar.moe import PhysicsGuidedMoE

LOCAL = {"local_physics": True}
PATCH = 8


def seen_by_routers(model: CrossEarthSAR, image: Tensor) -> Tensor:
    seen: list[Tensor] = []
    moe = model.backbone.blocks[-1].mlp
    hook = moe.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(image)
    hook.remove()
    return seen[0]


def test_sets_may_be_mixed_in_any_order_and_only_the_named_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = amplitude(2, 2, 64, 64)
    model = micro({"descriptors": ["looks", "roughness", "direction_entropy"]}).eval()
    paper, free = sar_descriptors(image[:, :1]), scale_free_descriptors(image[:, :1])
    expected = torch.stack([free[:, 1], paper[:, 2], free[:, 0]], dim=1)
    assert torch.equal(seen_by_routers(model, image), expected)
    unwanted = pytest.fail
    monkeypatch.setattr("crossearth_sar.descriptors.named.sar_descriptors", unwanted)
    assert seen_by_routers(micro({"descriptors": ["variation", "correlation"]}), image).shape == (2, 2)
    monkeypatch.undo()
    monkeypatch.setattr("crossearth_sar.descriptors.named.scale_free_descriptors", unwanted)
    assert seen_by_routers(micro(), image).shape == (2, 3)


def test_each_token_has_its_patch_and_cls_the_image() -> None:
    image, model = amplitude(2, 1, 64, 48), micro(LOCAL).eval()
    seen = seen_by_routers(model, image)
    assert seen.shape == (2, 1 + 8 * 6, 3 + 4)
    assert torch.equal(seen[..., :3], sar_descriptors(image)[:, None].expand(-1, 49, -1))
    torch.testing.assert_close(seen[:, 0, 3:], scale_free_descriptors(image), rtol=1e-6, atol=1e-6)
    local = scale_free_descriptor_map(image, PATCH)
    assert torch.equal(seen[:, 1 + 6 * 2 + 5, 3:], local[:, :, 2, 5])
    assert model.backbone.blocks[0].mlp.router.weight.shape == (6, 32 + 7)


def test_local_physics_alone() -> None:
    model = micro({**LOCAL, "descriptors": []})
    assert seen_by_routers(model, amplitude(2, 1, 64, 64)).shape == (2, 65, 4)
    assert isinstance(model.standardizer, torch.nn.Identity)


def test_both_are_standardised_by_statistics_of_their_own() -> None:
    model = micro(LOCAL).train()
    seen = seen_by_routers(model, amplitude(4, 1, 64, 64))
    torch.testing.assert_close(seen[:, 0, :3].mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(seen[..., 3:].mean((0, 1)), torch.zeros(4), rtol=0, atol=0.1)
    for standardizer in (model.standardizer, model.local_standardizer):
        assert int(standardizer.batches_seen) == 1
    raw = micro({**LOCAL, "standardize": False}).train()
    assert isinstance(raw.local_standardizer, torch.nn.Identity)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_pixel_is_heard_in_its_image_and_leaves_no_trace(bad: float) -> None:
    model, image = micro({**LOCAL, "descriptors": ["looks"]}), amplitude(3, 1, 64, 64)
    image[1, 0, 20, 30] = bad
    logits = model(image, torch.zeros(1), torch.ones(1)).decoder.mask_logits
    assert torch.isfinite(logits).flatten(1).all(1).tolist() == [True, False, True]
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_every_patch_size_learns_and_predicts(patch: int) -> None:
    side = 4 * patch
    changes: dict[str, Any] = {
        **MICRO, "vit": {**MICRO["vit"], "patch_size": patch, "image_size": side},
        "crop_size": side, "crop_stride": side // 2, "moe": LOCAL,
    }  # fmt: skip
    model = build_model("crossearth_sar_tiny", CLASSES, changes=changes)
    model.loss(model(amplitude(2, 1, side, side)), label(2, side)).total.backward()
    for block in model.backbone.blocks:
        grad = block.mlp.router.weight.grad
        assert grad is not None
        assert bool(grad[:, 32:].any(0).all()), "every column of physics is taught"
    assert model.predict(amplitude(1, 1, side + 9, 2 * side)).shape == (1, side + 9, 2 * side)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    model, image = micro(LOCAL).train(), amplitude(2, 1, 64, 64)
    model.standardizer.eval()
    model.local_standardizer.eval()
    found = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.backbone.activation_checkpointing = checkpointing
        model.features(image).tokens.square().mean().backward()
        found.append([p.grad.clone() for p in model.backbone.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_saved_loaded_and_taken_over_as_a_backbone(tmp_path: Path) -> None:
    model, image = micro(LOCAL), amplitude(2, 1, 64, 64)
    model(image)  # in training mode, so that the standardizers have something to save
    save_model(model, tmp_path)
    model.eval()
    loaded = load_model(tmp_path)
    assert loaded.config.moe is not None
    assert loaded.config.moe.local_physics
    assert torch.equal(loaded(image).decoder.mask_logits, model(image).decoder.mask_logits)
    other = build_model(
        "crossearth_sar_tiny", CLASSES + 1, changes={**MICRO, "moe": LOCAL}, weights=tmp_path
    ).eval()
    assert torch.equal(other.features(image).tokens, model.features(image).tokens)
    with pytest.raises(InputError, match="local_physics"):
        build_model("crossearth_sar_tiny", CLASSES, changes=MICRO, weights=tmp_path)


def test_exports_with_the_descriptors_inside() -> None:
    model, image = micro(LOCAL).eval(), amplitude(1, 1, 64, 64)

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> Tensor:
            return self.model.features(image).tokens

    with torch.no_grad():
        exported = torch.export.export(Features(), (image,))
        torch.testing.assert_close(exported.module()(image), model.features(image).tokens)


def test_small_patches_are_refused() -> None:
    changes = {**MICRO, "vit": {**MICRO["vit"], "patch_size": 2}, "moe": LOCAL}
    with pytest.raises(InputError, match=r"4 or more with moe\.local_physics"):
        build_model("crossearth_sar_tiny", CLASSES, changes=changes)


def test_bfloat16_routes_by_float32_descriptors() -> None:
    model = micro(LOCAL).bfloat16().eval()
    assert model.local_standardizer.mean.dtype == torch.float32
    assert torch.isfinite(model(amplitude(1, 1, 64, 64)).decoder.mask_logits).all()
    layer = model.backbone.blocks[0].mlp
    assert isinstance(layer, PhysicsGuidedMoE)
    assert (
        layer.router.probability(torch.randn(1, 3, 32).bfloat16(), torch.randn(1, 3, 7)).dtype
        == torch.float32
    )
