"""What is ours of Mask2Former: its wiring, the targets made of a label map, ignored pixels, inference.

B batch, H W pixels, h w mask resolution, Q queries, C classes.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from crossearth_sar.decoder import DecoderConfig, Mask2FormerDecoder, MaskOutput
from crossearth_sar.errors import InputError

CLASSES, IGNORED = 3, 255
CONFIG = DecoderConfig(
    num_queries=8,
    channels=32,
    num_heads=2,
    pixel_layers=1,
    pixel_ffn_dim=48,
    query_layers=3,
    query_ffn_dim=48,
    num_points=64,
)


def make(config: DecoderConfig = CONFIG) -> Mask2FormerDecoder:
    return Mask2FormerDecoder(config, in_channels=(16,) * 4, strides=(8,) * 4, num_classes=CLASSES)


def feature_maps(batch: int = 2, grid: tuple[int, int] = (8, 8)) -> list[Tensor]:
    return [torch.randn(batch, 16, *grid, requires_grad=True) for _ in range(4)]


def label(batch: int = 2, size: int = 64) -> Tensor:
    """Classes in blocks of 16 x 16 pixels, so that they are exact at stride 4."""
    blocks = torch.randint(0, CLASSES, (batch, size // 16, size // 16))
    blocks[:, 0, 0], blocks[:, 0, 1], blocks[:, 0, 2] = 0, 1, 2
    return blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)


def stripes(batch: int = 2) -> Tensor:
    """Classes 0, 1, 2 side by side: no corner where three meet, which stride 4 cannot draw exactly."""
    columns = torch.tensor([0] * 32 + [1] * 16 + [2] * 16)
    return columns.expand(batch, 64, 64).clone()


def random_output(batch: int = 2, layers: int = 2) -> MaskOutput:
    """Logits that are leaves, so that the loss's gradient at them can be looked at."""
    pairs = [
        (
            torch.randn(batch, 8, CLASSES + 1, requires_grad=True),
            torch.randn(batch, 8, 16, 16, requires_grad=True),
        )
        for _ in range(layers + 1)
    ]
    return MaskOutput(*pairs[-1], pairs[:-1])


def perfect_output(mask_BHW: Tensor) -> MaskOutput:
    """Query c says class c where the label is c; the other queries say «no object»."""
    at_stride_4 = mask_BHW[:, 2::4, 2::4]
    class_logits = torch.zeros(mask_BHW.shape[0], 8, CLASSES + 1)
    mask_logits = torch.full((mask_BHW.shape[0], 8, *at_stride_4.shape[1:]), -20.0)
    for query in range(8):
        class_logits[:, query, min(query, CLASSES)] = 20
        if query < CLASSES:
            mask_logits[:, query][at_stride_4 == query] = 20
    return MaskOutput(class_logits, mask_logits, [(class_logits, mask_logits)])


def seeded_loss(decoder: Mask2FormerDecoder, output: MaskOutput, mask_BHW: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return decoder.loss(output, mask_BHW)


def total(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def test_defaults_are_those_of_the_method() -> None:
    """METHOD sec. 3, written down a second time."""
    assert DecoderConfig() == DecoderConfig(
        num_queries=100,
        channels=256,
        num_heads=8,
        pixel_layers=6,
        pixel_ffn_dim=1024,
        query_layers=9,
        query_ffn_dim=2048,
        num_points=12544,
        oversample_ratio=3.0,
        importance_ratio=0.75,
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        no_object_weight=0.1,
    )
    decoder = Mask2FormerDecoder(DecoderConfig(), in_channels=(16,) * 4, strides=(16,) * 4, num_classes=7)
    attention = decoder.head.pixel_decoder.encoder.layers[0].self_attn
    assert (attention.n_heads, attention.n_points, attention.n_levels) == (8, 4, 3)
    assert len(decoder.head.pixel_decoder.encoder.layers) == 6
    assert len(decoder.head.transformer_module.decoder.layers) == 9
    matcher = decoder.criterion.matcher
    assert (matcher.cost_class, matcher.cost_mask, matcher.cost_dice) == (2, 5, 5)
    assert (matcher.num_points, decoder.criterion.num_points) == (12544, 12544)
    assert (decoder.criterion.oversample_ratio, decoder.criterion.importance_sample_ratio) == (3.0, 0.75)


@pytest.mark.parametrize("grid", [(8, 8), (8, 12), (5, 9)])
def test_shapes(grid: tuple[int, int]) -> None:
    out = make()(feature_maps(grid=grid))
    masks = (2, 8, 2 * grid[0], 2 * grid[1])
    assert out.class_logits.shape == (2, 8, CLASSES + 1)
    assert out.mask_logits.shape == masks
    assert [(tuple(c.shape), tuple(m.shape)) for c, m in out.earlier] == [((2, 8, CLASSES + 1), masks)] * 3


def test_predictions_come_in_order_and_differ() -> None:
    """With one layer less, the earlier predictions are the same and what was the last but one is the last."""
    decoder, features = make().eval(), feature_maps()
    shorter = make(replace(CONFIG, query_layers=2)).eval()
    shorter.load_state_dict(decoder.state_dict(), strict=False)
    long, short = decoder(features), shorter(features)
    torch.testing.assert_close((short.class_logits, short.mask_logits), long.earlier[2])
    torch.testing.assert_close(short.earlier, long.earlier[:2])
    assert not torch.allclose(long.class_logits, short.class_logits)


def test_gradient_reaches_every_parameter_and_every_feature_map() -> None:
    decoder, features = make(), feature_maps()
    loss = total(decoder.loss(decoder(features), label()))
    assert bool(torch.isfinite(loss))
    loss.backward()
    untouched = [
        name
        for name, parameter in decoder.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any()))
    ]
    assert untouched == []
    for features_i in features:
        assert features_i.grad is not None
        assert bool(torch.isfinite(features_i.grad).all())
        assert bool(features_i.grad.flatten(1).any(1).all())


