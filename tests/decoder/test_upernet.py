"""UperNet: transformers' head over a transformer's and a ResNet's maps, its norms, its second head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossearth_sar.decoder import DecoderConfig, PixelOutput, UperNetDecoder, make_decoder
from crossearth_sar.errors import InputError
from crossearth_sar.model import build_model

CLASSES = 3
CONFIG = DecoderConfig(kind="upernet", channels=32, class_weight=1.0, dice_weight=1.0)
SHAPES: dict[str, Any] = {  # widths and strides of the maps of a ViT with a stem, and of a ResNet
    "vit": ((8, 16, 16, 16, 16), (4, 8, 8, 8, 8)),
    "resnet": ((16, 24, 32, 40), (4, 8, 16, 32)),
}


def make(kind: str = "resnet", **changes: Any) -> UperNetDecoder:
    torch.manual_seed(0)
    widths, strides = SHAPES[kind]
    config = replace(CONFIG, **changes)
    decoder = make_decoder(config, in_channels=widths, strides=strides, num_classes=CLASSES)
    assert isinstance(decoder, UperNetDecoder)
    return decoder


def maps(kind: str = "resnet", batch: int = 2, size: tuple[int, int] = (64, 96)) -> list[Tensor]:
    widths, strides = SHAPES[kind]
    return [
        torch.randn(batch, wide, size[0] // s, size[1] // s, requires_grad=True)
        for wide, s in zip(widths, strides, strict=True)
    ]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_logits_at_stride_4_of_all_four_maps(kind: str, norm: str) -> None:
    decoder, given = make(kind, norm=norm, auxiliary_weight=0.4), maps(kind)
    output = decoder(given)
    assert output.logits.shape == (2, CLASSES, 16, 24)
    assert output.auxiliary.shape[:2] == (2, CLASSES)
    loss = decoder.loss(output, torch.randint(0, CLASSES, (2, 64, 96)))
    torch.stack(list(loss.values())).sum().backward()
    assert all(m.grad is not None and bool(m.grad.flatten(1).any(1).all()) for m in given[-4:])
    assert all(m.grad is None for m in given[:-4])
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


def test_it_is_transformers_head() -> None:
    """Theirs with our weights on the same maps: an order of maps or a resize of ours would show."""
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    theirs = UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=ResNetConfig(
                embedding_size=8, hidden_sizes=list(SHAPES["resnet"][0]), depths=[1, 1, 1, 1],
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
            hidden_size=32, num_labels=CLASSES, use_auxiliary_head=False,
        )
    ).eval()  # fmt: skip
    decoder = make(norm="batch").eval()
    decoder.head.load_state_dict(theirs.decode_head.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = theirs.backbone(image).feature_maps
        expected = theirs(image).logits
        found = F.interpolate(
            decoder(list(features)).logits, size=(64, 96), mode="bilinear", align_corners=False
        )
    torch.testing.assert_close(found, expected)


def test_the_second_head_costs_its_share_in_training_alone() -> None:
    decoder, mask = make(auxiliary_weight=0.4), torch.randint(0, CLASSES, (2, 64, 96))
    mask[:, :8] = 255
    output = decoder(maps())
    enlarged = F.interpolate(output.auxiliary, size=(64, 96), mode="bilinear", align_corners=False)
    terms = decoder.loss(output, mask)
    assert set(terms) == {"class", "dice", "auxiliary"}
    torch.testing.assert_close(
        terms["auxiliary"], 0.4 * F.cross_entropy(enlarged, mask, ignore_index=255), rtol=1e-5, atol=1e-6
    )
    assert set(decoder.loss(PixelOutput(output.logits), mask)) == {"class", "dice"}
    assert decoder.eval()(maps()).auxiliary is None
    assert make().auxiliary_head is None


def test_with_group_norms_an_image_alone_is_like_one_among_others() -> None:
    decoder, given = make().train(), maps()
    assert not [m for m in decoder.modules() if isinstance(m, nn.BatchNorm2d)]
    alone = decoder([m[:1] for m in given]).logits
    torch.testing.assert_close(decoder(given).logits[:1], alone, rtol=1e-4, atol=1e-5)


def test_one_image_with_batch_norms_is_refused_in_training() -> None:
    decoder, one = make(norm="batch"), maps(batch=1)
    with pytest.raises(InputError, match=r"(?s)there is one.*decoder.norm=group"):
        decoder.train()(one)
    assert decoder.eval()(one).logits.shape == (1, CLASSES, 16, 24)


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        replace(CONFIG, channels=40)
    with pytest.raises(InputError, match=r"decoder\.auxiliary_weight"):
        replace(CONFIG, auxiliary_weight=-0.1)


def test_a_tiny_model_with_it_learns_a_step_and_predicts() -> None:
    model = build_model(
        "crossearth_sar_tiny", CLASSES, changes={"decoder": {"kind": "upernet", "channels": 32}}
    )
    image, mask = torch.rand(2, 1, 64, 64) + 0.1, torch.randint(0, CLASSES, (2, 64, 64))
    model.loss(model(image), mask).total.backward()
    assert model.predict(image[:, :, :40, :50]).shape == (2, 40, 50)
