"""Crops stay aligned with their labels, keep to the class share, and follow the seed; speckle is speckle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.data.transforms import (
    AugmentConfig,
    TrainTransform,
    center_crop_or_pad,
    largest_class_share,
    speckle_amplitude,
)
from crossearth_sar.data.working_scale import at_working_scale, described_sample
from crossearth_sar.descriptors import sar_descriptors
from crossearth_sar.errors import InputError
from crossearth_sar.ground_scale import average_power

GEOMETRY = AugmentConfig(crop_size=48, gain_db=0.0, max_class_share=1.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(height: int, width: int) -> Sample:
    """Band 0 is the row + 1, band 1 the column + 1; the mask is a checkerboard that names both in turn."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns]).float() + 1
    mask = torch.where((rows // 4 + columns // 4) % 2 == 0, rows // 4, columns // 4)
    return Sample(image=image, mask=mask, name="coordinates")


@pytest.mark.parametrize("seed", range(12))
def test_crops_and_flips_move_image_and_label_alike(seed: int) -> None:
    sample = coordinates(80, 100)
    out = TrainTransform(replace(GEOMETRY, scale_min=1.0, scale_max=1.0))(sample, seeded(seed))
    assert out["image"].shape == (2, 48, 48)
    assert out["mask"].dtype == torch.int64
    assert out["name"] == "coordinates"
    rows, columns = (out["image"] - 1).long()
    assert torch.equal(out["mask"], sample["mask"][rows, columns])


@pytest.mark.parametrize("seed", range(12))
def test_resized_labels_stay_within_a_pixel_of_the_image(seed: int) -> None:
    sample = coordinates(120, 150)
    out = TrainTransform(GEOMETRY)(sample, seeded(seed))
    inside = out["mask"] != IGNORE_INDEX
    assert torch.equal(inside, inside.any(1)[:, None] & inside.any(0)), "what is padded lies outside"
    assert (out["image"] > 0).all()
    rows, columns = (out["image"] - 1).round().long()
    near = torch.zeros_like(inside)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = (rows + dy).clamp(0, 119), (columns + dx).clamp(0, 149)
            near |= out["mask"] == sample["mask"][y, x]
    assert near[inside].all()
    assert inside.any()


def test_crops_reach_every_row_and_column() -> None:
    """The last ones too, where a start off by one would leave a strip that nothing is learnt from."""
    transform = TrainTransform(replace(GEOMETRY, scale_min=1.0, scale_max=1.0))
    seen = torch.cat([transform(coordinates(50, 49), seeded(i))["image"].flatten(1) for i in range(60)], 1)
    assert seen[0].unique().tolist() == list(range(1, 51))
    assert seen[1].unique().tolist() == list(range(1, 50))
    crops = [transform(coordinates(50, 49), seeded(i))["image"][0] for i in range(60)]
    assert {float(crop.max()) for crop in crops} == {48.0, 49.0, 50.0}, "each start is drawn"


def test_both_flips_happen_about_half_the_time() -> None:
    sample = coordinates(48, 48)
    transform = TrainTransform(replace(GEOMETRY, scale_min=1.0, scale_max=1.0))
    images = [transform(sample, seeded(seed))["image"] for seed in range(200)]
    for band in (0, 1):
        flipped = sum(int(image[band, 0, 0] > image[band, -1, -1]) for image in images)
        assert 70 < flipped < 130


def test_the_same_seed_gives_the_same_sample_and_leaves_the_input_alone() -> None:
    sample = coordinates(90, 70)
    before = sample["image"].clone(), sample["mask"].clone()
    transform = TrainTransform(AugmentConfig(crop_size=48, speckle_looks=4.0, speckle_probability=1.0))
    torch.manual_seed(1)
    first = transform(sample, seeded(5))
    torch.manual_seed(2)
    second = transform(sample, seeded(5))
    other = transform(sample, seeded(6))
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["mask"], second["mask"])
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(sample["image"], before[0])
    assert torch.equal(sample["mask"], before[1])


def test_switching_off_a_step_leaves_the_others_as_they_were() -> None:
    sample, full = coordinates(90, 70), AugmentConfig(crop_size=48, gain_db=6.0, speckle_looks=2.0)
    geometry = TrainTransform(replace(full, gain_db=0.0, speckle_looks=None))
    for seed in range(5):
        out = TrainTransform(full)(sample, seeded(seed))
        assert torch.equal(out["mask"], geometry(sample, seeded(seed))["mask"])


def test_no_class_takes_more_than_its_share_where_that_can_be_had() -> None:
    mask = torch.zeros(200, 200, dtype=torch.long)
    mask[:, 120:] = 1
    mask[:20] = IGNORE_INDEX
    sample = Sample(image=torch.ones(1, 200, 200), mask=mask, name="halves")
    config = AugmentConfig(crop_size=64, crop_tries=60, scale_min=0.7, scale_max=1.4)
    limited = [largest_class_share(TrainTransform(config)(sample, seeded(s))["mask"]) for s in range(40)]
    free = replace(config, max_class_share=1.0)
    unlimited = [largest_class_share(TrainTransform(free)(sample, seeded(s))["mask"]) for s in range(40)]
    assert max(limited) <= 0.75
    assert sum(share > 0.75 for share in unlimited) > 10


def test_where_no_crop_will_do_the_nearest_is_taken() -> None:
    mask = torch.full((100, 100), 3)
    mask[:, :8] = IGNORE_INDEX
    sample = Sample(image=torch.ones(1, 100, 100), mask=mask, name="one class")
    out = TrainTransform(AugmentConfig(crop_size=32))(sample, seeded(0))
    assert largest_class_share(out["mask"]) == 1.0
    unlabelled = Sample(image=torch.ones(1, 100, 100), mask=torch.full((100, 100), IGNORE_INDEX), name="none")
    assert (TrainTransform(AugmentConfig(crop_size=32))(unlabelled, seeded(0))["mask"] == IGNORE_INDEX).all()


def test_share_ignores_the_ignored() -> None:
    mask = torch.tensor([[0, 0, 0, 1], [IGNORE_INDEX] * 4])
    assert largest_class_share(mask) == 0.75
    assert largest_class_share(torch.full((2, 2), IGNORE_INDEX)) == math.inf


def test_an_image_smaller_than_the_crop_is_padded() -> None:
    sample = coordinates(20, 30)
    still = replace(GEOMETRY, scale_min=1.0, scale_max=1.0, flip_probability=0.0)
    out = TrainTransform(still)(sample, seeded(0))
    assert torch.equal(out["image"][:, :20, :30], sample["image"])
    assert torch.equal(out["mask"][:20, :30], sample["mask"])
    assert torch.equal(out["image"][:, 20:40, :30], sample["image"].flip(1)), "mirrored"
    assert torch.equal(out["image"][:, 40:, :30], sample["image"][:, :8]), "and back"
    assert torch.equal(out["image"][:, :, 30:], out["image"][:, :, 12:30].flip(2))
    assert (out["mask"][20:] == IGNORE_INDEX).all()
    assert (out["mask"][:, 30:] == IGNORE_INDEX).all()
    half = TrainTransform(replace(still, scale_min=0.5, scale_max=0.5))(sample, seeded(0))
    assert int((half["mask"] != IGNORE_INDEX).sum()) == 10 * 15


def test_padding_leaves_the_descriptors_what_they_were() -> None:
    speckle = 0.1 * speckle_amplitude((1, 300, 280), 4.0, seeded(1)) + 0.02
    sample = Sample(image=speckle, mask=torch.zeros(300, 280, dtype=torch.long), name="speckle")
    still = replace(GEOMETRY, crop_size=512, scale_min=1.0, scale_max=1.0)
    expected = sar_descriptors(speckle)
    for padded in (TrainTransform(still)(sample, seeded(0)), center_crop_or_pad(sample, 512)):
        assert (padded["mask"] == IGNORE_INDEX).any()
        entropy, looks, roughness = sar_descriptors(padded["image"])[0] / expected[0]
        assert float(entropy) == pytest.approx(1, abs=0.005)
        assert float(looks) == pytest.approx(1, abs=0.03)
        assert float(roughness) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (5, 200), (48, 48)])
