"""The split rule: the paper's numbers, a seed, nothing lost and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossearth_sar.data.datasets.benchmarks import BENCHMARK_DATASETS
from crossearth_sar.data.datasets.spec import PaperCounts
from crossearth_sar.data.datasets.splits import block_starts, draw_split, stored_split, train_share
from crossearth_sar.errors import InputError

NAMES = [f"patch_{i}" for i in range(50)]


def test_a_split_is_a_function_of_names_seed_and_group() -> None:
    split = draw_split(NAMES, train_count=40, seed=0, group="a/all")
    assert draw_split(NAMES[::-1], train_count=40, seed=0, group="a/all") == split
    assert len(split.train) == 40
    assert sorted([*split.train, *split.test]) == sorted(NAMES)
    others = [draw_split(NAMES, train_count=40, seed=s, group=g) for s, g in ((1, "a/all"), (0, "b/all"))]
    assert all(set(other.test) != set(split.test) for other in others)


def test_one_draw_is_pinned() -> None:
    """A later version has to draw what was drawn before, or scores stop being comparable."""
    assert draw_split(NAMES[:10], train_count=8, seed=0, group="SARBuD/all").test == (
        "patch_6",
        "patch_7",
    )


def test_the_papers_numbers_where_the_data_are_the_papers() -> None:
    for spec in BENCHMARK_DATASETS.values():
        for counts in spec.counts.values():
            assert train_share(counts.total, counts) == counts.train
            assert abs(train_share(counts.total - 1, counts) - 0.8 * counts.total) < 2
    assert train_share(10, None) == 8
    with pytest.raises(InputError, match="add up to 10"):
        PaperCounts(total=10, train=8, test=3)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    drawn = draw_split(NAMES, train_count=40, seed=0, group="x")
    with pytest.raises(InputError, match="cannot be written"):
        stored_split(tmp_path / "file" / "a.json", NAMES, drawn=drawn, about={})


@pytest.mark.parametrize(
    ("starts", "block", "expected"),
    [
        ([0], 2, [0]),
        ([0, 4, 8, 12], 1, [0, 4, 8, 12]),
        ([0, 4, 8, 12], 3, [0, 0, 0, 12]),
        ([0, 4, 8, 9], 1, [0, 4, 8, 8]),
        ([0, 4, 8, 9], 2, [0, 0, 8, 8]),
        ([0, 4, 5], 2, [0, 0, 0]),
    ],
)
def test_blocks_of_windows(starts: list[int], block: int, expected: list[int]) -> None:
    """Windows of 4; the last may have been shifted over the one before it."""
    assert block_starts(starts, 4, block) == expected
