"""The whole model: what the network sees, loss terms, slide inference, files, and errors with words.

B batch, C bands, H W pixels.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossearth_sar import CrossEarthSAR, InputError, build_model, load_model, sar_descriptors, save_model
from crossearth_sar.model import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    ModelOutput,
    db_statistics,
    network_input,
    sliding_windows,
    to_db,
)

CLASSES = 3
MICRO: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64},
    "decoder": {
        "num_queries": 8,
        "num_heads": 2,
        "pixel_layers": 1,
        "pixel_ffn_dim": 48,
        "query_layers": 2,
        "query_ffn_dim": 48,
        "num_points": 64,
    },
    "crop_size": 64,
    "crop_stride": 40,
}


def micro(moe: dict[str, Any] | None = None, sparse: bool = True) -> CrossEarthSAR:
    changes = {**MICRO, "moe": moe} if moe else MICRO
    return build_model("crossearth_sar_tiny", CLASSES, changes=changes, sparse=sparse)


def amplitude(*shape: int) -> Tensor:
    """Speckle of one look on a mean that differs over the image, so that predictions do too."""
    ramp = torch.linspace(0.1, 3, shape[-1])
    return ramp * torch.randn(shape).square().add(torch.randn(shape).square()).sqrt()


def label(batch: int = 2, size: int = 64) -> Tensor:
    return torch.tensor([0] * (size // 2) + [1] * (size // 4) + [2] * (size // 4)).expand(batch, size, size)


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


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    crop=st.integers(1, 70),
    stride=st.integers(1, 70),
)
def test_windows_cover_every_pixel_and_lie_inside(height: int, width: int, crop: int, stride: int) -> None:
    crop, stride = max(crop, height // 12 + 1, width // 12 + 1), max(min(stride, crop), crop // 3, 1)
    covered = torch.zeros(height, width, dtype=torch.int64)
    windows = list(sliding_windows(height, width, crop, stride))
    for rows, columns in windows:
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        assert rows.stop - rows.start == min(crop, height)
        assert columns.stop - columns.start == min(crop, width)
        covered[rows, columns] += 1
    assert bool((covered > 0).all())
    assert len({(rows.start, columns.start) for rows, columns in windows}) == len(windows)
    assert (windows[-1][0].stop, windows[-1][1].stop) == (height, width)


def test_the_last_window_is_shifted_inward() -> None:
    rows = [(r.start, r.stop) for r, _ in sliding_windows(1000, 512, 512, 341)]
    assert rows == [(0, 512), (341, 853), (488, 1000)]
    assert [(r.start, c.start) for r, c in sliding_windows(9, 9, 6, 3)] == [(0, 0), (0, 3), (3, 0), (3, 3)]


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


def test_on_window_gets_every_window() -> None:
    model, outputs = micro(), []
    model.predict(amplitude(1, 1, 100, 150), on_window=outputs.append)
    assert len(outputs) == len(list(sliding_windows(100, 150, 64, 40))) == 2 * 4
    assert all(isinstance(output, ModelOutput) and len(output.routing) == 4 for output in outputs)


def test_overlapping_windows_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Window 1 votes 0.9 for class 0, window 2 votes 1.0 for class 1, window 3 votes 0.3 for class 2."""
    model = micro()
    votes = iter([(0, 0.9), (1, 1.0), (2, 0.3)])

    def scores(_: object, size: tuple[int, int]) -> Tensor:
        winner, vote = next(votes)
        part = torch.zeros(1, CLASSES, *size)
        part[:, winner] = vote
        return part

    monkeypatch.setattr(model.decoder, "semantic_scores", scores)
    averaged = model._slide(amplitude(1, 1, 64, 130), torch.zeros(1), torch.ones(1), None)
    # columns: window 1 is 0..63, window 2 is 40..103, window 3 is 66..129
    for column, expected in ((0, [0.9, 0, 0]), (50, [0.45, 0.5, 0]), (65, [0, 1.0, 0]), (80, [0, 0.5, 0.15])):
        torch.testing.assert_close(averaged[0, :, 0, column], torch.tensor(expected))
    torch.testing.assert_close(averaged[0, :, 63, 129], torch.tensor([0, 0, 0.3]))
    assert next(votes, None) is None


def test_windows_share_the_statistics_of_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image, seen = micro(), amplitude(1, 2, 64, 100), []
    forward = model.forward

    def spy(window: Tensor, mean: Tensor, std: Tensor) -> ModelOutput:
        seen.append((mean, std))
        return forward(window, mean, std)

    monkeypatch.setattr(model, "forward", spy)
    model.predict(image)
    given = (torch.zeros(2), torch.ones(2))
    model.predict(image, *given)
    assert len(seen) == 4
    for statistics in seen[:2]:
        torch.testing.assert_close(statistics, db_statistics(image))
    for statistics in seen[2:]:
        assert statistics == given