def test_loss_is_transformers_loss_weighted_and_summed_over_all_predictions() -> None:
    output, mask = random_output(), label()
    mask[1][mask[1] == 2] = 1  # the second image lacks a class
    theirs = Mask2FormerLoss(
        Mask2FormerConfig(
            num_labels=CLASSES,
            no_object_weight=0.1,
            class_weight=2.0,
            mask_weight=5.0,
            dice_weight=5.0,
            train_num_points=64,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
        ),
        {},
    )
    torch.manual_seed(7)
    expected = theirs(
        output.mask_logits,
        output.class_logits,
        [
            torch.stack([mask[0] == c for c in (0, 1, 2)]).float(),
            torch.stack([mask[1] == c for c in (0, 1)]).float(),
        ],
        [torch.tensor([0, 1, 2]), torch.tensor([0, 1])],
        [{"masks_queries_logits": m, "class_queries_logits": c} for c, m in output.earlier],
    )
    got = seeded_loss(make(), output, mask)
    assert got.keys() == {"class", "mask", "dice"}
    for name, key, weight in (
        ("class", "loss_cross_entropy", 2),
        ("mask", "loss_mask", 5),
        ("dice", "loss_dice", 5),
    ):
        terms = [expected[key], expected[f"{key}_0"], expected[f"{key}_1"]]
        torch.testing.assert_close(got[name], weight * torch.stack(terms).sum())


def test_ignored_pixels_neither_cost_nor_teach() -> None:
    decoder, output, mask = make(), random_output(), label()
    mask[0, :32, 16:] = IGNORED
    mask[1, 48:] = IGNORED
    ignored = (mask == IGNORED)[:, None, ::4, ::4].expand(-1, 8, -1, -1)
    loss = total(seeded_loss(decoder, output, mask))
    loss.backward()
    for _, mask_logits in [*output.earlier, (output.class_logits, output.mask_logits)]:
        assert mask_logits.grad is not None
        assert not bool(mask_logits.grad[ignored].any())
        assert bool(mask_logits.grad[~ignored].any())
    with torch.no_grad():
        for _, mask_logits in [*output.earlier, (output.class_logits, output.mask_logits)]:
            mask_logits[ignored] = 50 * torch.randn_like(mask_logits[ignored])
    assert torch.equal(total(seeded_loss(decoder, output, mask)), loss)


def test_what_is_under_ignored_pixels_costs_nothing_when_the_rest_is_perfect() -> None:
    decoder, mask = make(), label()
    mask[:, :, 32:] = IGNORED
    output = perfect_output(mask)
    clean = total(seeded_loss(decoder, output, mask))
    assert float(clean) < 4, "only the edges between classes cost; a random guess costs 16"
    output.mask_logits[:, :, :, 8:] = 20  # every query claims the ignored half
    assert torch.equal(total(seeded_loss(decoder, output, mask)), clean)
    mask[:, :, 32:] = 0
    assert float(total(seeded_loss(decoder, output, mask))) > float(clean) + 1


