"""The choice of tiles: by rule, by a tuned file, by a search; the same for neighbouring batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crossearth_sar.errors import InputError
from crossearth_sar.kernels import tiles as tiles_module
from crossearth_sar.kernels.tile_table import TABLE
from crossearth_sar.kernels.tiles import (
    SHARED_LIMIT,
    Candidate,
    Tiles,
    candidates,
    choose_tiles,
    current_arch,
    estimated_cost,
    read_tile_table,
    rows_bucket,
    write_tile_table,
)

SHAPE = {"num_experts": 6, "columns": 4096, "depth": 1024, "dtype": torch.bfloat16, "arch": "sm_90"}


@pytest.fixture(autouse=True)
def _no_tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CROSSEARTH_AUTOTUNE", raising=False)
    monkeypatch.delenv("CROSSEARTH_TILE_TABLE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("rows", "experts", "bucket"),
    [(0, 6, 1), (1, 6, 1), (6, 6, 1), (12, 6, 2), (18, 6, 3), (24, 6, 4), (25, 6, 6), (4096, 6, 768),
     (65536, 6, 12288), (2**31, 1, 2**31)],
)  # fmt: skip
def test_bucket(rows: int, experts: int, bucket: int) -> None:
    assert rows_bucket(rows, experts) == bucket
    assert bucket * experts >= rows


def test_few_buckets_and_never_falling() -> None:
    buckets = [rows_bucket(rows, 6) for rows in range(1, 20000)]
    assert buckets == sorted(buckets)
    assert len(set(buckets)) <= 24


def test_neighbouring_batches_share_tiles() -> None:
    chosen = {choose_tiles("grouped_up", rows=rows, **SHAPE) for rows in range(3073, 4608, 7)}
    assert len(chosen) <= 2


@pytest.mark.parametrize("kernel", list(TABLE))
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90", "interpreter"])
@pytest.mark.parametrize("dtype", list(tiles_module.DTYPES))
@pytest.mark.parametrize("rows", [0, 1, 5000, 400_000])
def test_every_kernel_has_tiles_everywhere(kernel: str, arch: str, dtype: torch.dtype, rows: int) -> None:
    tiles = choose_tiles(kernel, rows=rows, num_experts=6, columns=384, depth=1536, dtype=dtype, arch=arch)
    itemsize = torch.empty(0, dtype=dtype).element_size()
    assert tiles.operand_bytes(itemsize) <= SHARED_LIMIT.get(arch, 1 << 62)
    assert tiles.block_n % tiles.epilogue_parts == 0


def test_the_table_repeats_nothing() -> None:
    for by_arch in TABLE.values():
        for rows in by_arch.values():
            assert len({row.tiles for row in rows}) == len(rows)


def test_a_small_batch_gets_small_tiles_and_a_large_one_large() -> None:
    small, large = (choose_tiles("grouped_down", rows=rows, **SHAPE) for rows in (64, 65536))
    assert small.block_m == 64
    assert large.block_m == 128
    assert large.block_m * large.block_n > small.block_m * small.block_n


def test_cost_counts_the_busiest_multiprocessor() -> None:
    tiles = Tiles(block_m=64, block_n=128, block_k=64, num_warps=4, num_stages=3)
    row = Candidate(tiles=tiles, rate=0.5, fixed_depth=100, programs_per_sm=2)

    def cost(columns: int) -> float:
        return estimated_cost(
            row, kernel_name="grouped_up", bucket=32, num_experts=1, columns=columns, depth=900, arch="sm_90"
        )

    assert cost(128) == 64 * 128 * (900 + 100) / 0.5  # one program
    assert cost(132 * 128) == cost(128)  # one on every SM
    assert cost(133 * 128) == 2 * cost(128)


def test_ragged_reduction_is_split_only_where_multiprocessors_stay_idle() -> None:
    shape = {"num_experts": 6, "dtype": torch.bfloat16, "arch": "sm_90"}
    few = choose_tiles("grouped_wgrad", rows=65536, columns=384, depth=384, **shape)
    many = choose_tiles("grouped_wgrad", rows=65536, columns=4096, depth=1024, **shape)
    short = choose_tiles("grouped_wgrad", rows=1024, columns=384, depth=384, **shape)
    assert few.split_k > 1
    assert many.split_k == short.split_k == 1


@pytest.mark.parametrize(
    "change",
    [{"kernel_name": "grouped_sideways"}, {"dtype": torch.float64}, {"arch": "sm_70"}],
)
def test_what_the_table_does_not_know_is_named(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="got"):
        choose_tiles(**{"kernel_name": "grouped_up", "rows": 100, **SHAPE, **change})


@pytest.mark.parametrize("wrong", [{"block_m": 48}, {"block_k": 8}, {"num_warps": 0}, {"split_k": 0}])
def test_wrong_tiles_are_named(wrong: dict[str, int]) -> None:
    sizes = {"block_m": 64, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 3}
    with pytest.raises(InputError, match=next(iter(wrong))):
        Tiles(**{**sizes, **wrong})


def test_arch_in_the_interpreter_and_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert current_arch() == "interpreter"
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        current_arch()


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 0), "sm_80"), ((8, 9), "sm_86"), ((9, 0), "sm_90"), ((10, 3), "sm_90"), ((12, 0), "sm_86")],
)
def test_arch_of_a_gpu(capability: tuple[int, int], arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert current_arch() == arch


class FakeTimer:
    """Times a trial by the tiles it was launched with: a width of 64 rows is fastest."""

    def __init__(self) -> None:
        self.launched: list[Tiles] = []

    def trial(self, tiles: Tiles) -> None:
        self.launched.append(tiles)

    def __call__(self, launch: object) -> float:
        launch()  # type: ignore[operator]
        return abs(self.launched[-1].block_m - 64) + self.launched[-1].block_n / 1000


def test_search_keeps_the_fastest_and_searches_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timer = FakeTimer()
    monkeypatch.setattr(tiles_module, "time_trial", timer)
    monkeypatch.setenv("CROSSEARTH_AUTOTUNE", "1")
    found = choose_tiles("grouped_up", rows=65536, trial=timer.trial, **SHAPE)
    pool = [row.tiles for row in candidates("grouped_up", "bf16", "sm_90")]
    assert timer.launched == pool
    assert found == min(pool, key=lambda t: (abs(t.block_m - 64), t.block_n))
    assert found != choose_tiles("grouped_up", rows=65536, **SHAPE, trial=None)
    again = choose_tiles("grouped_up", rows=65000, trial=timer.trial, **SHAPE)
    assert again == found
    assert len(timer.launched) == len(pool), "the same bucket was searched twice"
    choose_tiles("grouped_up", rows=100, trial=timer.trial, **SHAPE)
    file = tmp_path / "crossearth_tiles.json"
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 2

    monkeypatch.delenv("CROSSEARTH_AUTOTUNE")
    monkeypatch.setenv("CROSSEARTH_TILE_TABLE", str(file))
    assert choose_tiles("grouped_up", rows=65536, trial=timer.trial, **SHAPE) == found
    by_rule = choose_tiles("grouped_down", rows=65536, trial=timer.trial, **SHAPE)
    assert by_rule in [row.tiles for row in candidates("grouped_down", "bf16", "sm_90")]
    assert len(timer.launched) == 2 * len(pool), "only CROSSEARTH_AUTOTUNE=1 searches"


def test_no_search_in_the_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timer = FakeTimer()
    monkeypatch.setenv("CROSSEARTH_AUTOTUNE", "1")
    choose_tiles("grouped_up", rows=64, trial=timer.trial, **{**SHAPE, "arch": "interpreter"})
    assert timer.launched == []
    assert list(tmp_path.iterdir()) == []


def test_no_search_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timer = FakeTimer()
    monkeypatch.setenv("CROSSEARTH_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    choose_tiles("grouped_up", rows=64, trial=timer.trial, **SHAPE)
    assert timer.launched == []
    assert list(tmp_path.iterdir()) == []


def test_a_table_written_again_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "tiles.json"
    first = Tiles(block_m=16, block_n=16, block_k=16, num_warps=1, num_stages=1)
    second = Tiles(block_m=32, block_n=16, block_k=16, num_warps=1, num_stages=10, epilogue_parts=2)
    write_tile_table(file, {"a": first})
    assert read_tile_table(file) == {"a": first}
    write_tile_table(file, {"a": second})
    assert read_tile_table(file) == {"a": second}
    assert [path.name for path in tmp_path.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"a": 3}', '{"a": {"block_m": 16}}', '{"a": {"block_m": 17, "block_n": 16}}']
)
def test_a_broken_table_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    monkeypatch.setenv("CROSSEARTH_TILE_TABLE", str(tmp_path / "mine.json"))
    with pytest.raises(InputError, match=r"mine\.json cannot be read"):
        choose_tiles("grouped_up", rows=64, **SHAPE)


def test_a_missing_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSEARTH_TILE_TABLE", str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="names no file"):
        choose_tiles("grouped_up", rows=64, **SHAPE)