def test_odd_shapes_come_out_square(shape: tuple[int, int]) -> None:
    sample = Sample(image=torch.rand(2, *shape), mask=torch.zeros(shape, dtype=torch.long), name="odd")
    for seed in range(6):
        out = TrainTransform(GEOMETRY)(sample, seeded(seed))
        assert out["image"].shape == (2, 48, 48)
        assert out["mask"].shape == (48, 48)
        assert torch.isfinite(out["image"]).all()
        assert out["image"].min() >= 0


def test_gain_is_one_factor_within_its_decibels() -> None:
    sample = Sample(image=torch.rand(2, 48, 48) + 0.1, mask=torch.zeros(48, 48, dtype=torch.long), name="a")
    still = AugmentConfig(crop_size=48, scale_min=1.0, scale_max=1.0, flip_probability=0.0, gain_db=3.0)
    gains = []
    for seed in range(50):
        ratio = TrainTransform(still)(sample, seeded(seed))["image"] / sample["image"]
        assert ratio.max() - ratio.min() < 1e-5
        gains.append(20 * math.log10(float(ratio.mean())))
    assert -3.001 < min(gains) < -2
    assert 2 < max(gains) < 3.001


@pytest.mark.parametrize("looks", [1.0, 2.0, 4.0, 16.0])
def test_speckle_has_the_moments_of_a_gamma(looks: float) -> None:
    intensity = speckle_amplitude((1, 700, 700), looks, seeded(0)).double().square()
    gamma = torch.distributions.Gamma(looks, looks)
    assert intensity.min() >= 0
    assert float(intensity.mean()) == pytest.approx(1.0, rel=5e-3)
    assert float(intensity.var()) == pytest.approx(1 / looks, rel=2e-2)
    median = float(intensity.median())
    assert float(gamma.cdf(torch.tensor(median))) == pytest.approx(0.5, abs=0.01)


