"""Small made-up images in the layout of the real ones: OMBRIA, KOMPSAT-5 and AIRSAR, no other set."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

SIDE = 48
INDEX = ("dataset", "image", "label", "trust")


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """dB of a dark half, which is water, beside a bright one, and its labels."""
    rng = np.random.default_rng(seed)
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[:, : SIDE // 2] = 1
    return np.where(label, -20.0, -8.0) + rng.normal(0, 1.0, label.shape), label


def write_index(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, INDEX)
        writer.writeheader()
        writer.writerows(rows)


def write_real(folder: Path) -> Path:
    """corpus/ and real_data/ below `folder`; one image of OMBRIA is to be distrusted."""
    corpus, data = folder / "corpus", folder / "real_data"
    for part in ("images", "labels_ign"):
        (corpus / "ombria" / part).mkdir(parents=True)
    rows = []
    for number, name in enumerate(("te0001", "te0002", "te0003", "tr0001", "tr0002")):
        decibels, label = scene(number)
        label[0, 0] = 255
        values = ((decibels + 28) * 8).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(values).save(corpus / f"ombria/images/{name}.png")
        Image.fromarray(label).save(corpus / f"ombria/labels_ign/{name}.png")
        trust = "no" if name == "te0003" else "yes"
        rows.append(
            {"dataset": "ombria", "image": f"ombria/images/{name}.png", "trust": trust}
            | {"label": f"ombria/labels/{name}.png"}
        )
    write_index(corpus, rows)
    (data / "kompsat5_oslo").mkdir(parents=True)
    (data / "airsar_sanfrancisco").mkdir()
    decibels, label = scene(9)
    large = np.kron(10 ** (decibels / 10) * 1e5, np.ones((9, 9))).round().astype(np.uint16)
    tifffile.imwrite(data / "kompsat5_oslo" / "a.tif", large)
    Image.fromarray(np.kron(label, np.ones((9, 9), np.uint8))).save(data / "kompsat5_oslo" / "a.png")
    write_index(
        data, [{"dataset": "kompsat5_oslo", "image": "kompsat5_oslo/a.tif", "label": "kompsat5_oslo/a.png"}]
    )
    intensity = (10 ** (decibels / 10)).astype(np.float32)
    airsar = data / "airsar_sanfrancisco"
    np.savez(airsar / "t3.npz", T11=intensity, T22=intensity, T33=intensity, rho12_re=0 * intensity)
    Image.fromarray(np.where(label, 0, 2).astype(np.uint8)).save(airsar / "label_common4.png")
    return folder
