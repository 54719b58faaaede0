"""The linear decoder: a classifier of standardised features by its definition, on one map and on four."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.decoder import DecoderConfig, LinearDecoder
from crossearth_sar.model import build_model

CHANNELS, STRIDES, CLASSES = (12, 16, 20, 24, 28), (4, 4, 8, 16, 32), 3


def make(maps: str) -> LinearDecoder:
    torch.manual_seed(0)
    config = DecoderConfig(kind="linear", maps=maps)  # type: ignore[arg-type]
    return LinearDecoder(config, in_channels=CHANNELS, num_classes=CLASSES)


def given() -> list[Tensor]:
    return [
        2 + 3 * torch.randn(2, wide, 64 // s, 96 // s, requires_grad=True)
        for wide, s in zip(CHANNELS, STRIDES, strict=True)
    ]


def standardised(features: Tensor) -> Tensor:
    mean, variance = (
        features.mean((0, 2, 3), keepdim=True),
        features.var((0, 2, 3), correction=0, keepdim=True),
    )
    return (features - mean) / (variance + 1e-5).sqrt()


def test_the_deepest_map_position_by_position() -> None:
    decoder, maps = make("deepest"), given()
    logits = decoder(maps).logits
    ((_, convolution),) = decoder.classifiers
    assert isinstance(convolution, nn.Conv2d)
    weight = convolution.weight[:, :, 0, 0]
    expected = torch.einsum("kd,bdhw->bkhw", weight, standardised(maps[-1])) + convolution.bias[:, None, None]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in decoder.parameters()) == 28 * CLASSES + CLASSES


def test_all_four_are_one_classifier_of_the_maps_laid_upon_each_other() -> None:
    decoder, maps = make("all"), given()
    laid = [
        F.interpolate(standardised(m), size=(16, 24), mode="bilinear", align_corners=False) for m in maps[-4:]
    ]
    weights = [classifier[1].weight for classifier in decoder.classifiers]
    bias = torch.stack([classifier[1].bias for classifier in decoder.classifiers]).sum(0)
    expected = F.conv2d(torch.cat(laid, 1), torch.cat(weights, 1), bias)
    torch.testing.assert_close(decoder(maps).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("maps", ["deepest", "all"])
def test_a_frozen_model_with_it_learns_and_predicts(maps: str) -> None:
    torch.manual_seed(0)
    changes = {"decoder": {"kind": "linear", "maps": maps}}
    model = build_model("crossearth_sar_tiny", CLASSES, changes=changes)
    image, mask = torch.rand(2, 1, 64, 64) + 0.1, torch.zeros(2, 64, 64, dtype=torch.int64)
    image[..., 32:] *= 4
    mask[..., 32:] = 1
    optimiser = torch.optim.Adam(model.decoder.parameters(), lr=0.05)
    features = [m.detach() for m in model.features(image).feature_maps]
    losses = []
    for _ in range(20):
        loss = model.loss(model(None, feature_maps=features), mask).segmentation
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert model.predict(image[..., :50, :40]).shape == (2, 50, 40)
