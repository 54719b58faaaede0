"""Numbers that nothing marks as fill are told of once, with the setting; measurements are not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from crossearth_sar.data.files.doubts import FillDoubts, unmarked_fill
from crossearth_sar.data.files.readers import RawImage

RNG = np.random.default_rng(0)
INTENSITY = RNG.gamma(4, 0.01, (200, 300))
DECIBELS = (10 * np.log10(INTENSITY)).astype(np.float32)
DN = np.round(np.sqrt(INTENSITY) * 400).astype(np.uint16)
BORDER = np.zeros((200, 300), bool)
BORDER[:, :60] = True


def raw(band: np.ndarray, valid: np.ndarray | None = None) -> RawImage:
    return RawImage(band[None], np.ones(band.shape, bool) if valid is None else valid, Path("a.tif"))


@pytest.mark.parametrize("fill", [0, -99, -9999, -3.4028234663852886e38])
def test_one_exact_number_among_floats(fill: float) -> None:
    holes = RNG.random(DECIBELS.shape) < 0.02
    found = unmarked_fill(raw(np.where(holes, np.float32(fill), DECIBELS)))
    assert found is not None
    assert np.float32(found.value) == np.float32(fill)
    assert found.share == pytest.approx(holes.mean(), abs=1e-9)
    few = RNG.random(DECIBELS.shape) < 0.005
    assert unmarked_fill(raw(np.where(few, np.float32(fill), DECIBELS))) is None
    assert unmarked_fill(raw(np.where(holes, np.float32(fill), DECIBELS), ~holes)) is None, "it is marked"


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "complex64"])
def test_a_margin_of_zeros(dtype: str) -> None:
    band = np.where(BORDER, 0, np.minimum(DN, 255)).astype(dtype)
    found = unmarked_fill(raw(band))
    assert found is not None
    assert (found.value, found.share) == (0, pytest.approx(0.2))
    slanted = np.add.outer(np.arange(200), np.arange(300)) < 120
    assert unmarked_fill(raw(np.where(slanted, 0, DN).astype(dtype))) is not None


def test_measurements_are_not_doubted() -> None:
    dark = (RNG.random((200, 300)) < 0.4) * RNG.integers(0, 40, (200, 300))  # zeros of speckle, at the border
    steps = np.round(DECIBELS * 2) / 2  # numbers in steps all repeat
    for band in (DECIBELS, DN, dark.astype(np.uint8), steps.astype(np.float32), DN.astype(np.float32)):
        assert unmarked_fill(raw(band)) is None


def test_large_images_are_looked_at_in_part() -> None:
    asked: list[slice] = []

    class Large(RawImage):
        def rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
            asked.append(rows)
            return super().rows(rows)

    band = np.tile(np.where(BORDER, 0, DN), (40, 2))
    found = unmarked_fill(Large(band[None], np.ones(band.shape, bool), Path("a.tif")))
    assert found is not None
    assert sum(rows.stop - rows.start for rows in asked) < 0.3 * len(band)


def test_each_number_is_told_of_once_with_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    doubts = FillDoubts("nodata: {} of the folder")
    with caplog.at_level(logging.WARNING):
        for fill in (-99, -99, 0):
            doubts.look(raw(np.where(BORDER, np.float32(fill), DECIBELS)))
    words = [record.getMessage() for record in caplog.records]
    assert len(words) == 2
    assert "a.tif: 20 % of the pixels are exactly -99" in words[0]
    assert "set nodata: -99 of the folder" in words[0]
