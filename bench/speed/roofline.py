"""A roofline picture from a benchmark's folder: FLOP per byte against TFLOP/s, under what the device can do.

    python -m bench.speed.roofline runs/bench/moe-layer [--contenders ours dense] [--out roofline.png]

The roof is the device's own: the rate of a large product and the bandwidth of a large copy, measured in the
same run as the points (results.json). The bytes of a point are the fewest the two products move (its MB
column), so a point's distance below the roof holds everything else that was moved or waited for.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

from bench.speed.ratio_pictures import STAGE_COLORS
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.figures.canvas import GRID, INK, SOFT_INK, new_figure, save

MARKERS = {"forward": "o", "forward+backward": "^"}


def read_points(folder: Path, contenders: Sequence[str]) -> list[dict[str, str]]:
    """The timed rows of results.csv whose contender holds one of the words, whole layer where there is one.

    Raises:
        InputError: where no row fits.
    """
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        timed = [row for row in csv.DictReader(file) if row["ms p50"] and row.get("MB")]
    wanted = [row for row in timed if not contenders or any(word in row["contender"] for word in contenders)]
    layer = [row for row in wanted if row["scope"] == "layer"]
    if not wanted:
        raise InputError(
            f"{folder}/results.csv has no row to draw",
            got=f"{len(timed)} timed rows with GFLOP and MB",
            expected=f"contenders with {' or '.join(contenders) or 'any name'}",
        )
    return layer or wanted


def read_ceilings(folder: Path) -> dict[str, float]:
    """What the device did at best in the same run (harness.measure_ceilings).

    Raises:
        InputError: the folder is a report from elsewhere: results.json stays where the run was.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(
            f"{path} is not there",
            expected="a folder that bench_moe_layer wrote on this machine; reports in bench/reports are kept "
            "without it",
        )
    ceilings: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["ceilings"]
    return ceilings


def draw(folder: Path, contenders: Sequence[str], path: Path) -> Path:
    points = read_points(folder, contenders)
    ceilings = read_ceilings(folder)
    peak, bandwidth = ceilings["gemm_tflops"], ceilings["copy_gb_per_s"] / 1e3
    names = list(dict.fromkeys(row["contender"] for row in points))
    figure = new_figure(9, 6)
    axes = figure.subplots()
    intensities = [float(row["GFLOP"]) * 1e3 / float(row["MB"]) for row in points]
    low, high = min([*intensities, peak / bandwidth]) / 2, max([*intensities, peak / bandwidth]) * 2
    ridge = peak / bandwidth
    axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color=INK, linewidth=1.4)
    axes.annotate(
        f"product {peak:.3g} TFLOP/s", (high, peak), xytext=(-4, 4), textcoords="offset points", ha="right",
        fontsize=8, color=SOFT_INK,
    )  # fmt: skip
    axes.annotate(
        f"copy {bandwidth * 1e3:.4g} GB/s", (low, low * bandwidth), xytext=(8, 0), fontsize=8, color=SOFT_INK,
        textcoords="offset points", va="top",
    )  # fmt: skip
    for row, intensity in zip(points, intensities, strict=True):
        place = names.index(row["contender"]) % len(STAGE_COLORS)
        axes.plot(
            intensity, float(row["TFLOP/s"]), MARKERS.get(row["pass"], "s"), color=STAGE_COLORS[place],
            markersize=6, alpha=0.75, markeredgewidth=0,
        )  # fmt: skip
    for place, name in enumerate(names):
        axes.plot([], [], "o", color=STAGE_COLORS[place % len(STAGE_COLORS)], label=name)
    for direction, marker in MARKERS.items():
        axes.plot([], [], marker, color=SOFT_INK, label=direction, linestyle="none")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    axes.grid(color=GRID, linewidth=0.6, which="both")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title(f"Roofline: {folder.name}", fontsize=12, color=INK)
    figure.tight_layout()
    return save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of bench_moe_layer.py's report")
    parser.add_argument("--contenders", nargs="+", default=[], help="those whose name holds one of these")
    parser.add_argument("--out", type=Path, help="roofline.png in the folder when not given")
    given = parser.parse_args()
    print(draw(given.folder, given.contenders, given.out or given.folder / "roofline.png"))


if __name__ == "__main__":
    main()
