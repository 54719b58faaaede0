"""Random crops of a large scene: training's samples, beside rasterio's reading of the same windows.

    python -m bench.speed.bench_loader [--side 8000] [--tiles 200] [--out FOLDER]

The scene is a tiled, compressed TIFF of uint16 speckle with a tiled label of one byte, made for the purpose
and removed afterwards. Contenders take turns, tile by tile, in one process: what a run's loader does for a
sample (`TrainStream`, at scale 1, without speckle), the same without the transform, rasterio's reading of the
image's and the label's window with both files held open, and with both opened for it. Own and rasterio's
windows are compared first. Reading the whole scene for a crop stands beside them, timed a few times.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window as RasterioWindow

from bench.speed.bench_scene import TILE, make_scene
from bench.speed.harness import DisagreementError, Timing, time_interleaved, write_report
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.stream import TrainStream
from crossearth_sar.data.transforms import AugmentConfig, TrainTransform

CROP = 512

Row = dict[str, Any]


def make_labels(path: Path, side: int) -> None:
    """Squares of 100 pixels of four classes, tiled and compressed as the scene is."""
    squares = np.random.default_rng(0).integers(0, 4, (side // 100 + 1,) * 2, np.uint8)
    labels = squares.repeat(100, 0).repeat(100, 1)[:side, :side]
    settings = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate"}
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=1, dtype="uint8", **settings
    ) as file:
        file.write(labels, 1)


def opened(folder: Path) -> Domain:
    scenes = FolderConfig(
        root=str(folder),
        images="image.tif",
        labels="label.tif",
        values="amplitude",
        classes=("a", "b", "c", "d"),
    )
    return open_domain(DomainConfig(name="scene", folder=scenes))


class Reading:
    """The contenders, each of which reads its next tile when it is called."""

    def __init__(self, folder: Path, side: int, seed: int = 0) -> None:
        self.paths = folder / "image.tif", folder / "label.tif"
        self.data, self.side, self.seed = opened(folder), side, seed
        augment = AugmentConfig(crop_size=CROP, scale_min=1, scale_max=1, max_class_share=1.0)
        self.stream = TrainStream(self.data, TrainTransform(augment), seed)
        self.files = [rasterio.open(path) for path in self.paths]
        self.calls: dict[str, int] = {}

    def place(self, contender: str) -> tuple[int, int]:
        """Every contender meets the same places, in the same order."""
        number = self.calls[contender] = self.calls.get(contender, -1) + 1
        draw = np.random.default_rng([self.seed, number])
        top, left = draw.integers(0, self.side - CROP + 1, 2).tolist()
        return top, left

    def sample(self) -> object:
        number = self.calls["sample"] = self.calls.get("sample", -1) + 1
        return self.stream[number]

    def window(self) -> tuple[np.ndarray, np.ndarray]:
        top, left = self.place("window")
        view = self.data.view(0)
        assert view is not None, "the scene is large, and tiled"
        part = view.read(slice(top, top + CROP), slice(left, left + CROP))
        return part["image"][0].numpy(), part["mask"].numpy()

    def rasterio_open(self) -> tuple[np.ndarray, np.ndarray]:
        top, left = self.place("rasterio_open")
        image, label = (file.read(1, window=RasterioWindow(left, top, CROP, CROP)) for file in self.files)
        return image, label

    def rasterio_anew(self) -> tuple[np.ndarray, np.ndarray]:
        top, left = self.place("rasterio_anew")
        found = []
        for path in self.paths:
            with rasterio.open(path) as file:
                found.append(file.read(1, window=RasterioWindow(left, top, CROP, CROP)))
        return found[0], found[1]

    def whole(self) -> object:
        return self.data[0]

    def require_agreement(self) -> None:
        for own, other in zip(self.window(), self.rasterio_open(), strict=True):
            if not np.array_equal(own, other):
                raise DisagreementError("a window is not what rasterio reads: no ratio is printed")
        self.calls.clear()


def rows_of(reading: Reading, tiles: int) -> list[Row]:
    reading.require_agreement()
    timings = time_interleaved(
        {
            "rasterio, files held open": reading.rasterio_open,
            "rasterio, files opened for each": reading.rasterio_anew,
            "a window as a sample": reading.window,
            "a sample of the stream, augmented": reading.sample,
        },
        rounds=tiles,
    )
    timings |= time_interleaved({"the scene decoded whole": reading.whole}, rounds=3, warm_up=1)
    held, anew = (timings[f"rasterio, files {how}"].p50 for how in ("held open", "opened for each"))
    return [_row(name, timing, held, anew) for name, timing in timings.items()]


def _row(name: str, timing: Timing, held: float, anew: float) -> Row:
    return {
        "what": name,
        "tiles/s": round(1 / timing.p50, 1),
        "of held open": round(held / timing.p50, 3),
        "of opened for each": round(anew / timing.p50, 3),
        "p20 ms": round(timing.p20 * 1e3, 2),
        "p50 ms": round(timing.p50 * 1e3, 2),
        "p80 ms": round(timing.p80 * 1e3, 2),
        "rounds": timing.rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=8000, help="of the scene, pixels")
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--place", metavar="FOLDER", help="for the scene; default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/loader"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker of a loader
    with tempfile.TemporaryDirectory(dir=arguments.place) as name:
        folder = Path(name)
        make_scene(folder / "image.tif", arguments.side, arguments.side)
        make_labels(folder / "label.tif", arguments.side)
        rows = rows_of(Reading(folder, arguments.side), arguments.tiles)
    notes = [
        f"One scene of {arguments.side} x {arguments.side} uint16 and its label, tiles of {TILE}, deflate.",
        f"Crops of {CROP}. One process, one thread of torch; the files are in the page cache.",
        "rasterio reads image and label and does no more. Files that it holds open keep decoded tiles in "
        "GDAL's cache: a scene is hardly decoded twice. Opened for each tile, they are decoded each time.",
    ]
    print(write_report(arguments.out, "Random crops of a large scene", rows, notes))


if __name__ == "__main__":
    main()
