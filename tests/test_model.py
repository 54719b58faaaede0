"""The whole model: what the network sees, loss terms, slide inference, and errors with words.

B batch, C bands, H W pixels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from micro_model import CLASSES, MICRO, amplitude, label, micro
from torch import Tensor

from crossearth_sar import CrossEarthSAR, InputError, build_model, load_model, sar_descriptors, save_model
from crossearth_sar.decibels import db_statistics, to_db
from crossearth_sar.ground_scale import average_power
from crossearth_sar.model import ModelOutput
from crossearth_sar.network_input import network_input
from crossearth_sar.spacing import sliding_windows

# --- what the network sees -------------------------------------------------------------------------------


@pytest.mark.parametrize(("bands", "order"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (3, [0, 1, 2])])
def test_bands_are_repeated_cyclically(bands: int, order: list[int]) -> None:
    image = amplitude(2, bands, 16, 24)
    mean, std = torch.randn(bands), torch.rand(bands) + 20
    pixels = network_input(image, mean, std)
    assert pixels.shape == (2, 3, 16, 24)
    for channel, band in enumerate(order):
        expected = (20 * torch.log10(image[:, band]) - mean[band]) / std[band]
        torch.testing.assert_close(pixels[:, channel], expected)


def test_own_statistics_standardise_each_image_and_band() -> None:
    image = amplitude(2, 2, 64, 64) * torch.tensor([1.0, 100.0]).view(2, 1, 1, 1)
    pixels = network_input(image)
    torch.testing.assert_close(pixels.mean((2, 3)), torch.zeros(2, 3), rtol=0, atol=0.05)
    torch.testing.assert_close(pixels.std((2, 3)), torch.ones(2, 3), rtol=0, atol=0.05)
    torch.testing.assert_close(network_input(10 * image), pixels, rtol=1e-3, atol=1e-3)


def test_statistics_per_band_and_per_image() -> None:
    image, mean, std = amplitude(2, 2, 16, 16), torch.randn(2, 2), torch.rand(2, 2) + 20
    both = network_input(image, mean, std)
    for i in (0, 1):
        torch.testing.assert_close(both[i : i + 1], network_input(image[i : i + 1], mean[i], std[i]))


def test_input_is_cut_at_five_deviations_and_zeros_lie_at_the_floor() -> None:
    image = torch.tensor([0.0, 1e-20, 1.0, 1e20]).view(1, 1, 2, 2)
    pixels = network_input(image, torch.zeros(1), torch.ones(1))
    assert pixels[0, 0].flatten().tolist() == [-5, -5, 0, 5]
    wide = network_input(image, torch.zeros(1), torch.full((1,), 100.0))
    torch.testing.assert_close(wide[0, 0, 0], torch.tensor([-2.0, -2.0]))


def test_decibels() -> None:
    got = to_db(torch.tensor([10.0, 1.0, 0.1, 0.0]))
    torch.testing.assert_close(got, torch.tensor([20.0, 0.0, -20.0, -200.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_amplitude_with_zeros_has_finite_statistics(dtype: torch.dtype) -> None:
    image = amplitude(1, 1, 32, 32).clamp(min=1e-2)
    image[..., :8] = 0
    mean, std = db_statistics(image.to(dtype))
    expected = db_statistics(image.to(dtype).float())
    torch.testing.assert_close((mean, std), expected)
    assert bool(torch.isfinite(network_input(image.to(dtype))).all())


def test_statistics_do_not_count_zeros() -> None:
    image = amplitude(2, 2, 16, 16)
    image[0, 1, :, 5:] = 0
    mean, std = db_statistics(image)
    assert mean.shape == std.shape == (2, 2)
    lit = 20 * torch.log10(image[0, 1, :, :5])
    torch.testing.assert_close(mean[0, 1], lit.mean())
    torch.testing.assert_close(std[0, 1], lit.std(correction=0))


def test_statistics_of_a_black_and_of_a_constant_image_are_usable() -> None:
    for value in (0.0, 3.0):
        image = torch.full((1, 1, 8, 8), value)
        mean, std = db_statistics(image)
        assert bool(torch.isfinite(mean).all())
        assert float(std) == pytest.approx(1e-3)
        assert bool(torch.isfinite(network_input(image)).all())


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (torch.zeros(2), None, "db_mean alone"),
        (None, torch.ones(2), "db_std alone"),
        (torch.zeros(3), torch.ones(3), r"db_mean does not fit.*\(3,\)"),
        (torch.zeros(2), torch.ones(1), r"db_std does not fit.*\(1,\)"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(mean: Tensor | None, std: Tensor | None, words: str) -> None:
    model, image = micro(), amplitude(1, 2, 64, 64)
    for call in (network_input, model, model.predict):
        with pytest.raises(InputError, match=f"(?s){words}"):
            call(image, mean, std)


def test_routers_see_the_descriptors_of_the_first_band_before_normalisation() -> None:
    model, image = micro({"descriptors": ["roughness", "enl"]}), amplitude(2, 2, 64, 64)
    model.eval()
    seen: list[Tensor] = []
    model.backbone.blocks[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model(image)
    assert torch.equal(seen[0], sar_descriptors(image[:, :1])[:, [2, 1]])
    model.train()
    model(image)
    torch.testing.assert_close(seen[1].mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    assert int(model.standardizer.batches_seen) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_pixel_is_heard_in_its_image_and_leaves_no_trace(bad: float) -> None:
    model, image = micro(), amplitude(3, 1, 64, 64)
    model(image)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    broken = image.clone()
    broken[1, 0, 20, 30] = bad
    for training in (True, False):
        logits = model.train(training)(broken, torch.zeros(1), torch.ones(1)).decoder.mask_logits
        assert torch.isfinite(logits).flatten(1).all(1).tolist() == [True, False, True]
    model.train()(image[1:2] * bad)
    assert int(model.standardizer.batches_seen) == 2, "a batch without a sound image counts for nothing"
    after = model.state_dict()
    assert all(bool(torch.isfinite(after[key]).all()) for key in before)


def test_without_standardisation_and_without_physics() -> None:
    literal, blind = micro({"standardize": False}), micro({"descriptors": []})
    assert isinstance(literal.standardizer, torch.nn.Identity)
    assert isinstance(blind.standardizer, torch.nn.Identity)
    assert blind.backbone.blocks[0].mlp.router.weight.shape == (6, 32)
    for model in (literal, blind):
        assert bool(torch.isfinite(model(amplitude(1, 1, 64, 64)).decoder.mask_logits).all())


# --- loss ------------------------------------------------------------------------------------------------


def test_loss_is_segmentation_plus_the_balance_of_every_layer() -> None:
    model = micro({"balance_weight": 0.25})
    output = model(amplitude(2, 1, 64, 64))
    terms = model.loss(output, label())
    assert len(output.routing) == 4
    per_layer = [0.25 * 6 * (r.expert_fraction * r.expert_probability).sum() for r in output.routing]
    torch.testing.assert_close(terms.balance, torch.stack(per_layer).sum())
    torch.testing.assert_close(terms.segmentation, torch.stack(list(terms.parts.values())).sum())
    torch.testing.assert_close(terms.total, terms.segmentation + terms.balance)
    terms.balance.backward()
    for block in model.backbone.blocks:
        grad = block.mlp.router.weight.grad
        assert grad is not None
        assert bool(grad.any())


def test_dense_baseline_routes_nothing_and_pays_no_balance() -> None:
    model = micro(sparse=False)
    assert model.config.moe is None
    assert not any("router" in name or "experts" in name for name, _ in model.named_parameters())
    output = model(amplitude(2, 1, 64, 64))
    terms = model.loss(output, label())
    assert output.routing == ()
    assert terms.balance.item() == 0
    assert torch.equal(terms.total, terms.segmentation)


@pytest.mark.parametrize("sparse", [True, False])
def test_one_small_batch_can_be_learnt(sparse: bool) -> None:
    model, image, mask = micro(sparse=sparse), amplitude(2, 1, 64, 64), label()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = model.loss(model(image), mask).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_bfloat16_runs_forward_loss_and_predict() -> None:
    model = micro().to(torch.bfloat16)
    output = model(amplitude(2, 2, 64, 64))
    assert output.decoder.mask_logits.dtype == torch.bfloat16
    terms = model.loss(output, label())
    assert terms.total.dtype == torch.float32
    assert bool(torch.isfinite(terms.total))
    terms.total.backward()
    assert model.standardizer.mean.dtype == model.standardizer.variance.dtype == torch.float32
    assert model.predict(amplitude(1, 2, 80, 64)).shape == (1, 80, 64)


# --- slide inference -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (40, 90), (65, 64), (101, 77)])
def test_predict_gives_a_class_for_every_pixel(size: tuple[int, int]) -> None:
    classes = micro().predict(amplitude(2, 2, *size))
    assert classes.shape == (2, *size)
    assert classes.dtype == torch.int64
    assert 0 <= int(classes.min()) <= int(classes.max()) < CLASSES


def test_predict_on_exactly_one_crop_is_the_plain_forward() -> None:
    model, image = micro().eval(), amplitude(2, 1, 64, 64)
    scores = model.decoder.semantic_scores(model(image).decoder, (64, 64))
    got = model.predict(image)
    assert torch.equal(got, scores.argmax(1))
    assert got.unique().numel() > 1


@pytest.mark.parametrize("training", [True, False])
def test_predict_runs_in_eval_mode_and_puts_the_mode_back(training: bool) -> None:
    model = micro().train(training)
    modes: list[bool] = []
    model.predict(amplitude(1, 1, 64, 64), on_window=lambda _: modes.append(model.training))
    assert modes == [False]
    assert model.training is training
    assert int(model.standardizer.batches_seen) == 0

    def fail(_: ModelOutput) -> None:
        raise RuntimeError("from the caller")

    with pytest.raises(RuntimeError, match="from the caller"):
        model.predict(amplitude(1, 1, 64, 64), on_window=fail)
    assert model.training is training


def test_predict_leaves_a_frozen_part_in_its_mode() -> None:
    model = micro().train()
    model.backbone.eval()
    model.predict(amplitude(1, 1, 64, 64))
    assert model.training
    assert model.decoder.training
    assert not any(module.training for module in model.backbone.modules())


def test_predict_takes_arrays_and_lists() -> None:
    model, image = micro(), amplitude(1, 2, 64, 64)
    mean, std = [-3.0, 1.5], [6.0, 7.0]
    expected = model.predict(image, torch.tensor(mean), torch.tensor(std))
    for array in (image.numpy(), image.numpy().astype(">f4"), image.flip(-1).numpy()[..., ::-1]):
        assert torch.equal(model.predict(array, mean, std), expected)
    assert torch.equal(model.predict(image, np.array(mean), np.array(std)), expected)
    for unfit in ([[1.0, 2.0], [3.0]], "image.tif", np.array(["a"])):
        with pytest.raises(InputError, match="the image is no array of numbers"):
            model.predict(unfit)
    with pytest.raises(InputError, match=r"(?s)linear amplitude.*shape \(64, 64\)"):
        model.predict(image[0, 0].numpy())


def test_predict_moves_the_image_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second device: «meta» stands for the image's, and what is moved is moved here."""
    model, image, moved = micro(), amplitude(1, 1, 64, 64), []
    elsewhere = image.to("meta")
    monkeypatch.setattr("crossearth_sar.model.checked_amplitude", lambda *_: elsewhere)
    real = torch.Tensor.to

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if tensor is elsewhere:
            moved.append(args[0])
            return image
        return real(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    classes = model.predict(image)
    assert moved == [torch.device("cpu")]
    assert classes.device.type == "meta", "and the classes back to the image's"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float64])
