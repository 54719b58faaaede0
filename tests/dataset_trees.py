"""Small trees of published datasets in their official layouts, written for tests.

Files have their real size, there are only few of them; every label holds every class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from crossearth_sar.data.datasets.benchmarks import BENCHMARK_DATASETS

Writer = Callable[[Path], None]


def stripes(height: int, width: int, count: int) -> np.ndarray:
    """(H, W) uint8: `count` vertical stripes of the values 0..count-1, each at least once per 512 columns."""
    return np.broadcast_to((np.arange(width) // 16 % count).astype(np.uint8), (height, width)).copy()


def speckle(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, shape, dtype=np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        settings = (
            {"compression": "zlib", "compressionargs": {"level": 1}} if values.dtype == np.uint8 else {}
        )
        tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack", **settings)
    else:
        Image.fromarray(values).save(path)


def air(root: Path, places: int = 5) -> None:
    spec = BENCHMARK_DATASETS["AIR-PolSAR-Seg-2.0"]
    assert spec.palette is not None
    colors = np.array(spec.palette, np.uint8)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(512, 512)) + 1j * rng.normal(size=(512, 512))
    for region in ("north", "south"):
        for i in range(places):
            for k, channel in enumerate(("HH", "HV", "VH", "VV")):
                values = (base * (1 + i + 10 * k)).astype(np.complex64)
                path = root / spec.folder / region / channel / f"{i}.tif"
                save(path, values)
            save(root / spec.folder / region / "label" / f"{i}.png", colors[stripes(512, 512, 6)])


def ddhr(root: Path, patches: int = 5) -> None:
    for region in ("korea", "china"):
        folder = root / "DDHR-SK" / region / "256_cloud"
        for i in range(1, patches + 1):
            save(folder / "GF3" / f"{i}.jpg", speckle((256, 256), i))
            save(folder / "label" / f"{i}.png", stripes(256, 256, 6))


def fusar(root: Path, scenes: int = 5) -> None:
    spec = BENCHMARK_DATASETS["FUSAR-Map"]
    assert spec.palette is not None
    colors = np.array(spec.palette, np.uint8)
    for i in range(1, scenes + 1):
        name = f"JiuJiang_01_01_01_01_{{}}_{i:03d}.tif"
        save(root / spec.folder / "sar_1024" / name.format("SAR"), speckle((1024, 1024), i))
        save(root / spec.folder / "lab_1024" / name.format("LAB"), colors[stripes(1024, 1024, 5)])


def open_earth_map(root: Path, scenes: int = 2) -> None:
    for i in range(scenes):
        folder = root / "OpenEarthMap-SAR" / "train"
        save(folder / "sar_images" / f"TrainArea_{i:03d}.tif", speckle((1024, 1024), i))
        save(folder / "labels" / f"TrainArea_{i:03d}.tif", stripes(1024, 1024, 9))


def sarbud(root: Path, patches: int = 5) -> None:
    for i in range(patches):
        save(root / "SARBuD" / "images" / f"b{i}.png", speckle((256, 256), i))
        save(root / "SARBuD" / "Labelimgs" / f"b{i}.png", stripes(256, 256, 2) * 255)


def whu(root: Path, scenes: int = 2) -> None:
    for i in range(scenes):
        name = f"NH49E00{i}013.tif"
        ramp = (np.arange(3704 * 5556, dtype=np.uint32) % (251 + i) + 1).astype(np.uint8).reshape(3704, 5556)
        save(root / "WHU-OPT-SAR" / "sar" / name, ramp)
        save(root / "WHU-OPT-SAR" / "lbl" / name, stripes(3704, 5556, 8) * 10)


WRITERS: dict[str, Writer] = {
    "AIR-PolSAR-Seg-2.0": air,
    "DDHR-SK": ddhr,
    "FUSAR-Map": fusar,
    "OpenEarthMap-SAR": open_earth_map,
    "SARBuD": sarbud,
    "WHU-OPT-SAR": whu,
}


def write_trees(root: Path, datasets: Sequence[str] = tuple(WRITERS)) -> Path:
    for dataset in datasets:
        WRITERS[dataset](root)
    return root
