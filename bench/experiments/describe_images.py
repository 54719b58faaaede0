"""The descriptors of every image an index lists, as a table: what the router is told of real sensors.

    python -m bench.experiments.describe_images --index FOLDER/index.csv [--out FOLDER]

The index is a CSV with columns image (a path beside it), sensor, band, polarization, region and values, the
last saying in words what the pixels are: with «dB», «intensity» or «complex» in it, else amplitude.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from bench.experiments.single_look import looks_by_sub_looks, uniform_ground, without_empty_border
from bench.speed.harness import write_report
from crossearth_sar import sar_descriptors
from crossearth_sar.data.files.amplitude import ValueKind, to_amplitude
from crossearth_sar.data.files.readers import read_image


def kind_of(values: str) -> ValueKind:
    """What the index's words declare."""
    if "complex64" in values:
        return "complex"
    if "db" in values.lower():
        return "db"
    return "intensity" if "intensity" in values or "T11" in values else "amplitude"


def describe(path: Path, values: str) -> list[dict[str, str]]:
    """A row per band: descriptors of the amplitude, and the ENL of the intensity in the linear domain."""
    keys = ["T11", "T22", "T33"] if path.suffix == ".npz" else [None]
    rows = []
    for key in keys:
        raw = read_image(path, array_key=key)
        amplitude = torch.from_numpy(
            to_amplitude(raw.values, kind_of(values), valid=raw.valid, name=str(path))
        )
        for band in range(amplitude.shape[0]):
            image = amplitude[None, band : band + 1]
            entropy, enl, roughness = sar_descriptors(image)[0].tolist()
            linear = float(sar_descriptors(image.square(), enl_domain="linear")[0, 1])
            row = {
                "band of file": key or str(band),
                "entropy": f"{entropy:.4f}",
                "ENL of X'": f"{enl:.4g}",
                "roughness": f"{roughness:.3g}",
                "ENL of intensity": f"{linear:.3f}",
                "ENL, median of 16 x 16 blocks": f"{block_looks(image):.3f}",
                "single look: ENL of uniform ground": "",
                "single look: by sub-looks": "",
            }
            if kind_of(values) == "complex":
                slc = without_empty_border(raw.values[band])
                row["single look: ENL of uniform ground"] = f"{uniform_ground(slc).looks:.3f}"
                row["single look: by sub-looks"] = f"{sum(looks_by_sub_looks(slc)) / 2:.3f}"
            rows.append(row)
    return rows


def block_looks(image: torch.Tensor, block: int = 16) -> float:
    """Median over blocks of mean^2 / variance of the intensity: the looks where ground is uniform."""
    height, width = (side // block * block for side in image.shape[-2:])
    blocks = image[0, :, :height, :width].square().double().unfold(1, block, block).unfold(2, block, block)
    variance, mean = torch.var_mean(blocks.flatten(3), dim=3, correction=0)
    seen = variance > 0
    return float((mean.square()[seen] / variance[seen]).median()) if bool(seen.any()) else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/reports/descriptors-real"))
    arguments = parser.parse_args()
    with arguments.index.open(encoding="utf-8", newline="") as file:
        index = list(csv.DictReader(file))
    rows = []
    for entry in index:
        origin = {key: entry[key] for key in ("sensor", "band", "polarization", "region")}
        for described in describe(arguments.index.parent / entry["image"], entry["values"]):
            rows.append({"image": Path(entry["image"]).name, **origin, **described})
    notes = [
        "Entropy in nats, at most ln 36 = 3.584. Descriptors of the linear amplitude, as the model sees it.",
        "The ENL of a whole scene's intensity counts its texture as speckle; the median over small blocks is "
        "nearer the number of looks.",
        "Of single-look complex images two estimates that ground does not spoil, or less "
        "(bench/experiments/single_look.py; more in descriptors-single-look): both should be 1.",
    ]
    print(write_report(arguments.out, "Descriptors of real images", rows, notes))


if __name__ == "__main__":
    main()