def test_padding_repeats_the_edge_and_is_cut_off_again() -> None:
    model, image = micro().eval(), amplitude(1, 1, 61, 64)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 3, -1)], dim=2)
    output = model(padded, *db_statistics(image))
    expected = model.decoder.semantic_scores(output.decoder, (64, 64)).argmax(1)[:, :61]
    assert torch.equal(model.predict(image), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float64])
def test_predict_reads_other_real_types(dtype: torch.dtype) -> None:
    model, counts = micro(), (20 * amplitude(1, 1, 61, 64)).round().clamp(max=255)
    assert torch.equal(model.predict(counts.to(dtype)), model.predict(counts))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.tensor([1.0, -0.5, -1.0, 1.0]).view(1, 1, 2, 2), "2 negative or non-finite.*10 .. .db / 20."),
        (torch.tensor([1.0, math.nan, 1.0, 1.0]).view(1, 1, 2, 2), "1 negative or non-finite.*nodata to 0"),
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


def test_forward_refuses_part_of_a_patch() -> None:
    with pytest.raises(InputError, match=r"(?s)60 x 64.*multiples of 8.*predict"):
        micro()(amplitude(1, 1, 60, 64))


# --- building and files ----------------------------------------------------------------------------------


def test_changes_are_applied_on_top_of_the_preset() -> None:
    model = build_model("crossearth_sar_tiny", 5, changes={"moe": {"top_k": 2, "num_experts": 3}})
    assert model.config.moe is not None
    assert (model.config.moe.top_k, model.config.moe.num_experts, model.config.num_classes) == (2, 3, 5)
    assert model.backbone.blocks[3].mlp.experts.w1.shape[0] == 3
    assert model.config.vit.dim == 128


def test_unknown_preset_and_unknown_key_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'crossearth_sar_tiny'"):
        build_model("crossearth_sar_tini", 3)
    with pytest.raises(InputError, match=r"moe\.topk.*did you mean 'top_k'"):
        build_model("crossearth_sar_tiny", 3, changes={"moe": {"topk": 2}})


@pytest.mark.parametrize("sparse", [True, False])
def test_save_and_load_give_equal_bits(tmp_path: Path, sparse: bool) -> None:
    model, image = micro({"gate": "straight_through"} if sparse else None, sparse), amplitude(2, 1, 64, 64)
    model(image)  # in training mode, so that the standardizer has something to save
    save_model(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder")
    assert not loaded.training
    assert loaded.config == model.config
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert torch.equal(model.eval()(image).decoder.mask_logits, loaded(image).decoder.mask_logits)
    if sparse:
        assert int(loaded.standardizer.batches_seen) == 1


def test_weights_given_replace_the_models_own(tmp_path: Path) -> None:
    model, other = micro(), micro()
    save_model(model, tmp_path, weights=other.state_dict())
    assert torch.equal(load_model(tmp_path).backbone.pos_embed, other.backbone.pos_embed)
    assert not torch.equal(model.backbone.pos_embed, other.backbone.pos_embed)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(micro(), tmp_path)
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "to do:" in message
    return message


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert f"{name} is missing" in refused(saved)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "no model in" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights_are_named(saved: Path, keep: int) -> None:
    weights = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(weights[:keep])
    assert f"{saved / WEIGHTS_FILE} cannot be read" in refused(saved)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_a_config_that_is_not_json_is_named(saved: Path, content: bytes) -> None:
    (saved / CONFIG_FILE).write_bytes(content)
    assert f"{saved / CONFIG_FILE} cannot be read" in refused(saved)


def edit_config(folder: Path, section: str, key: str, value: object) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config[section][key] = value
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def test_a_config_of_another_shape_is_named(saved: Path) -> None:
    edit_config(saved, "vit", "dim", 64)
    message = refused(saved)
    assert "do not fit each other" in message
    assert "backbone.cls_token" in message


@pytest.mark.parametrize(
    ("key", "value", "words"), [("dmi", 32, "did you mean 'dim'"), ("depth", 0, "vit.depth")]
)
def test_a_config_that_is_none_is_named(saved: Path, key: str, value: int, words: str) -> None:
    edit_config(saved, "vit", key, value)
    message = refused(saved)
    assert str(saved / CONFIG_FILE) in message
    assert words in message


def test_a_config_that_is_a_list_is_named(saved: Path) -> None:
    (saved / CONFIG_FILE).write_text("[]")
    assert f"{saved / CONFIG_FILE} describes no model" in refused(saved)
