"""Pixels without a measurement: filled so that the descriptors stay those of the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.descriptors import sar_descriptors


def speckle(bands: int = 1, side: int = 256) -> np.ndarray:
    """Four looks on ground whose brightness drifts."""
    rng = np.random.default_rng(0)
    drift = np.linspace(0.08, 0.16, side, dtype=np.float32)
    looks = rng.gamma(4, 1 / 4, (bands, side, side)).astype(np.float32)
    return drift * np.sqrt(looks)


@pytest.mark.parametrize("missing", ["rows", "corner", "holes"])
def test_descriptors_stay_those_of_what_was_measured(missing: str) -> None:
    image, valid = speckle(), np.ones((256, 256), bool)
    if missing == "rows":
        valid[:13] = False
    elif missing == "corner":
        valid = np.add.outer(np.arange(256), np.arange(256)) > 180
    else:
        valid = np.random.default_rng(1).random((256, 256)) > 0.1
    expected = sar_descriptors(torch.from_numpy(image))[0]
    zeroed = np.where(valid, image, 0)
    entropy, looks, roughness = (
        sar_descriptors(torch.from_numpy(fill_unmeasured(zeroed, valid)))[0] - expected
    )
    assert abs(entropy) < 0.003
    assert abs(looks / expected[1]) < 0.15  # without its corner the ground is less varied
    assert abs(roughness / expected[2]) < 0.45
    with_zeros = sar_descriptors(torch.from_numpy(zeroed))[0]
    assert with_zeros[1] < 0.8 * expected[1], "the check can fail"


def test_measured_pixels_stay_and_bands_are_drawn_together() -> None:
    image = np.stack([np.arange(20.0), np.arange(20.0) + 100]).reshape(2, 4, 5).astype(np.float32)
    valid = np.ones((4, 5), bool)
    valid[1:3, 1:4] = False
    filled = fill_unmeasured(np.where(valid, image, 0), valid)
    assert np.array_equal(filled[:, valid], image[:, valid])
    assert (filled[1] - filled[0] == 100).all()
    assert set(filled[0][~valid]) <= set(image[0][valid])
    assert np.array_equal(filled, fill_unmeasured(np.where(valid, image, 0), valid)), "the same every time"


def test_nothing_missing_and_nothing_measured() -> None:
    image = speckle(side=8)
    for valid in (np.ones((8, 8), bool), np.zeros((8, 8), bool)):
        assert fill_unmeasured(image, valid) is image
