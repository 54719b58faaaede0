"""The feature pyramid: sizes, losses by their definition, ignored pixels, parts of a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.decoder import DecoderConfig, FPNDecoder, PixelOutput
from crossearth_sar.decoder.fpn import fpn_widths
from crossearth_sar.errors import InputError
from crossearth_sar.model import build_model

CONFIG = DecoderConfig(kind="fpn", channels=32, class_weight=1.0, dice_weight=1.0)
STRIDES, CHANNELS = (2, 4, 8, 8, 8, 8), (8, 12, 16, 16, 16, 16)


def make() -> FPNDecoder:
    torch.manual_seed(0)
    return FPNDecoder(CONFIG, in_channels=CHANNELS, strides=STRIDES, num_classes=3)


def maps(height: int = 32, width: int = 48) -> list[Tensor]:
    return [
        torch.randn(2, wide, height // stride, width // stride)
        for wide, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


def test_logits_lie_at_the_stride_of_the_stem_and_every_map_is_read() -> None:
    decoder, given = make(), maps()
    for features in given:
        features.requires_grad_()
    output = decoder(given)
    assert output.logits.shape == (2, 3, 16, 24)
    output.logits.square().mean().backward()
    assert all(features.grad is not None and bool(features.grad.any()) for features in given)
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize(
    ("strides", "widths"), [((16,) * 4, [64, 64, 32]), ((8,) * 4, [64, 64]), (STRIDES, [64, 64, 32])]
)
def test_widths_from_the_coarsest_map_to_the_finest(strides: tuple[int, ...], widths: list[int]) -> None:
    assert fpn_widths(DecoderConfig(kind="fpn", channels=64), strides) == widths


def test_without_a_stem_logits_lie_at_stride_4() -> None:
    decoder = FPNDecoder(CONFIG, in_channels=(16,) * 4, strides=(16,) * 4, num_classes=3)
    assert decoder([torch.randn(1, 16, 4, 4)] * 4).logits.shape == (1, 3, 16, 16)


def test_losses_are_cross_entropy_and_dice_of_the_classes_there() -> None:
    torch.manual_seed(1)
    mask, logits = torch.randint(0, 2, (2, 6, 6)), torch.randn(2, 3, 6, 6)
    mask[0, 0], mask[1] = 255, 1  # the second image has one class
    loss = make().loss(PixelOutput(logits), mask)
    torch.testing.assert_close(loss["class"], F.cross_entropy(logits, mask, ignore_index=255))
    dice = []
    for probability, labels in zip(logits.softmax(1), mask, strict=True):
        known = labels != 255
        for index in labels[known].unique():
            here, there = probability[index][known], (labels[known] == index).float()
            dice.append(1 - (2 * (here * there).sum() + 1) / (here.sum() + there.sum() + 1))
    torch.testing.assert_close(loss["dice"], torch.stack(dice).mean())


def test_ignored_pixels_neither_cost_nor_teach() -> None:
    mask = torch.randint(0, 3, (1, 8, 8))
    mask[:, :4] = 255
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    sum(make().loss(PixelOutput(logits), mask).values()).backward()
    assert logits.grad is not None
    assert not bool(logits.grad[:, :, :4].any())
    assert bool(logits.grad[:, :, 4:].any())


def test_a_batch_without_labels_costs_nothing() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = make().loss(PixelOutput(logits), torch.full((1, 4, 4), 255))
    assert [float(value) for value in loss.values()] == [0.0, 0.0]
    sum(loss.values()).backward()
    assert logits.grad is not None
    assert not bool(logits.grad.any())


def test_scores_are_probabilities_at_the_size_asked_for() -> None:
    scores = make().semantic_scores(make()(maps()), (32, 48))
    assert scores.shape == (2, 3, 32, 48)
    torch.testing.assert_close(scores.sum(1), torch.ones(2, 32, 48))


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        DecoderConfig(kind="fpn", channels=40)


def test_a_model_with_stem_and_pyramid_learns_a_step_and_predicts() -> None:
    changes = {"vit": {"stem": (8, 12)}, "decoder": {"kind": "fpn", "channels": 32}}
    model = build_model("crossearth_sar_tiny", 3, changes=changes)
    image, mask = torch.rand(2, 1, 128, 128) + 0.1, torch.randint(0, 3, (2, 128, 128))
    output = model(image)
    assert output.decoder.logits.shape == (2, 3, 64, 64)
    terms = model.loss(output, mask)
    assert set(terms.parts) == {"class", "dice"}
    terms.total.backward()
    unused = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert unused <= {"backbone.norm.weight", "backbone.norm.bias"}
    assert model.predict(image[:, :, :70, :50]).shape == (2, 70, 50)
