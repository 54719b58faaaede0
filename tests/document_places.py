"""What the commands of the documents read: small trees where the documents name folders of a user.

Each function gets the folder a command runs in and makes what is not there yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import sar_files
import tifffile
import yaml
from dataset_trees import air, ddhr, sarbud, save
from documents import blocks

from crossearth_sar.evaluation.registry import benchmark
from crossearth_sar.model import build_model, save_model

SMALL_MODEL: dict[str, Any] = {
    "crop_size": 128,
    "crop_stride": 128,
    "vit": {"dim": 32, "num_heads": 2, "patch_size": 32, "image_size": 128, "stem": ()},
    "decoder": {
        "channels": 32, "num_queries": 6, "pixel_layers": 1, "pixel_ffn_dim": 32, "query_layers": 1,
        "query_ffn_dim": 32, "num_points": 64,
    },
}  # fmt: skip

SEVEN = ("building", "road", "water", "barren", "forest", "agricultural", "background")

ADAPTER = """
import torch

def build(num_classes, device):
    levels = torch.arange(num_classes).view(1, -1, 1, 1) * 40.0
    return lambda image: (image.mean(1, keepdim=True) - levels).abs().neg()[..., ::8, ::8]
"""


ENCODER = """
import torch

def build(pretrained, device):
    torch.manual_seed(1)
    weight = torch.ones(2, 1, 8, 8) if pretrained else torch.randn(2, 1, 8, 8)
    return lambda image, db_mean, db_std: torch.nn.functional.conv2d(image[:, :1].log1p(), weight, stride=8)
"""


def own_images(place: Path) -> None:
    """README's «Your own images» as my.yaml, and the folder it names, below the place instead of /data."""
    (block,) = (b for b in blocks("yaml") if b.document == "README.md")
    text = block.text.replace("/data/my-sensor", "my-sensor")
    (place / "my.yaml").write_text(text, encoding="utf-8")
    if not (place / "my-sensor").exists():
        for i in range(5):
            decibels = _decibels(i, 1)[0]
            decibels[:4, :4] = 0  # what the config calls nodata
            save(place / "my-sensor" / "images" / f"{i}.tif", decibels)
            save(place / "my-sensor" / "labels" / f"{i}.png", (decibels < -10).astype(np.uint8))
    backbone(place)


def own_archive(place: Path) -> None:
    """docs/SELF_SUPERVISED.md's archive as archive.yaml, and its images below the place instead of /data."""
    (block,) = (b for b in blocks("yaml") if "name: archive" in b.text)
    (place / "archive.yaml").write_text(block.text.replace("/data/archive", "archive"), encoding="utf-8")
    for i in range(2):
        decibels = _decibels(i, 1)[0]
        save(place / "archive" / "s1" / f"{i}.tif", decibels)
        save(place / "archive" / "display" / f"{i}.png", np.clip(4 * decibels + 120, 1, 255).astype(np.uint8))


def archive_and_labels(place: Path) -> None:
    """The archive, and my.yaml with its images."""
    own_archive(place)
    own_images(place)


def two_models(place: Path) -> None:
    """my.yaml with its images, and two models for them."""
    own_images(place)
    for name in ("cpt", "finetune"):
        model_folder(place / "runs" / name / "model", 2)


def own_domains(place: Path) -> None:
    """docs/BENCHMARKS.md's domains.yaml, with its images, and two models of seven classes."""
    (block,) = (b for b in blocks("yaml") if "name: my-lake" in b.text)
    (place / "domains.yaml").write_text(block.text.replace("/data", "data"), encoding="utf-8")
    if not (place / "data" / "lake").exists():
        for i in range(2):
            decibels = _decibels(i, 1)[0]
            save(place / "data" / "lake" / "images" / f"{i}.tif", decibels)
            save(place / "data" / "lake" / "labels" / f"{i}.png", (decibels < -10).astype(np.uint8))
    for name in ("a", "b"):
        model_folder(place / "runs" / name / "model", 7, named=True)