def test_predict_reads_other_real_types(dtype: torch.dtype) -> None:
    model, counts = micro(), (20 * amplitude(1, 1, 61, 64)).round().clamp(max=255)
    assert torch.equal(model.predict(counts.to(dtype)), model.predict(counts))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.tensor([1.0, -0.5, -1.0, 1.0]).view(1, 1, 2, 2), "2 negative or non-finite.*10 .. .db / 20."),
        (
            torch.tensor([1.0, math.nan, 1.0, 1.0]).view(1, 1, 2, 2),
            "1 negative or non-finite.*fill_unmeasured",
        ),
        (torch.tensor([1.0, math.inf, 1.0, 1.0]).view(1, 1, 2, 2), "1 negative or non-finite"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.complex64), r"complex64.*abs\(\)"),
        (torch.zeros(1, 8, 8), r"shape \(1, 8, 8\).*image\[None\]"),
        (torch.zeros(8, 8), r"shape \(8, 8\)"),
        (torch.zeros(1, 4, 8, 8), "1 to 3 bands"),
        (torch.zeros(1, 0, 8, 8), "1 to 3 bands"),
        (torch.zeros(0, 1, 8, 8), "no empty axis"),
        (torch.zeros(1, 1, 8, 0), "no empty axis"),
    ],
)
def test_predict_refuses_with_words(image: Tensor, words: str) -> None:
    with pytest.raises(InputError, match=f"(?s)linear amplitude.*{words}"):
        micro().predict(image)


