"""The ten pre-training sources, each read from a small tree in its layout, mapped onto the seven classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_trees import AIR_1_COLORS, save, speckle, stripes
from PIL import Image

from crossearth_sar.data.datasets.official import OfficialDataset
from crossearth_sar.data.datasets.pretraining import PRETRAINING_SOURCES
from crossearth_sar.data.datasets.published import open_spec
from crossearth_sar.data.datasets.tasks import SEVEN_CLASS_TASK
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError

ROWS = {key: source.spec for key, source in PRETRAINING_SOURCES.items()}

UNLABELLED = {
    "QXS-SAROPT": ["sar_256_oc_0.2/1.png", "sar_256_oc_0.2/2.png"],
    "WHU-SEN-City": ["beijing/sar/a.png", "wuhan/sar/a.png"],
    "SEN12": [
        "ROIs1158_spring/s1_0/ROIs1158_spring_s1_0_p30.png",
        "ROIs1970_fall/s1_1/ROIs1970_fall_s1_1_p2.png",
    ],
    "OSdataset": ["512/train/sar1.png", "512/val/sar1.png"],
    "SARptical": ["sar/1.png", "sar/2.png"],
    "CrossEarth-OPT-SAR": ["sar/1.tif", "sar/2.tif"],
}
LABELLED = {
    "DDHR-X": ("256_cloud/GF3/{}.jpg", "256_cloud/label/{}.png"),
    "MPOLSAR-1.0": ("images/{}.tif", "labels/{}.png"),
    "AIR-MDSAR-Map": ("images/{}.tif", "labels/{}.png"),
}


def test_every_source_is_tried_here() -> None:
    assert {*UNLABELLED, *LABELLED, "AIR-PolSAR-Seg-1.0"} == set(ROWS)
    assert {key for key, source in PRETRAINING_SOURCES.items() if source.labels_are == "pseudo"} == set(
        UNLABELLED
    )


@pytest.mark.parametrize("key", UNLABELLED)
def test_pseudo_labels_mirror_the_images(key: str, tmp_path: Path) -> None:
    for i, name in enumerate(UNLABELLED[key]):
        save(tmp_path / key / name, speckle((64, 64), i))
        label = (tmp_path / "pseudo" / name).with_suffix(".png")
        save(label, np.where(stripes(64, 64, 4) == 3, 255, stripes(64, 64, 4) + i).astype(np.uint8))
    bare = OfficialDataset(ROWS[key], tmp_path, "all")
    assert (bare[0]["mask"] == IGNORE_INDEX).all()
    assert len(set(bare.names)) == 2
    taught = OfficialDataset(ROWS[key], tmp_path, "all", pseudo_labels=tmp_path / "pseudo")
    assert [int(taught[i]["mask"][0, 0]) for i in range(2)] == [0, 1]
    assert set(taught[1]["mask"].unique().tolist()) == {1, 2, 3, IGNORE_INDEX}
    assert taught.classes.names == SEVEN_CLASS_TASK.classes.names
    label.unlink()
    with pytest.raises(InputError, match="1 of 2 pseudo labels are missing"):
        OfficialDataset(ROWS[key], tmp_path, "all", pseudo_labels=tmp_path / "pseudo")


@pytest.mark.parametrize("key", LABELLED)
def test_real_labels_become_the_seven_classes(key: str, tmp_path: Path) -> None:
    spec = open_spec(key)
    image, label = LABELLED[key]
    codes = stripes(200, 200, len(spec.classes))
    if spec.label_palette:
        colors = np.array([spec.label_palette[name] for name in spec.classes], np.uint8)
        codes = colors[codes]
    for i in range(5):
        save(tmp_path / key / image.format(i), speckle((200, 200), i))
        (tmp_path / key / label.format(i)).parent.mkdir(exist_ok=True)
        Image.fromarray(codes).save(tmp_path / key / label.format(i))
    dataset = OfficialDataset(spec, tmp_path, "all", part="test", task=SEVEN_CLASS_TASK)
    assert len(dataset) == 1
    names = {dataset.classes.names[i] for i in dataset[0]["mask"].unique().tolist()}
    assert names == set(spec.maps["seven"].values())


def test_channels_of_air_polsar_seg_1(tmp_path: Path) -> None:
    root = tmp_path / "AIR-PolSAR-Seg-1.0"
    for k, channel in enumerate(("HH", "HV", "VH", "VV")):
        path = root / "train_set" / f"AIR-PolarSAR-Seg-1_{channel}.tiff"
        save(path, np.full((96, 96), 10 * (k + 1), np.uint16))
    colors = AIR_1_COLORS[stripes(96, 96, 6)]
    colors[90:] = 0
    save(root / "train_set" / "AIR-PolarSAR-Seg-1_gt.png", colors)
    spec = open_spec("AIR-PolSAR-Seg-1.0")
    sample = OfficialDataset(spec, tmp_path, "all", task=SEVEN_CLASS_TASK)[0]
    assert sample["image"][:, 0, 0].tolist() == [10, 20, 40]
    assert OfficialDataset(spec, tmp_path, "VH")[0]["image"][:, 0, 0].tolist() == [30]
    stripe = [SEVEN_CLASS_TASK.classes.names[i] for i in sample["mask"][0, ::16].tolist()]
    assert stripe == ["building", "forest", "agricultural", "water", "building", "background"]
    assert set(sample["mask"][90:].unique().tolist()) == {IGNORE_INDEX}, "black"