def probed_domains(place: Path) -> None:
    """docs/BENCHMARKS.md's probe.yaml with its images, a model and another package's encoder."""
    (block,) = (b for b in blocks("yaml") if "name: my-coast" in b.text)
    (place / "probe.yaml").write_text(block.text.replace("/data", "data"), encoding="utf-8")
    for name, count in (("rivers", 8), ("coast", 2)):
        for i in range(0 if (place / "data" / name).exists() else count):
            decibels = _decibels(count + i, 1)[0]
            save(place / "data" / name / "images" / f"{i}.tif", decibels)
            save(place / "data" / name / "labels" / f"{i}.png", (decibels < -10).astype(np.uint8))
    model_folder(place / "runs" / "a" / "model", 7, named=True)
    package = place / "mypackage"
    package.mkdir(exist_ok=True)
    (package / "myencoder.py").write_text(ENCODER, encoding="utf-8")


def sweep(place: Path) -> None:
    """my.yaml, and docs/TRAINING.md's sweep.yaml with one trial."""
    own_images(place)
    (block,) = (b for b in blocks("yaml") if "trials: 20" in b.text)
    (place / "sweep.yaml").write_text(block.text.replace("trials: 20", "trials: 1"), encoding="utf-8")


def backbone(place: Path) -> None:
    """BACKBONE: a model folder of this package."""
    model_folder(place / "backbone", 2)


def model_folder(folder: Path, num_classes: int, *, named: bool = False) -> None:
    if not folder.exists():
        model = build_model("crossearth_sar_tiny", num_classes, changes=SMALL_MODEL)
        if named:
            model.name_classes(SEVEN)
        save_model(model, folder)


def benchmarks(place: Path) -> None:
    """Two of the six datasets, and BACKBONE."""
    if not (place / "data" / "DDHR-SK").exists():
        air(place / "data")
        ddhr(place / "data", patches=2)
    backbone(place)


def one_target(place: Path) -> None:
    """A data root where the images of one row's target are, and that row's model."""
    if not (place / "one").exists():
        sarbud(place / "one", patches=2)
    classes = len(benchmark("A2S").classes.classes.names)
    model_folder(place / "runs" / "finetune-A2S" / "model", classes)
    package = place / "mypackage"
    package.mkdir(exist_ok=True)
    (package / "mymodel.py").write_text(ADAPTER, encoding="utf-8")


def water(place: Path) -> None:
    """What the recipe finetune_water reads, and BACKBONE."""
    root = place / "data"
    if not (root / "sen1floods11").exists():
        for i, region in enumerate(("Ghana", "Mekong", "Pakistan", "Spain", "Somalia", "USA")):
            decibels = _decibels(i, 2)
            save_bands(root / "sen1floods11" / "S1" / f"{region}_{i}_S1Hand.tif", decibels)
            label = np.where(decibels[0] < -10, 1, 0).astype(np.int16)
            save(root / "sen1floods11" / "Labels" / f"{region}_{i}_LabelHand.tif", label)
        power = 10 ** (_decibels(7, 1)[0] / 10)
        is_water = (power < 0.1).astype(np.uint8)
        save(root / "kompsat5_oslo" / "img" / "a.tif", (power * 1000).astype(np.uint16))
        save(root / "kompsat5_oslo" / "mask" / "a.png", is_water)
        (root / "airsar").mkdir()
        np.save(root / "airsar" / "HH.npy", np.sqrt(power).astype(np.float32))
        save(root / "airsar" / "label_all.png", 1 - is_water)
    backbone(place)