@pytest.mark.parametrize("bands", [0, 4])
def test_forward_refuses_bands_it_would_drop(bands: int) -> None:
    with pytest.raises(InputError, match=rf"(?s)1 to 3 bands.*{bands} bands.*image\[:, :3\]"):
        micro()(amplitude(1, bands, 64, 64))


def test_forward_refuses_part_of_a_patch() -> None:
    with pytest.raises(InputError, match=r"(?s)60 x 64.*multiples of 8.*predict"):
        micro()(amplitude(1, 1, 60, 64))


def scaled(metres: float) -> CrossEarthSAR:
    return build_model("crossearth_sar_tiny", CLASSES, changes={**MICRO, "pixel_m": metres}).eval()


@pytest.mark.parametrize("size", [(64, 64), (50, 63), (101, 77)])
def test_predict_at_the_ground_spacing_of_the_model(size: tuple[int, int]) -> None:
    """Every pixel repeated 2 x 2 at half the spacing is the same scene: scores lie between its own."""
    model, image = scaled(10.0), amplitude(2, 2, *size)
    windows: list[ModelOutput] = []
    expected = model.predict(image, pixel_m=10.0)
    scores = model.slide_scores(image, *db_statistics(image)).detach()
    assert torch.equal(scores.argmax(1), expected)
    between = F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)
    fine = image.repeat_interleave(2, -2).repeat_interleave(2, -1)
    found = model.predict(fine, pixel_m=5.0, on_window=windows.append)
    assert (found != between.argmax(1)).float().mean() < 1e-3, "other than by rounding"
    assert len(windows) == len(list(sliding_windows(*size, 64, 40)))
    assert expected.unique().numel() > 1
    assert torch.equal(model.predict(image), expected), "a spacing that is not given changes nothing"
    assert model.predict(image, pixel_m=27.0).shape == expected.shape
    coarse = image[..., : size[0] // 2 * 2 : 2, : size[1] // 2 * 2 : 2]
    repeated = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)
    scores = model.slide_scores(repeated, *db_statistics(repeated)).detach()
    back = F.avg_pool2d(scores, 2).argmax(1)
    assert (model.predict(coarse, pixel_m=20.0) != back).float().mean() < 1e-3


def test_statistics_not_given_are_those_of_the_averaged_image() -> None:
    model, image = scaled(40.0), amplitude(1, 1, 256, 256)
    small = average_power(image, (64, 64))
    given = model.predict(image, *db_statistics(small), pixel_m=10.0)
    assert torch.equal(model.predict(image, pixel_m=10.0), given)
    with pytest.raises(InputError, match=r"0\.1 m a pixel is not for a model that works at 40 m"):
        model.predict(image, pixel_m=0.1)
    with pytest.raises(InputError, match="pixel_m"):
        scaled(-1.0)


def test_the_ground_spacing_is_saved(tmp_path: Path) -> None:
    save_model(scaled(10.0), tmp_path)
    assert load_model(tmp_path).config.pixel_m == 10
