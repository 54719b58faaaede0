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
    if path.suffix in (".tif", ".tiff"):
        settings = (
            {"compression": "zlib", "compressionargs": {"level": 1}} if values.dtype == np.uint8 else {}
        )
        tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack", **settings)
    else:
        Image.fromarray(values).save(path)


AIR_SIZE = 600, 2560
"""(H, W) of a scene: 2 x 5 patches, of which the second row is shifted inward over the first."""


AIR_1_COLORS = np.array(
    [(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255), (255, 255, 0), (255, 255, 255)], np.uint8
)
"""Of AIR-PolSAR-Seg-1.0: industrial, natural, land use, water, housing, other."""


def air(root: Path, width: int = AIR_SIZE[1]) -> None:
    """Three scenes in int16 components, and labels as if compressed: 1 % of the colours are off by up to 10 a
    channel, a few by far."""
    spec = BENCHMARK_DATASETS["AIR-PolSAR-Seg-2.0"]
    colors = np.array([spec.label_palette[name] for name in spec.classes], np.int64)
    rng = np.random.default_rng(0)
    height, folder = AIR_SIZE[0], root / spec.folder
    for i, scene in enumerate(("bj", "sh", "gz")):
        for k, channel in enumerate(("hh", "hv", "vh", "vv")):
            parts = rng.normal(0, 50 * (1 + i + k), (height, width, 2)).round().astype(np.int16)
            parts[..., 0] |= 1  # no pixel of power 0, which statistics leave out
            save_components(folder / scene / f"{scene}_{channel}.tiff", parts)
        label = colors[stripes(height, width, 6)]
        label[:, :100] = 255
        off = rng.random((height, width, 1)) < 0.01
        label = (label + off * rng.integers(-10, 11, label.shape)).clip(0, 255).astype(np.uint8)
        label[100:110, 200:210] = 128
        save(folder / scene / "modified" / f"{scene}_gt_modify.tiff", label)


def save_components(path: Path, parts: np.ndarray) -> None:
    """(H, W, 2): the real and the imaginary part as two bands of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, parts, photometric="minisblack", planarconfig="contig", rowsperstrip=32)


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
