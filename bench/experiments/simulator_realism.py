"""How near simulated scenes are to real SAR at about 10 m: what can be counted, side by side.

    python -m bench.experiments.simulator_realism --real FOLDER [--out FOLDER]

FOLDER holds real_data/ and corpus/, each with an index.csv (image, label, sensor, values, …). Tiles of 128
pixels of real images, averaged in power to about 10 m, and of simulated scenes go through the same measures:

percentiles   of intensity in dB relative to its mean: how heavy the dark and the bright end are.
ENL           mean^2 / variance of 8 x 8 blocks, the 90th percentile of them: looks on the plainest ground.
lag-1         correlation of neighbouring pixels' intensity in the plainest tenth of blocks.
edges         share of pixels whose 5 x 5 means on two sides differ by more than EDGE_DB (ratio of averages).
contrast      dB between the mean of labelled water and the mean of the rest, tiles with 3 to 97 % water.
water         share of labelled tiles without water, and quantiles of the share in the others.

The label of a real set is of another date than its image at times: of ombria only rows of trust=yes are
taken, and of sen1floods11 a low contrast may be a wrong label. --figure draws both beside each other; as real
images may not be passed on, such a picture is no part of the report.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from bench.speed.harness import write_report
from crossearth_sar.data.files.readers import read_image
from crossearth_sar.data.simulator.config import SimulatorConfig
from crossearth_sar.data.simulator.landcover import WATER
from crossearth_sar.data.simulator.scenes import simulate

TILE = 128
TILES = 120
"""Tiles of a set at most."""
PERCENTILES = (0.1, 1, 10, 50, 90, 99, 99.9)
EDGE_DB = 4.0
BLOCK = 8

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Tile:
    """intensity: (H, W) linear. water: (H, W), 1 water, 0 other, -1 unknown; None without a label."""

    intensity: Floats
    water: NDArray[np.integer] | None = None


def average(intensity: Floats, factor: int) -> Floats:
    """Mean of factor x factor pixels."""
    height, width = (side // factor * factor for side in intensity.shape)
    return intensity[:height, :width].reshape(height // factor, factor, -1, factor).mean((1, 3))


def plain_blocks(intensity: Floats) -> tuple[Floats, Floats]:
    """(ENL, lag-1 correlation along rows) of all 8 x 8 blocks, in the order of rising variation."""
    side = TILE // BLOCK
    blocks = average_blocks(intensity, side)
    mean, variance = blocks.mean((1, 2)), blocks.var((1, 2))
    order = np.argsort(variance / np.maximum(mean**2, 1e-30))
    centred = (blocks - mean[:, None, None])[order]
    pairs = (centred[:, :, :-1] * centred[:, :, 1:]).mean((1, 2))
    return (mean**2 / np.maximum(variance, 1e-30))[order], pairs / np.maximum(variance[order], 1e-30)


def average_blocks(intensity: Floats, side: int) -> Floats:
    """(side * side, 8, 8) blocks of a tile."""
    cut = intensity[:TILE, :TILE].reshape(side, BLOCK, side, BLOCK)
    return cut.transpose(0, 2, 1, 3).reshape(-1, BLOCK, BLOCK).astype(np.float64)


def edge_share(intensity: Floats) -> float:
    """Share of pixels between whose left and right, or upper and lower, 5 x 5 means EDGE_DB lie."""
    level_db = 10 * np.log10(np.maximum(uniform_filter(intensity.astype(np.float64), 5), 1e-12))
    right = np.abs(level_db[:, 6:] - level_db[:, :-6])[3:-3]
    down = np.abs(level_db[6:] - level_db[:-6])[:, 3:-3]
    return float((np.maximum(right, down) > EDGE_DB).mean())


def measures(tiles: list[Tile]) -> dict[str, object]:
    """A row of the table: medians over tiles; of water over all labelled tiles."""
    levels, looks, correlation, edges = [], [], [], []
    for tile in tiles:
        x = tile.intensity
        levels.append(10 * np.log10(np.maximum(np.percentile(x, PERCENTILES), 1e-12) / x.mean()))
        enl, lag = plain_blocks(x)
        looks.append(enl[len(enl) // 10])
        correlation.append(lag[: len(lag) // 2].mean())
        edges.append(edge_share(x))
    row: dict[str, object] = {"tiles": len(tiles)}
    for name, value in zip(PERCENTILES, np.median(levels, axis=0), strict=True):
        row[f"p{name:g} dB"] = f"{value:.1f}"
    row["ENL"] = f"{np.median(looks):.1f}"
    row["ENL 10-90 %"] = _range(looks, "{:.1f}")
    row["lag-1"] = f"{np.median(correlation):.2f}"
    row["lag-1 10-90 %"] = _range(correlation, "{:.2f}")
    row["edges %"] = f"{100 * np.median(edges):.1f}"
    row["edges % 10-90 %"] = _range([100 * e for e in edges], "{:.1f}")
    return row | water_measures(tiles)


def _range(values: list[float], shown: str) -> str:
    low, high = np.percentile(values, (10, 90))
    return f"{shown.format(low)} to {shown.format(high)}"


def water_measures(tiles: list[Tile]) -> dict[str, object]:
    """Contrast of water and the rest, and how much water there is."""
    contrast, shares = [], []
    for tile in tiles:
        if tile.water is None or (tile.water >= 0).mean() < 0.5:
            continue
        share = float((tile.water == 1).sum() / (tile.water >= 0).sum())
        shares.append(share)
        if 0.03 < share < 0.97:
            land, water = (tile.intensity[tile.water == value].mean() for value in (0, 1))
            contrast.append(10 * np.log10(land / max(float(water), 1e-30)))
    some = [share for share in shares if share > 0]
    return {
        "contrast dB 10-50-90 %": "/".join(f"{v:.1f}" for v in np.percentile(contrast, (10, 50, 90)))
        if contrast else "",
        "no water %": f"{100 * np.mean(np.array(shares) == 0):.0f}" if shares else "",
        "water % 10-50-90 %": "/".join(f"{100 * v:.0f}" for v in np.percentile(some, (10, 50, 90)))
        if some else "",
    }  # fmt: skip


def cut(intensity: Floats, water: NDArray[np.integer] | None = None) -> Iterator[Tile]:
    """Whole tiles of 128 pixels, measured everywhere; lone zeros are of 8-bit copies."""
    for top in range(0, intensity.shape[0] - TILE + 1, TILE):
        for left in range(0, intensity.shape[1] - TILE + 1, TILE):
            window = np.s_[top : top + TILE, left : left + TILE]
            x = intensity[window]
            if np.isfinite(x).all() and (x > 0).mean() > 0.97:
                yield Tile(x, None if water is None else water[window])


def sen1floods11(root: Path, band: int) -> Iterator[Tile]:
    for path in sorted((root / "real_data/sen1floods11/S1").glob("*.tif")):
        label = path.parents[1] / "Labels" / path.name.replace("S1Hand", "LabelHand")
        water = read_image(label).values[0].astype(int)
        yield from cut(10 ** (read_image(path).values[band].astype(float) / 10), water)


def terramind(root: Path, band: int) -> Iterator[Tile]:
    for path in sorted((root / "real_data/terramind_s1rtc/S1RTC").glob("*.tif")):
        cover = read_image(path.parents[1] / "LULC" / path.name).values[0].astype(int)
        yield from cut(10 ** (read_image(path).values[band].astype(float) / 10), np.where(cover == 1, 1, 0))


def ombria(root: Path, band: int) -> Iterator[Tile]:
    with (root / "corpus/index.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["dataset"] == "ombria" and r["trust"] == "yes"]
    for row in rows[:: max(1, len(rows) // 40)]:
        grey = read_image(root / "corpus" / row["image"]).values[0].astype(float)
        label = read_image(root / "corpus" / row["label"].replace("labels/", "labels_ign/")).values[0]
        water = np.where(label == 255, -1, (label > 0).astype(int))
        yield from cut(10 ** ((grey / 8 - 28) / 10), water)


def kompsat5(root: Path, band: int) -> Iterator[Tile]:
    for path in sorted((root / "real_data/kompsat5_oslo/img").glob("*.tif")):
        label = read_image(path.parents[1] / "mask" / f"{path.stem}.png").values[0]
        share = average((label > 0).astype(float), 8)
        yield from cut(average(read_image(path).values[0].astype(float), 8), np.rint(share).astype(int))


def gaofen3(root: Path, band: int) -> Iterator[Tile]:
    for path in sorted((root / "real_data/gf3_gaofen2020").glob(f"*_{('HH', 'HV')[band]}.tiff")):
        yield from cut(average(read_image(path).values[0].astype(float) ** 2, 2))


def airsar(root: Path, band: int) -> Iterator[Tile]:
    t3 = np.load(root / "real_data/airsar_sanfrancisco/t3.npz")
    label = read_image(root / "real_data/airsar_sanfrancisco/label_common4.png").values[0].astype(int)
    water = np.where(label == 255, -1, (label == 0).astype(int))
    cross = t3["rho12_re"] * np.sqrt(t3["T11"] * t3["T22"])
    yield from cut(((t3["T11"] + t3["T22"]) / 2 + (cross, -cross)[band]).astype(float), water)


REAL = {
    "Sentinel-1 VV, sen1floods11": (sen1floods11, 0),
    "Sentinel-1 VH, sen1floods11": (sen1floods11, 1),
    "Sentinel-1 VV, terramind": (terramind, 0),
    "Sentinel-1 VH, terramind": (terramind, 1),
    "Sentinel-1, ombria": (ombria, 0),
    "KOMPSAT-5 X HH, 9 m": (kompsat5, 0),
    "Gaofen-3 C HH, averaged": (gaofen3, 0),
    "AIRSAR L HH, filtered": (airsar, 0),
}

SIMULATED = {
    "one sensor, default (3 m)": SimulatorConfig(),
    "one sensor, default at 10 m": SimulatorConfig(resolution_m=10.0),
    "landscape, default radar, 10 m": SimulatorConfig(resolution_m=10.0, ground="landscape"),
    "wide, about 10 m": SimulatorConfig(resolution_m=10.0, sensors="wide"),
}


def simulated(config: SimulatorConfig, count: int) -> list[Tile]:
    """Tiles that are whole: scenes without a swath's edge."""
    tiles = []
    for index in range(count):
        scene = simulate(config, index)
        if (scene.mask != 255).all():
            tiles.append(Tile(scene.intensity, (scene.mask == WATER).astype(int)))
    return tiles