def spaced(metres: float | None, height: int = 240, width: int = 240) -> Sample:
    """Blocks of 4 x 4 equal pixels, whose label is their column's parity."""
    blocks = torch.rand(1, height // 4, width // 4, generator=seeded(1)) + 0.1
    image = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    mask = (torch.arange(width) // 4 % 2).expand(height, width)
    sample = Sample(image=image, mask=mask, name="blocks")
    return sample if metres is None else {**sample, "pixel_m": metres}


def test_crops_show_the_ground_at_the_spacing_of_the_model() -> None:
    still = AugmentConfig(crop_size=60, scale_min=1.0, scale_max=1.0, flip_probability=0.0, gain_db=0.0)
    fine, image = spaced(2.5), spaced(2.5)["image"][:, ::4, ::4]
    out = TrainTransform(still, pixel_m=10.0)(fine, seeded(0))
    assert torch.equal(out["image"], image), "240 pixels of 2.5 m are 60 of 10 m"
    assert torch.equal(out["mask"], fine["mask"][::4, ::4])
    assert set(out) == {"image", "mask", "name"}
    coarse: Sample = {**fine, "image": image, "mask": out["mask"], "pixel_m": 20.0}
    doubled = TrainTransform(replace(still, crop_size=120), pixel_m=10.0)(coarse, seeded(0))
    assert torch.equal(doubled["image"], image.repeat_interleave(2, 1).repeat_interleave(2, 2))
    halved = TrainTransform(replace(still, crop_size=30, scale_min=0.5, scale_max=0.5), pixel_m=10.0)
    assert bool((halved(fine, seeded(0))["mask"] != IGNORE_INDEX).all()), (
        "factors are about the model's spacing"
    )
    for transform, sample in ((TrainTransform(still), fine), (TrainTransform(still, 10.0), spaced(None))):
        assert torch.equal(
            transform(sample, seeded(3))["image"], TrainTransform(still)(fine, seeded(3))["image"]
        )


def test_without_augmentation_too() -> None:
    out = at_working_scale(spaced(2.5), 10.0)
    assert out["image"].shape == (1, 60, 60)
    assert set(out) == {"image", "mask", "name"}
    assert torch.equal(at_working_scale(spaced(2.5), None)["image"], spaced(2.5)["image"])
    with pytest.raises(InputError, match=r"0\.01 m a pixel is not for a model that works at 10 m"):
        TrainTransform(GEOMETRY, pixel_m=10.0)(spaced(0.01), seeded(0))


def test_what_was_not_measured_is_filled_after_averaging() -> None:
    """The filling has the spread of the averaged image; no measured bin has filling in its mean."""
    amplitude = speckle_amplitude((1, 256, 256), 1.0, seeded(2)).numpy()
    valid = np.ones((256, 256), bool)
    valid[:, :130] = False
    mask = np.zeros((256, 256), np.uint8)
    sample = described_sample(amplitude, mask, valid, "half", 1.0)
    out = at_working_scale(sample, 4.0)["image"][0]
    expected = average_power(torch.from_numpy(amplitude), (64, 64), torch.from_numpy(valid))[0]
    assert torch.equal(out[:, 32:], expected[:, 32:]), "the bin at the edge is of two columns of its four"
    assert float(out[:, :32].std()) == pytest.approx(float(expected[:, 33:].std()), rel=0.1)
    everywhere = described_sample(amplitude, mask, np.ones_like(valid), "whole", 1.0)
    assert "valid" not in everywhere


def test_centre_crop_and_pad() -> None:
    sample = coordinates(20, 61)
    out = center_crop_or_pad(sample, 40)
    assert out["image"].shape == (2, 40, 40)
    inside = out["mask"] != IGNORE_INDEX
    assert inside[10:30].all()
    assert not inside[:10].any()
    assert not inside[30:].any()
    rows, columns = (out["image"][:, 10:30] - 1).long()
    assert torch.equal(out["mask"][10:30], sample["mask"][rows, columns])
    assert columns.min() in (10, 11)
    assert torch.equal(out["image"][:, :10], out["image"][:, 10:20].flip(1)), "mirrored above"
    assert torch.equal(out["image"][:, 30:], out["image"][:, 20:30].flip(1)), "and below"
    assert torch.equal(center_crop_or_pad(out, 40)["image"], out["image"])


def test_other_keys_pass_through() -> None:
    sample = Sample(
        image=torch.rand(1, 9, 9),
        mask=torch.zeros(9, 9, dtype=torch.long),
        name="a",
        db_mean=torch.tensor([-11.0]),
    )
    assert TrainTransform(GEOMETRY)(sample, seeded(0))["db_mean"].item() == -11


@pytest.mark.parametrize(
    "change",
    [
        {"crop_size": 0},
        {"scale_min": 0.0},
        {"scale_min": 3.0},
        {"max_class_share": 0.0},
        {"crop_tries": 0},
        {"flip_probability": 1.5},
        {"gain_db": -1.0},
        {"speckle_looks": 0.5},
        {"speckle_probability": -0.1},
    ],
)
def test_settings_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        AugmentConfig(**change)  # type: ignore[arg-type]
