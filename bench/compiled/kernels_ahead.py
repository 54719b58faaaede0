"""Registers, shared memory, spills and tensor core instructions of every kernel and shipped configuration.

    python -m bench.compiled.kernels_ahead [--out bench/reports/kernels-ahead] [--jobs 2] [--all]

Triton kernels, compiled ahead of time for six chips; no GPU. Exits with 1 where one spills, exceeds
the shared memory of its architecture or misses the tensor cores. tests/kernels/test_ahead.py fails when the
committed table is older than the kernels: run this again then. Rows whose code, tiles and Triton have not
changed since are kept; --all compiles them too.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import triton

from bench.compiled.ahead import CHIPS, AheadCase, case_digest, compile_case
from bench.compiled.ahead_cases import ahead_cases
from bench.speed.harness import markdown_table, write_report

ROOT = Path(__file__).resolve().parents[2]
MOST = ("registers", "shared, B", "spilled, B")
"""Columns whose maximum over a kernel's cases stands in README.md."""


@cache
def all_cases(chip: str) -> dict[str, AheadCase]:
    """The cases of every kernel by name."""
    cases: dict[str, AheadCase] = {}
    for case in ahead_cases(CHIPS[chip]):
        assert case.name not in cases, f"two cases are named {case.name}"
        cases[case.name] = case
    return cases


def compiled_row(chip: str, name: str) -> dict[str, object]:
    """What one case uses, and what is wrong with it."""
    case = all_cases(chip)[name]
    found = compile_case(case, chip)
    return {
        "chip": chip, "case": name, "kernel": case.kernel.fn.__name__, "dtype": case.dtype,
        "warps": case.tiles.num_warps, "registers": found.registers, "shared, B": found.shared_bytes,
        "spilled, B": found.spill_bytes, "mma": found.mma,
        "async copy": "yes" if found.has_async_copy else "no", "digest": case_digest(case),
        "triton": triton.__version__, "problems": "; ".join(found.problems(case, chip)),
    }  # fmt: skip


def kept_rows(table: Path) -> dict[tuple[str, str], dict[str, object]]:
    """The rows of an earlier table that compiling again would only repeat, by chip and case."""
    if not table.exists():
        return {}
    current = {(chip, name): case_digest(case) for chip in CHIPS for name, case in all_cases(chip).items()}
    with table.open(encoding="utf-8") as file:
        rows = {(row["chip"], row["case"]): row for row in csv.DictReader(file)}
    return {
        key: dict(row)
        for key, row in rows.items()
        if (row["digest"], row["triton"]) == (current.get(key), triton.__version__)
    }


def by_kernel(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """A line per chip and kernel: how many cases, and the most that one of them takes."""
    groups: dict[tuple[object, object], list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["chip"], row["kernel"]), []).append(row)
    return [
        {
            "chip": chip,
            "kernel": kernel,
            "cases": len(group),
            **{name: max(int(str(row[name])) for row in group) for name in MOST},
            "mma": ", ".join(sorted({str(row["mma"]) for row in group})),
            "with problems": sum(bool(row["problems"]) for row in group),
        }
        for (chip, kernel), group in groups.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench/reports/kernels-ahead")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--only", default="", help="cases whose name holds this; for a look, not for a report"
    )
    parser.add_argument("--all", action="store_true", help="compile every case, also those unchanged")
    arguments = parser.parse_args()
    wanted = [(chip, name) for chip in CHIPS for name in all_cases(chip) if arguments.only in name]
    found = {} if arguments.all else kept_rows(arguments.out / "results.csv")
    missing = [key for key in wanted if key not in found]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        compiled = pool.map(compiled_row, [chip for chip, _ in missing], [name for _, name in missing])
        found |= dict(zip(missing, compiled, strict=True))
    rows = [found[key] for key in wanted]
    notes = [
        "Compiled ahead of time; this table says nothing about speed. Every case is a line of results.csv.",
        "mma: UTCHMMA is tcgen05, HGMMA is wgmma, HMMA is mma.sync.",
        "async copy: global to shared memory past the registers.",
        "digest: of the kernel's code, types and constants; tests/kernels/test_ahead.py compares it.",
    ]
    summary = markdown_table(by_kernel(rows))
    print(write_report(arguments.out, "Resources of the Triton kernels", rows, notes, body=summary))
    bad = [f"{row['chip']} {row['case']}: {row['problems']}" for row in rows if row["problems"]]
    if bad:
        raise SystemExit("\n".join(bad))


if __name__ == "__main__":
    main()
