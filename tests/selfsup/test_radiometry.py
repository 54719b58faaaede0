"""What a view's amplitudes may become: each step alone, its size, and nothing else moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from crossearth_sar import InputError
from crossearth_sar.selfsup.radiometry import RadiometryConfig, multilooked, varied, with_contrast

NOTHING = RadiometryConfig(
    gain_probability=0, contrast_probability=0, speckle_probability=0, multilook_probability=0
)


def vary(image: torch.Tensor, seed: int = 0, **changes: Any) -> torch.Tensor:
    config = replace(NOTHING, **changes)
    return varied(image, config, torch.Generator().manual_seed(seed))


def test_without_any_step_the_image_is_as_it_was() -> None:
    image = torch.rand(2, 20, 30)
    assert torch.equal(vary(image), image)
    assert torch.equal(vary(image, multilook_probability=1.0, multilook=1), image)


def test_gain_is_one_factor_within_its_range() -> None:
    image = torch.rand(2, 20, 30) + 0.1
    gains = []
    for seed in range(200):
        ratio = vary(image, seed, gain_probability=1.0, gain_db=3.0) / image
        torch.testing.assert_close(ratio, ratio[:1, :1, :1].expand_as(ratio))
        gains.append(20 * float(ratio[0, 0, 0].log10()))
    assert -3 <= min(gains) < -2.8
    assert 2.8 < max(gains) <= 3


def test_contrast_stretches_dB_about_the_mean_and_leaves_dark_pixels() -> None:
    image = torch.rand(2, 20, 30) + 0.1
    image[0, 0, 0] = 0
    changed = with_contrast(image, 1.5)
    assert changed[0, 0, 0] == 0
    for before, after in zip(image, changed, strict=True):
        lit = before > 0
        old, new = 20 * before[lit].log10(), 20 * after[lit].log10()
        torch.testing.assert_close(new.mean(), old.mean(), atol=1e-4, rtol=0)
        torch.testing.assert_close(new - new.mean(), 1.5 * (old - old.mean()), atol=1e-4, rtol=0)


def test_speckle_keeps_the_mean_power_and_has_the_looks_asked_for() -> None:
    flat = torch.full((1, 400, 400), 3.0)
    variances = []
    for seed in range(30):
        power = vary(flat, seed, speckle_probability=1.0, fewest_looks=2.0, most_looks=16.0).square() / 9
        assert abs(float(power.mean()) - 1) < 0.01
        variances.append(float(power.var()))
    assert 1 / 17 < min(variances) < 0.1
    assert 0.35 < max(variances) < 0.52


def test_multilook_averages_power_and_moves_nothing() -> None:
    point = torch.zeros(1, 9, 9)
    point[0, 4, 3] = 3.0
    blurred = multilooked(point, 3)
    expected = torch.zeros(1, 9, 9)
    expected[0, 3:6, 2:5] = 1.0
    torch.testing.assert_close(blurred, expected)
    assert torch.equal(vary(point, multilook_probability=1.0, multilook=3), blurred)


def test_switching_one_step_off_leaves_the_others_as_they_were() -> None:
    image = torch.rand(1, 16, 16) + 0.5
    both = vary(image, 3, gain_probability=1.0, speckle_probability=1.0)
    alone = vary(image, 3, speckle_probability=1.0)
    ratio = both / alone
    torch.testing.assert_close(ratio, ratio[:1, :1, :1].expand_as(ratio))
    assert abs(float(ratio[0, 0, 0]) - 1) > 1e-3
    assert torch.equal(both, vary(image, 3, gain_probability=1.0, speckle_probability=1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gain_db": -1},
        {"contrast": 1.0},
        {"fewest_looks": 0.5},
        {"fewest_looks": 20},
        {"multilook": 4},
        {"speckle_probability": 1.5},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        RadiometryConfig(**wrong)  # type: ignore[arg-type]
