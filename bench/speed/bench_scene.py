"""A whole scene through `crossearth-sar predict`: peak memory, wall time and windows per second.

    python -m bench.speed.bench_scene [--height 16000 --width 25000] [--model tiny] [--scores] [--out FOLDER]

The scene is a tiled, compressed TIFF of uint16 with speckle and a few kinds of ground, made for the purpose
and removed afterwards; it says no ground spacing, so the model sees each pixel. The command runs in a process
of its own, once on a scene of one window, which shows what Python, torch and the model take, and once on the
scene. Memory is the largest resident set of that process, pages of mapped files included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from bench.speed.harness import write_report
from crossearth_sar.model import load_model
from crossearth_sar.spacing import window_starts

TILE = 512

Row = dict[str, Any]


def make_scene(path: Path, height: int, width: int) -> None:
    """Speckle of four looks on fields of five brightnesses, uint16."""

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                draw = np.random.default_rng([top, left])
                y, x = np.ogrid[top : top + TILE, left : left + TILE]
                field = (np.sin(y / 190) + np.sin(x / 230 + y / 700) + 2.5).astype(np.int64)
                power = np.array([60.0, 120, 250, 400, 900])[field] ** 2 * draw.gamma(4, 0.25, (TILE, TILE))
                yield np.sqrt(power).clip(1, 65535).astype(np.uint16)

    tifffile.imwrite(
        path, tiles(), shape=(height, width), dtype=np.uint16, tile=(TILE, TILE), compression="zlib",
        photometric="minisblack", bigtiff=True,
    )  # fmt: skip


def predicted(scene: Path, model: str, device: str, options: list[str], output: Path) -> tuple[float, float]:
    """Seconds and the peak resident set in MB of the command on one scene."""
    command = [
        *(sys.executable, "-m", "crossearth_sar", "predict", "--model", model, "--images", str(scene)),
        *("--values", "amplitude", "--output", str(output), "--device", device, *options),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1e3


def measured(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    config = load_model(arguments.model).config
    options = ["--scores"] * arguments.scores + ["--page"] * arguments.page
    rows: list[Row] = []
    for height, width in ((config.window, config.window), (arguments.height, arguments.width)):
        scene = folder / f"{height}x{width}.tif"
        make_scene(scene, height, width)
        sides = (len(window_starts(side, config.window, config.crop_stride)) for side in (height, width))
        windows = int(np.prod(list(sides)))
        seconds, peak_mb = predicted(scene, arguments.model, arguments.device, options, folder / scene.stem)
        rows.append(
            {
                "height": height,
                "width": width,
                "file MB": round(scene.stat().st_size / 1e6, 1),
                "windows": windows,
                "seconds": round(seconds, 1),
                "windows/s": round(windows / seconds, 1),
                "peak MB": round(peak_mb),
                "above one window, MB": round(peak_mb - rows[0]["peak MB"]) if rows else 0,
            }
        )
        scene.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--height", type=int, default=16_000)
    parser.add_argument("--width", type=int, default=25_000)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scores", action="store_true", help="probabilities, too")
    parser.add_argument("--page", action="store_true", help="page and quick look, too")
    parser.add_argument(
        "--place", metavar="FOLDER", help="for the scene and its maps; default: a temporary one"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/scene"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.place) as folder:
        rows = measured(arguments, Path(folder))
    notes = [
        f"Model {arguments.model} on {arguments.device}; wall time of the whole command, start included.",
        "The first row is a scene of one window: what Python, torch and the model take.",
    ]
    print(write_report(arguments.out, "A whole scene through crossearth-sar predict", rows, notes))


if __name__ == "__main__":
    main()
