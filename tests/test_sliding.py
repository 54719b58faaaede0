"""Windows over images larger than the crop: where they lie, what they are given, how they are joined."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_model import CLASSES, MICRO, amplitude, micro
from torch import Tensor

from crossearth_sar import InputError, build_model
from crossearth_sar.decibels import db_statistics
from crossearth_sar.model import ModelOutput
from crossearth_sar.spacing import sliding_windows

# --- what the network sees -------------------------------------------------------------------------------


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


def test_on_window_gets_every_window() -> None:
    model, outputs = micro(), []
    model.predict(amplitude(1, 1, 100, 150), on_window=outputs.append)
    assert len(outputs) == len(list(sliding_windows(100, 150, 64, 40))) == 2 * 4
    assert all(isinstance(output, ModelOutput) and len(output.routing) == 4 for output in outputs)


@pytest.mark.parametrize("taper", [False, True])
def test_overlapping_windows_are_averaged(taper: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Window 1 votes 0.9 for class 0, window 2 votes 1.0 for class 1, window 3 votes 0.3 for class 2."""
    model = micro()
    votes = iter([(0, 0.9), (1, 1.0), (2, 0.3)])

    def scores(_: object, size: tuple[int, int]) -> Tensor:
        winner, vote = next(votes)
        part = torch.zeros(1, CLASSES, *size)
        part[:, winner] = vote
        return part

    monkeypatch.setattr(model.decoder, "semantic_scores", scores)
    averaged = model.slide_scores(amplitude(1, 1, 64, 130), torch.zeros(1), torch.ones(1), None, taper=taper)
    # columns: window 1 is 0..63, window 2 is 40..103, window 3 is 66..129
    for column, *of_window in ((0, 0), (50, 0, 1), (65, 1), (80, 1, 2)):
        weights, expected = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        for window in of_window:
            inside = column - (0, 40, 66)[window] + 0.5
            weights[window] = math.sin(math.pi * inside / 64) ** 2 if taper else 1.0
        for window, vote in enumerate((0.9, 1.0, 0.3)):
            expected[window] = weights[window] * vote / sum(weights)
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


def test_windows_may_be_larger_than_crops() -> None:
    model = build_model("crossearth_sar_tiny", CLASSES, changes={**MICRO, "window_size": 128})
    assert model.config.window == 128
    windows: list[object] = []
    model.predict(amplitude(1, 1, 128, 128), on_window=windows.append)
    assert len(windows) == 1
    with pytest.raises(InputError, match="window_size"):
        build_model("crossearth_sar_tiny", CLASSES, changes={**MICRO, "window_size": 60})
