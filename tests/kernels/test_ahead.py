"""Kernels compile for six chips within the hardware's limits; the committed table of it is current."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache

import pytest
import triton
import triton.language as tl

from bench.compiled.ahead import CHIPS, AheadCase, Resources, case_digest, compile_case  # see pyproject.toml
from bench.compiled.kernels_ahead import ROOT, all_cases, compiled_row
from crossearth_sar.kernels.tile_table import TABLE
from crossearth_sar.kernels.tiles import SHARED_LIMIT, Tiles, candidates
from tests.ranks import slow

RENEW = "python -m bench.compiled.kernels_ahead"
MMA = {
    "sm_80": "HMMA",
    "sm_86": "HMMA",
    "sm_89": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
}
"""What a product in 16 bits is on each chip."""
TINY = Tiles(block_m=16, block_n=16, block_k=16, num_warps=1, num_stages=1)


@cache
def committed() -> dict[tuple[str, str], dict[str, str]]:
    with (ROOT / "bench/reports/kernels-ahead/results.csv").open(encoding="utf-8") as file:
        return {(row["chip"], row["case"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("chip", CHIPS)
def test_committed_table_is_current_and_without_problems(chip: str) -> None:
    cases = all_cases(chip)
    rows = {name: row for (of, name), row in committed().items() if of == chip}
    assert set(rows) == set(cases), f"the table lacks or outlives {set(rows) ^ set(cases)}: {RENEW}"
    stale = [name for name, case in cases.items() if rows[name]["digest"] != case_digest(case)]
    assert not stale, f"compiled from other code: {stale}: {RENEW}"
    for name, row in rows.items():
        assert int(row["spilled, B"]) == 0, name
        assert int(row["shared, B"]) <= SHARED_LIMIT[CHIPS[chip]], name
        if cases[name].wants_mma:
            assert row["mma"] == MMA[chip], name
        assert not row["problems"], name


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kernel", list(TABLE))
def test_every_shipped_configuration_has_a_case(kernel: str, chip: str) -> None:
    labels = {case.tiles.label for name, case in all_cases(chip).items() if name.split()[0] == kernel}
    for dtype in ("bf16", "fp32"):
        for row in candidates(kernel, dtype, CHIPS[chip]):
            assert any(row.tiles.label in label for label in labels), (row.tiles.label, labels)


@pytest.mark.parametrize(
    ("chip", "kernel"), [*((chip, "grouped_up") for chip in CHIPS), ("sm_90", "grouped_down")]
)
def test_the_smallest_configuration_compiles_here_too(chip: str, kernel: str) -> None:
    cases = [c for c in all_cases(chip).values() if c.name.startswith(f"{kernel} bf16")]
    case = min(cases, key=lambda c: c.tiles.block_m * c.tiles.block_n)
    found = compile_case(case, chip)
    assert found.problems(case, chip) == []
    assert found.mma == MMA[chip]
    assert found.has_async_copy
    assert str(found.registers) == committed()[chip, case.name]["registers"], f"another compiler? {RENEW}"


@slow
@pytest.mark.parametrize("chip", CHIPS)
def test_every_configuration_compiles(chip: str) -> None:
    """With whatever Triton is installed, so that a release of it can be tried."""
    found = {name: compiled_row(chip, name)["problems"] for name in all_cases(chip)}
    assert not {name: problems for name, problems in found.items() if problems}


@triton.jit
def scale(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Doubles n elements."""
    place = tl.arange(0, BLOCK)
    tl.store(y_ptr + place, tl.load(x_ptr + place, mask=place < n) * 2, mask=place < n)


SCALE = AheadCase(
    name="scale", kernel=scale, signature={"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"},
    constexprs={"BLOCK": 64}, tiles=TINY, dtype="fp32", wants_mma=False,
)  # fmt: skip


def test_a_kernel_without_products_shows_none() -> None:
    found = compile_case(SCALE, "sm_80")
    assert found.mma == "none"
    assert found.problems(SCALE, "sm_80") == []
    assert found.problems(replace(SCALE, wants_mma=True), "sm_80") == ["no tensor core instruction"]


def test_a_kernel_with_too_much_in_registers_shows_spills() -> None:
    hungry = replace(SCALE, constexprs={"BLOCK": 4096}, options={"maxnreg": 16})
    assert compile_case(hungry, "sm_80").spill_bytes > 0


def test_problems_are_named() -> None:
    found = Resources(registers=255, shared_bytes=200_000, spill_bytes=8, mma="HMMA", has_async_copy=True)
    assert found.problems(SCALE, "sm_90") == ["8 bytes spilled per thread"]
    assert found.problems(SCALE, "sm_80") == [
        "8 bytes spilled per thread", "200000 bytes of shared memory, sm_80 has 166912",
    ]  # fmt: skip


def test_digest_follows_what_is_compiled() -> None:
    digest = case_digest(SCALE)
    assert case_digest(replace(SCALE, name="another name")) == digest
    assert case_digest(replace(SCALE, constexprs={"BLOCK": 128})) != digest
    assert case_digest(replace(SCALE, signature={**SCALE.signature, "x_ptr": "*fp16"})) != digest
    assert case_digest(replace(SCALE, tiles=replace(TINY, num_warps=2))) != digest


def test_a_case_that_leaves_an_argument_out_is_refused() -> None:
    with pytest.raises(AssertionError, match="BLOCK"):
        compile_case(replace(SCALE, constexprs={}), "sm_80")
