"""Datasets found by pattern and by index, all that can be wrong with one, and real ones where they exist."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from crossearth_sar.config import from_mapping, read_yaml, to_mapping, write_yaml
from crossearth_sar.data.datasets import folder_scenes
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.datasets.folder_scenes import FolderScenes
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError

REAL_DATA = Path(__file__).resolve().parents[4] / "shared" / "real_data"

NAMES = ("Ghana_1", "Mekong_2", "Spain_3")
RNG = np.random.default_rng(0)


def write_floods(root: Path, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """A set laid out as Sen1Floods11: dB, two bands, labels -1 0 1. Returns its config as a mapping."""
    size = 40, 50
    for folder_name in ("S1", "Labels"):
        (root / folder_name).mkdir()
    for name in names:
        image = RNG.normal(-12, 3, (2, *size)).astype(np.float32)
        tifffile.imwrite(
            root / "S1" / f"{name}_S1Hand.tif",
            image,
            photometric="minisblack",
            planarconfig="separate",
            compression="lzw",
        )
        label = RNG.integers(-1, 2, size).astype(np.int16)
        tifffile.imwrite(root / "Labels" / f"{name}_LabelHand.tif", label)
    return {
        "root": str(root),
        "images": "S1/*_S1Hand.tif",
        "labels": "Labels/*_LabelHand.tif",
        "values": "db",
        "classes": ["other", "water"],
        "label_values": {-1: "ignore", 0: "other", 1: "water"},
    }


def open_scenes(mapping: dict[str, Any], **changes: Any) -> FolderScenes:
    return FolderScenes(from_mapping(FolderConfig, {**mapping, **changes}))


def refusal(mapping: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(InputError) as error:
        open_scenes(mapping, **changes)
    return str(error.value)


def replace_image(root: Path, name: str, values: np.ndarray) -> None:
    tifffile.imwrite(
        root / "S1" / f"{name}_S1Hand.tif",
        values,
        photometric="minisblack",
        planarconfig="separate" if values.ndim == 3 else None,
    )


def test_images_and_labels_found_by_pattern(tmp_path: Path) -> None:
    scenes = open_scenes(write_floods(tmp_path))
    assert len(scenes) == 3
    assert scenes.classes.names == ("other", "water")
    for name, sample in zip(NAMES, scenes, strict=True):
        raw = tifffile.imread(tmp_path / "S1" / f"{name}_S1Hand.tif").astype(np.float64)
        label = tifffile.imread(tmp_path / "Labels" / f"{name}_LabelHand.tif")
        assert sample["name"] == f"{name}_S1Hand"
        assert sample["image"].dtype == torch.float32
        assert sample["mask"].dtype == torch.int64
        np.testing.assert_allclose(sample["image"].numpy(), 10 ** (raw / 20), rtol=1e-5)
        assert np.array_equal(sample["mask"].numpy(), np.where(label < 0, IGNORE_INDEX, label))


def test_config_survives_yaml(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    mapping = {**write_floods(tmp_path / "set"), "bands": [1], "tile": 32, "names": ["Spain", "Ghana"]}
    config = from_mapping(FolderConfig, mapping)
    write_yaml(config, tmp_path / "config.yaml")
    assert from_mapping(FolderConfig, read_yaml(tmp_path / "config.yaml")) == config
    assert from_mapping(FolderConfig, to_mapping(config)) == config


def test_several_stars_are_carried_over_in_order(tmp_path: Path) -> None:
    for name in ("JiuJiang_01_SAR_001", "Hefei_02_SAR_007"):
        for kind in ("SAR", "LAB"):
            (tmp_path / kind.lower()).mkdir(exist_ok=True)
            values = np.full((20, 20), int(name[-1]) % 2, np.uint8)
            Image.fromarray(values).save(tmp_path / kind.lower() / f"{name.replace('SAR', kind)}.png")
    scenes = open_scenes(
        {
            "root": str(tmp_path),
            "images": "./sar/*_SAR_*.png",
            "labels": "lab/*_LAB_*.png",
            "values": "amplitude",
            "classes": ["a", "b"],
        }
    )
    assert [s["name"] for s in scenes] == ["Hefei_02_SAR_007", "JiuJiang_01_SAR_001"]
    assert (scenes[0]["mask"] == 1).all()


def test_names_split_by_region(tmp_path: Path) -> None:
    mapping = write_floods(tmp_path)
    kept = open_scenes(mapping, exclude=["Spain"])
    assert [s["name"] for s in kept] == ["Ghana_1_S1Hand", "Mekong_2_S1Hand"]
    kept = open_scenes(mapping, names=["Spain", "Mekong"])
    assert [s["name"] for s in kept] == ["Mekong_2_S1Hand", "Spain_3_S1Hand"]
    message = refusal(mapping, exclude=["spain"])
    assert "exclude: no image name contains 'spain'" in message
    assert "Spain_3_S1Hand" in message
    assert "leaves no image" in refusal(mapping, names=["Spain"], exclude=["Spain"])


def write_index(root: Path) -> dict[str, Any]:
    write_floods(root)
    with (root / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "picture", "truth", "note"])
        for name in NAMES:
            writer.writerow(["floods", f"S1/{name}_S1Hand.tif", f"Labels/{name}_LabelHand.tif", "two, words"])
        writer.writerow(["other", "gone.tif", "", ""])
        writer.writerow(["bare", f"S1/{NAMES[0]}_S1Hand.tif", "", ""])
    return {
        "root": str(root),
        "index": "index.csv",
        "image_column": "picture",
        "label_column": "truth",
        "where": {"set": "floods"},
        "values": "db",
        "classes": ["other", "water"],
        "label_values": {-1: "ignore", 0: "other", 1: "water"},
    }


def test_images_and_labels_found_by_index(tmp_path: Path) -> None:
    mapping = write_index(tmp_path)
    assert [s["name"] for s in open_scenes(mapping)] == [f"{name}_S1Hand" for name in NAMES]
    (unlabelled,) = open_scenes(mapping, where={"set": "bare"})
    assert (unlabelled["mask"] == IGNORE_INDEX).all()
    assert (open_scenes(mapping, label_column=None)[0]["mask"] == IGNORE_INDEX).all()


def test_ground_spacings_of_an_index(tmp_path: Path) -> None:
    """A cell goes over the file, the setting over both; an empty cell says nothing."""
    mapping = write_index(tmp_path)
    lines = (tmp_path / "index.csv").read_text(encoding="utf-8").splitlines()
    metres = ["metres", "10", "2.5", "", "", ""]
    joined = "\n".join(f"{line},{cell}" for line, cell in zip(lines, metres, strict=True))
    (tmp_path / "index.csv").write_text(joined, encoding="utf-8")
    assert [s.get("pixel_m") for s in open_scenes(mapping, pixel_m_column="metres")] == [10, 2.5, None]
    assert {s.get("pixel_m") for s in open_scenes(mapping, pixel_m_column="metres", pixel_m=4.0)} == {4}
    assert {s.get("pixel_m") for s in open_scenes(mapping)} == {None}
    assert "no column 'meters' (did you mean 'metres'?)" in refusal(mapping, pixel_m_column="meters")
    (tmp_path / "index.csv").write_text(joined.replace("2.5", "fine"), encoding="utf-8")
    assert "row 3: 'fine'" in refusal(mapping, pixel_m_column="metres")


def test_index_complaints(tmp_path: Path) -> None:
    mapping = write_index(tmp_path)
    assert "cannot read the index" in refusal(mapping, index="none.csv")
    assert "no column 'pictur' (did you mean 'picture'?)" in refusal(mapping, image_column="pictur")
    message = refusal(mapping, where={"set": "flood"})
    assert "set: bare, floods, other" in message
    message = refusal(mapping, where={"set": "other"})
    assert "gone.tif does not exist" in message
    assert "S1/" in message
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00broken")
    assert "is no CSV file" in refusal(mapping)


def test_a_set_without_labels_is_for_prediction(tmp_path: Path) -> None:
    scenes = open_scenes(write_floods(tmp_path), labels=None)
    assert len(scenes) == 3
    assert (scenes[0]["mask"] == IGNORE_INDEX).all()


def test_rgb_labels_and_a_palette(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(tmp_path / "a_sar.png")
    colours = np.zeros((20, 30, 3), np.uint8)
    colours[:, 10:] = 0, 0, 255
    Image.fromarray(colours).save(tmp_path / "a_lab.png")
    scenes = open_scenes(
        {
            "root": str(tmp_path),
            "images": "*_sar.png",
            "labels": "*_lab.png",
            "values": "amplitude",
            "classes": ["other", "water"],
            "palette": [[9, 9, 9], [0, 0, 255]],
            "label_palette": {"other": [[0, 0, 0], [255, 0, 0], [0, 255, 0]], "water": [0, 0, 255]},
        }
    )
    assert scenes[0]["mask"][0].tolist() == [0] * 10 + [1] * 20
    assert scenes.classes.palette == ((9, 9, 9), (0, 0, 255))


def test_colours_of_compressed_labels(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "a.png")
    colors = np.zeros((8, 8, 3), np.uint8)
    colors[:, 4:] = 4, 3, 250
    colors[0, 0] = 120
    Image.fromarray(colors).save(tmp_path / "a_label.png")
    settings = {"root": str(tmp_path), "images": "a.png", "labels": "a_label.png", "values": "amplitude"}
    palette = {"other": [0, 0, 0], "water": [0, 0, 255]}
    mapping = {**settings, "classes": ["other", "water"], "label_palette": palette}
    mask = open_scenes(mapping, label_tolerance=12)[0]["mask"]
    assert mask[0].tolist() == [IGNORE_INDEX] + [0] * 3 + [1] * 4
    assert "[4, 3, 250] (32 pixels)" in refusal(mapping)


def test_invalid_pixels_are_filled_and_ignored(tmp_path: Path) -> None:
    mapping = write_floods(tmp_path)
    values = RNG.normal(-12, 3, (2, 40, 50)).astype(np.float32)
    measured = 10 ** (values / 20)
    values[1, 3, 4], values[0, 5, 6] = np.nan, -9999
    replace_image(tmp_path, "Ghana_1", values)
    sample = open_scenes(mapping, nodata=-9999)[0]
    assert sample["mask"][3, 4] == sample["mask"][5, 6] == IGNORE_INDEX
    image = sample["image"].numpy()
    for row, column in ((3, 4), (5, 6)):
        same = np.isclose(image[:, row, column, None, None], measured).all(0)
        assert same.sum() == 1, "both bands of one measured pixel"
        assert not same[row, column]
    (tile,) = (
        s for s in open_scenes(mapping, nodata=-9999, tile=32, names=["Ghana"]) if s["name"][-5:] == "y0_x0"
    )
    assert tile["mask"][3, 4] == IGNORE_INDEX
    assert np.isclose(tile["image"][0, 3, 4], measured[0, :32, :32]).any(), "of the same tile"
    assert "set nodata: -9999" in refusal(mapping)


def test_tiles_cover_every_pixel_and_shift_inward(tmp_path: Path) -> None:
    mapping = write_floods(tmp_path)
    whole, tiles = open_scenes(mapping), open_scenes(mapping, tile=16)
    assert len(tiles) == 3 * 3 * 4
    seen = torch.zeros(3, 40, 50)
    for sample in tiles:
        stem, y, x = sample["name"].rsplit("_", 2)
        top, left = int(y[1:]), int(x[1:])
        scene = NAMES.index(stem.removesuffix("_S1Hand"))
        assert torch.equal(sample["image"], whole[scene]["image"][:, top : top + 16, left : left + 16])
        assert torch.equal(sample["mask"], whole[scene]["mask"][top : top + 16, left : left + 16])
        seen[scene, top : top + 16, left : left + 16] += 1
    assert seen.min() >= 1
    assert [s["name"] for s in open_scenes(mapping, tile=64)] == [s["name"] for s in whole]


def test_a_sample_depends_on_its_index_alone(tmp_path: Path) -> None:
    tiles = open_scenes(write_floods(tmp_path), tile=32)
    first = tiles[0]["image"].clone()
    tiles[0]["image"].zero_()
    for index in (11, 5, 3):
        tiles[index]["mask"].zero_()
    assert torch.equal(tiles[0]["image"], first)
    assert torch.equal(pickle.loads(pickle.dumps(tiles))[0]["image"], first)
    with pytest.raises(IndexError):
        tiles[len(tiles)]


def test_same_names_in_two_folders_stay_apart(tmp_path: Path) -> None:
    for scene in ("north", "south"):
        (tmp_path / scene).mkdir()
        np.save(tmp_path / scene / "VV.npy", np.ones((20, 30)))
    scenes = open_scenes(
        {"root": str(tmp_path), "images": "*/VV.npy", "values": "intensity", "classes": ["a"]}
    )
    assert [s["name"] for s in scenes] == ["north__VV", "south__VV"]


def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path) -> None:
    mapping = write_floods(tmp_path)
    assert "is no folder" in refusal(mapping, root=str(tmp_path / "none"))
    message = refusal(mapping, images="S2/*_S1Hand.tif")
    assert "no image matches 'S2/*_S1Hand.tif'" in message
    assert "Labels/, S1/" in message
    assert "Ghana_1_S1Hand.tif" in refusal(mapping, images="S1/*.tiff", labels="Labels/*.tiff")
    (tmp_path / "Labels" / "Spain_3_LabelHand.tif").unlink()
    message = refusal(mapping)
    assert "Spain_3_LabelHand.tif does not exist" in message
    assert "Mekong_2_LabelHand.tif" in message
    assert "labels: null" in message


def test_problems_are_collected_and_fit_a_screen(tmp_path: Path) -> None:
    names = tuple(f"site_{i}" for i in range(9))
    mapping = write_floods(tmp_path, names)
    replace_image(tmp_path, "site_0", np.full((2, 41, 50), -9, np.float32))
    replace_image(tmp_path, "site_1", np.full((2, 40, 50), np.nan, np.float32))
    label = np.zeros((40, 50), np.int16)
    label[:2] = 7
    tifffile.imwrite(tmp_path / "Labels" / "site_2_LabelHand.tif", label)
    whole = (tmp_path / "S1" / "site_3_S1Hand.tif").read_bytes()
    (tmp_path / "S1" / "site_3_S1Hand.tif").write_bytes(whole[: len(whole) // 2])
    replace_image(tmp_path, "site_4", np.full((2, 40, 50), 900, np.float32))
    replace_image(tmp_path, "site_5", np.full((40, 50), -9, np.float32))
    message = refusal(mapping)
    assert "of 9 images: 6 problems" in message
    assert "and 1 more" in message
    assert len(message.splitlines()) <= 25
    for part in (
        "image 41 x 50, label 40 x 50",
        "site_1_S1Hand.tif has no valid pixel",
        "site_3_S1Hand.tif",
        "7 (100 pixels)",
        "add them to label_values",
        "6 images of 2",
    ):
        assert part in message
    assert "differ in their number of bands" in refusal(mapping, names=["site_5", "site_6"])
    assert "has no band 1" in refusal(mapping, names=["site_5", "site_6"], bands=[1])
    assert len(open_scenes(mapping, names=["site_5", "site_6"], bands=[0])) == 2
    assert "no decibels" in refusal(mapping, names=["site_4"])


def test_more_bands_than_the_model_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = write_floods(tmp_path)
    for name in NAMES:
        replace_image(tmp_path, name, RNG.normal(-12, 3, (4, 40, 50)).astype(np.float32))
    message = refusal(mapping)
    assert "Ghana_1_S1Hand.tif has more bands than the model reads" in message
    assert "bands: [0]" in message
    monkeypatch.setattr(folder_scenes, "DECODED_CHECKS", 0)
    assert "3 problems" in refusal(mapping), "headers of all are looked at"
    with pytest.raises(InputError, match="more bands than the model reads"):
        FolderScenes(from_mapping(FolderConfig, mapping), check=False)[0]
    assert open_scenes(mapping, bands=[3, 0])[0]["image"].shape == (2, 40, 50)


def test_values_declared_wrongly(tmp_path: Path) -> None:
    message = refusal(write_floods(tmp_path), values="intensity")
    assert "negative values" in message
    assert "Ghana_1_S1Hand.tif" in message
    assert "declare values: db" in message


def test_large_sets_are_sampled_and_still_refuse_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = write_floods(tmp_path)
    tifffile.imwrite(tmp_path / "Labels" / "Mekong_2_LabelHand.tif", np.full((40, 50), 9, np.int16))
    assert "9 (2000 pixels)" in refusal(mapping)
    monkeypatch.setattr(folder_scenes, "DECODED_CHECKS", 1)
    scenes = open_scenes(mapping)
    with pytest.raises(InputError, match=r"Mekong_2_LabelHand\.tif has values that stand for no class"):
        scenes[1]
    tifffile.imwrite(tmp_path / "Labels" / "Spain_3_LabelHand.tif", np.zeros((40, 51), np.int16))
    assert "differ in size" in refusal(mapping), "headers of all are looked at"
    unchecked = FolderScenes(from_mapping(FolderConfig, {**mapping, "tile": 16}), check=False)
    assert len(unchecked) == 36
    with pytest.raises(InputError, match="differ in size"):
        unchecked[35]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": None, "labels": None}, "needs either images or index"),
        ({"index": "a.csv"}, "got: both"),
        ({"images": "S1/a.tif"}, "differ in their number of '*'"),
        ({"images": "**/*.tif"}, "no pattern known here"),
        ({"where": {"a": "b"}}, "nothing beside images"),
        ({"tile": 4}, "at least 16 pixels"),
        ({"label_values": {1: "watr"}}, "did you mean 'water'?"),
        ({"label_values": {"x": "water"}}, "label_values"),
        ({"label_palette": {"water": [0, 0, 255]}}, "both given"),
        ({"values": "decibel"}, "'db'"),
        ({"palette": [[0, 0, 0]]}, "one colour per class"),
        ({"label_tolerance": 9}, "labels that are colours"),
        ({"bands": []}, "at least one band"),
        ({"bands": [0, 1, 2, 3]}, "at most 3"),
        ({"lables": "x"}, "did you mean 'labels'?"),
    ],
)
def test_configs_that_cannot_be(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(write_floods(tmp_path), **changes)


# --- real images ------------------------------------------------------------------------------------------

needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason="no folder of real SAR images beside the repository"
)
WATER = {"root": str(REAL_DATA), "classes": ["other", "water"]}


@needs_real_data
def test_real_floods_by_pattern() -> None:
    scenes = open_scenes(
        WATER,
        images="sen1floods11/S1/*_S1Hand.tif",
        values="db",
        labels="sen1floods11/Labels/*_LabelHand.tif",
        label_values={-1: "ignore", 0: "other", 1: "water"},
    )
    assert len(scenes) == 6
    for sample in scenes:
        assert sample["image"].shape == (2, 512, 512)
        assert set(sample["mask"].unique().tolist()) <= {0, 1, IGNORE_INDEX}
    darker = [
        s["image"][0][s["mask"] == 1].mean() < s["image"][0][s["mask"] == 0].mean()
        for s in scenes
        if (s["mask"] == 1).any()
    ]
    assert all(darker), "water is darker than land in every chip"
    assert len(darker) == 5


@needs_real_data
def test_real_kompsat_by_index_in_tiles() -> None:
    scenes = open_scenes(
        WATER, index="index.csv", where={"dataset": "kompsat5_oslo"}, values="intensity", tile=512
    )
    assert len(scenes) == 3 * 4
    water = np.mean([float((s["mask"] == 1).float().mean()) for s in scenes])
    assert 0.4 < water < 0.6


@needs_real_data
def test_real_land_cover_with_bands_last() -> None:
    classes = ["water", "trees", "flooded vegetation", "crops", "built", "bare", "snow", "rangeland"]
    values = {
        1: "water",
        2: "trees",
        3: "flooded vegetation",
        4: "crops",
        5: "built",
        6: "bare",
        7: "snow",
        8: "ignore",
        9: "rangeland",
    }
    scenes = open_scenes(
        {"root": str(REAL_DATA)},
        index="index.csv",
        where={"dataset": "terramind_s1rtc"},
        values="db",
        classes=classes,
        label_values=values,
    )
    assert [tuple(s["image"].shape) for s in scenes] == [(2, 224, 224)] * 5
    assert all((s["mask"] != IGNORE_INDEX).all() for s in scenes)
