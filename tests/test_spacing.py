"""Positions of windows and of evenly spaced samples: what every reader of them relies on."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossearth_sar.spacing import evenly_spaced, sliding_windows, window_starts


def test_starts_cover_a_length_and_shift_the_last_inward() -> None:
    assert window_starts(10, 4, 4) == [0, 4, 6]
    assert window_starts(8, 4, 4) == [0, 4]
    assert window_starts(3, 4, 4) == [0]
    assert window_starts(1000, 512, 341) == [0, 341, 488]
    tiles = [(rows.start, rows.stop, columns.start) for rows, columns in sliding_windows(5, 3, 4, 4)]
    assert tiles == [(0, 4, 0), (1, 5, 0)]


def test_the_two_kinds_of_even_spacing() -> None:
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(10, 4, ends=True) == [0, 3, 6, 9]
    assert evenly_spaced(5, 9) == evenly_spaced(5, 9, ends=True) == [0, 1, 2, 3, 4]
    assert evenly_spaced(7, 1) == evenly_spaced(7, 1, ends=True) == [0]
    assert evenly_spaced(7, 0) == evenly_spaced(0, 3) == []


@given(length=st.integers(1, 3000), count=st.integers(1, 100), ends=st.booleans())
def test_chosen_samples_are_distinct_and_evenly_apart(length: int, count: int, ends: bool) -> None:
    chosen = evenly_spaced(length, count, ends=ends)
    assert len(chosen) == min(length, count)
    assert chosen[0] == 0
    assert chosen[-1] <= length - 1
    steps = {later - earlier for earlier, later in pairwise(chosen)}
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)
    if ends and len(chosen) > 1:
        assert chosen[-1] == length - 1


@pytest.mark.parametrize(("length", "count"), [(64, 32), (1000, 32), (9, 4), (282_384, 64)])
def test_existing_runs_chose_these(length: int, count: int) -> None:
    """Numbers of reports depend on which samples were looked at."""
    assert evenly_spaced(length, count) == [i * length // count for i in range(count)]
    expected = [round(i * (length - 1) / (count - 1)) for i in range(count)]
    assert evenly_spaced(length, count, ends=True) == expected