def picture(real: dict[str, list[Tile]], target: Path) -> None:
    """Three rows of real tiles, three of the wide mixture's, each stretched from 2 to 99 % in dB."""
    chosen = [tile for tiles in real.values() for tile in tiles[:: max(1, len(tiles) // 4)][:4]]
    shown = chosen[::2][:18] + simulated(SIMULATED["wide, about 10 m"], 24)[:18]
    figure, axes = plt.subplots(len(shown) // 9 + (len(shown) % 9 > 0), 9, figsize=(9, 4.1))
    for axis in axes.flat:
        axis.axis("off")
    for axis, tile in zip(axes.flat, shown, strict=False):
        level_db = 10 * np.log10(np.maximum(tile.intensity, 1e-9))
        low, high = np.percentile(level_db, (2, 99))
        axis.imshow(level_db, cmap="gray", vmin=low, vmax=high)
    figure.subplots_adjust(0, 0, 1, 1, 0.02, 0.02)
    figure.savefig(target, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/reports/simulator-realism"))
    parser.add_argument(
        "--figure", type=Path, help="where a picture of both goes; it is not part of the report"
    )
    parser.add_argument("--tiles", type=int, default=TILES)
    arguments = parser.parse_args()
    real = {name: list(load(arguments.real, band)) for name, (load, band) in REAL.items()}
    rows = [
        {"set": name, "": "real"} | measures(tiles[:: max(1, len(tiles) // arguments.tiles)])
        for name, tiles in real.items()
    ]
    for name, config in SIMULATED.items():
        rows.append({"set": name, "": "simulated"} | measures(simulated(config, arguments.tiles)))
    if arguments.figure:
        picture(real, arguments.figure)
    notes = [
        "Medians over tiles of 128 pixels, and where it says so their 10th and 90th percentile. Each measure "
        "is described in bench.experiments.simulator_realism.",
        "AIRSAR was speckle-filtered upstream, ombria is an 8-bit copy; Gaofen-3 of unknown pixel size is "
        "averaged by two. None of the images is part of this project.",
    ]
    print(write_report(arguments.out, "Simulated scenes beside real SAR", rows, notes))


if __name__ == "__main__":
    main()