def scenes(place: Path) -> None:
    """Scenes of two kinds, and trained models of seven classes."""
    for folder in ("runs/cpt/model", "runs/finetune/model"):
        model_folder(place / folder, 7, named=True)
    for i in range(2):
        save(place / "scenes" / f"{i}.tif", _decibels(i, 1)[0])
        save(place / "scenes" / "2026" / f"s1_{i}.tif", _decibels(i, 1)[0])
    save(place / "scene.tif", _decibels(0, 1)[0])
    rng = np.random.default_rng(0)
    scene = rng.normal(size=(130, 70)) + 1j * rng.normal(size=(130, 70))
    np.save(place / "scene.npy", scene.astype(np.complex64))


def products(place: Path) -> None:
    """docs/DATA.md's files, as tests/sar_files.py writes them, in some 60 x 50 pixels."""
    if (place / "C3").exists():
        return
    sar_files.envi_c3(place)
    sar_files.safe(place, "S1A_IW_GRDH.SAFE")
    sar_files.nisar_gcov(place)
    sar_files.sicd(place, name="umbra.nitf")
    sar_files.pair(place / "rtc", "a", ("VV", "VH"))
    amplitude = sar_files.amplitudes(1)[0]
    save(place / "alos2.tif", amplitude)
    phase = np.exp(2j * np.pi * np.random.default_rng(0).random(amplitude.shape))
    values = (amplitude * phase).astype(np.complex64)
    parts = np.stack([values.real, values.imag]).astype(np.int16)
    save_bands(place / "gf3.tiff", parts)
    sar_files.iceye(place / "iceye.h5", parts)
    save(place / "capella.tif", values)


def teachers(place: Path) -> None:
    """Optical twins under three roofs, a teacher that knows the seven classes and one of three classes."""
    model_folder(place / "seven", 7, named=True)
    model_folder(place / "three", 3)
    (block,) = (b for b in blocks("yaml") if b.document == "docs/PSEUDO_LABELS.md")
    (place / "map.yaml").write_text(block.text, encoding="utf-8")
    rng = np.random.default_rng(0)
    pairs = {
        "pairs": ("sar/1", "opt/1"),
        "data/SEN12": ("ROIs1_a/s1_3/ROIs1_a_s1_3_p1", "ROIs1_a/s2_3/ROIs1_a_s2_3_p1"),
    }
    for root, (sar, optical) in pairs.items():
        save(place / root / f"{sar}.png", rng.integers(1, 255, (64, 64), dtype=np.uint8))
        save(place / root / f"{optical}.png", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))


def label_maps(place: Path) -> None:
    """Label maps of four teachers that agree on half of the pixels."""
    for shift, name in enumerate("abcd"):
        label = np.zeros((8, 8), np.uint8)
        label[4:] = shift
        save(place / "runs" / f"pseudo-{name}" / "1.png", label)


def mixture(place: Path) -> None:
    """docs/TRAINING.md's mixture as my.yaml, with a validation domain beside it, and its data."""
    (block,) = (b for b in blocks("yaml") if "name: two-sources" in b.text)
    settings = yaml.safe_load(block.text)
    (place / "my.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    rng = np.random.default_rng(0)
    for i in range(3):
        label = np.broadcast_to((np.arange(256) % 7).astype(np.uint8), (256, 256))
        image = rng.integers(1, 255, (256, 256), dtype=np.uint8)
        save(place / "QXS-SAROPT" / "sar_256_oc_0.2" / f"{i}.png", image)
        save(place / "pseudo" / "QXS-SAROPT" / "labels" / "sar_256_oc_0.2" / f"{i}.png", label)
        save(place / "own" / "images" / f"{i}.tif", rng.random((140, 140), dtype=np.float32) + 0.1)
        save(place / "own" / "labels" / f"{i}.png", label[:140, :140])


def save_bands(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="separate")


def _decibels(seed: int, bands: int) -> np.ndarray:
    """(bands, 128, 128) float32: a dark and a bright half, in single-look speckle."""
    speckle = np.random.default_rng(seed).exponential(size=(bands, 128, 128))
    level = np.where(np.arange(128) < 64, 0.01, 0.5)
    return (10 * np.log10(speckle * level + 1e-6)).astype(np.float32)