@pytest.mark.parametrize("unlabelled", [[0], [1], [0, 1]])
def test_an_image_without_a_labelled_pixel(unlabelled: list[int]) -> None:
    decoder, output, mask = make(), random_output(), label()
    mask[unlabelled] = IGNORED
    parts = seeded_loss(decoder, output, mask)
    total(parts).backward()
    assert all(bool(torch.isfinite(part)) for part in parts.values())
    for grad in (output.mask_logits.grad, output.class_logits.grad):
        assert grad is not None
        for image in (0, 1):
            assert bool(grad[image].any()) is (image not in unlabelled), "not even «no object»"
    assert (parts["class"].item() > 0) is (len(unlabelled) < 2)
    assert (parts["mask"].item() > 0) is (len(unlabelled) < 2)


@pytest.mark.parametrize("rows", [16, 48])
def test_no_object_counts_by_the_labelled_share(rows: int) -> None:
    """Of the gradients at the class logits: matched queries pull by 1, the others by 0.1 times the share."""
    decoder, output, mask = make(), random_output(layers=0), label()
    mask[1] = IGNORED
    mask[1, :rows] = 0
    seeded_loss(decoder, output, mask)["class"].backward()
    grad = output.class_logits.grad
    assert grad is not None
    pull_BQ = grad[..., -1] / (output.class_logits.softmax(-1)[..., -1] - 1)  # of those asked for «no object»
    expected = [1.0, rows / 64]
    for image, share in enumerate(expected):
        pulls = sorted(pull_BQ[image].tolist())[-5:]  # matched ones pull otherwise
        assert pulls == pytest.approx([pulls[0]] * 5)
        assert pulls[0] / max(pull_BQ[0].tolist()) == pytest.approx(share)


def test_perfect_logits_cost_far_less_than_random_ones() -> None:
    decoder, mask = make(replace(CONFIG, num_points=1024)), stripes()
    perfect, random = (seeded_loss(decoder, o, mask) for o in (perfect_output(mask), random_output(layers=1)))
    assert float(perfect["class"]) < 1e-3
    for name in ("mask", "dice"):
        assert float(perfect[name]) < 0.2 * random[name].item()


def test_a_perfect_mask_of_the_wrong_class_costs() -> None:
    decoder, mask = make(), label()
    output = perfect_output(mask)
    shifted = output.class_logits[:, [1, 2, 0, 3, 4, 5, 6, 7]]
    wrong = MaskOutput(shifted, output.mask_logits, [(shifted, output.mask_logits)])
    assert float(total(seeded_loss(decoder, wrong, mask))) > 10


def test_semantic_scores_give_back_the_label() -> None:
    mask = stripes()
    scores = make().semantic_scores(perfect_output(mask), (64, 64))
    assert scores.shape == (2, CLASSES, 64, 64)
    assert torch.equal(scores.argmax(1), mask)


def test_semantic_scores_are_class_times_mask_probability_summed_over_queries() -> None:
    output = random_output()
    expected = torch.zeros(2, CLASSES, 24, 40)
    masks = F.interpolate(output.mask_logits, size=(24, 40), mode="bilinear", align_corners=False)
    for query in range(8):
        exponents = output.class_logits[:, query].exp()
        share = exponents[:, :CLASSES] / exponents.sum(-1, keepdim=True)
        expected = expected + share[:, :, None, None] * torch.sigmoid(masks[:, query])[:, None]
    torch.testing.assert_close(make().semantic_scores(output, (24, 40)), expected)


def test_in_bfloat16_the_loss_stays_in_single_precision() -> None:
    decoder, mask = make().to(torch.bfloat16), label()
    output = decoder([features.bfloat16() for features in feature_maps()])
    parts = seeded_loss(decoder, output, mask)
    assert {part.dtype for part in parts.values()} == {torch.float32}
    total(parts).backward()
    assert decoder.criterion.empty_weight.dtype == torch.float32
    assert decoder.criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 0.1], abs=1e-7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 48}, "a multiple of 32 and of num_heads"),
        ({"num_heads": 5}, "a multiple of 32 and of num_heads = 5"),
        ({"num_heads": 0}, "decoder.num_heads"),
        ({"num_queries": 0}, "decoder.num_queries"),
        ({"query_layers": 0}, "decoder.query_layers"),
    ],
)
def test_config_refuses_with_words(change: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_no_classes_are_refused() -> None:
    with pytest.raises(InputError, match="num_classes"):
        Mask2FormerDecoder(CONFIG, in_channels=(16,) * 4, strides=(8,) * 4, num_classes=0)
