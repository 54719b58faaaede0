"""Published datasets in their official layouts: found, windowed, split, mapped; all that can be wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from dataset_trees import write_trees
from PIL import Image

from crossearth_sar.data.datasets.benchmarks import BENCHMARK_DATASETS
from crossearth_sar.data.datasets.official import OfficialDataset
from crossearth_sar.data.datasets.pretraining import PRETRAINING_SOURCES
from crossearth_sar.data.datasets.published import open_spec
from crossearth_sar.data.datasets.spec import DatasetSpec, DomainSpec
from crossearth_sar.data.datasets.tasks import AIR_5, BUILDING_1, DDHR_6, FUSAR_5
from crossearth_sar.data.files import windows
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError

AIR, DDHR, FUSAR, OEM, SARBUD, WHU = BENCHMARK_DATASETS


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trees(tmp_path_factory.mktemp("trees"))


@pytest.fixture(autouse=True)
def _own_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # splits go where a test can look at them, not into the shared trees


def opened(
    root: Path, key: str, domain: str, *, changes: dict[str, Any] | None = None, **more: Any
) -> OfficialDataset:
    return OfficialDataset(open_spec(key, changes), root, domain, splits=Path("splits"), **more)


def refusal(root: Path, key: str, domain: str, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        opened(root, key, domain, **more)
    message = str(error.value)
    assert len(message.splitlines()) <= 25, "an error fits a screen"
    return message


@pytest.mark.parametrize(
    ("key", "domain", "samples", "bands"),
    [
        (AIR, "North", 10, 3),
        (AIR, "VV", 30, 1),
        (DDHR, "KR", 5, 1),
        (FUSAR, "FUSAR", 20, 1),
        (OEM, "OpenEarthMap", 8, 1),
        (SARBUD, "SARBuD", 5, 1),
    ],
)
def test_every_layout_gives_patches_of_512(
    trees: Path, key: str, domain: str, samples: int, bands: int
) -> None:
    dataset = opened(trees, key, domain)
    assert len(dataset) == samples
    sample = dataset[samples - 1]
    assert sample["image"].shape == (bands, 512, 512)
    assert sample["image"].dtype == torch.float32
    assert bool((sample["image"] >= 0).all())
    present = set(sample["mask"].unique().tolist()) - {IGNORE_INDEX}
    assert present == set(range(len(dataset.classes)))
    assert len(set(dataset.names)) == samples
    assert "got" in dataset.notes[0], "a small tree differs from the paper's counts and says so"


def test_a_large_scene_is_read_by_windows(trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a whole scene was decoded")

    monkeypatch.setattr(windows, "read_stored", refuse)
    dataset = opened(trees, WHU, "WHU-SAR", task=DDHR_6, check=False)
    assert len(dataset) == 2 * 88
    covered = np.zeros((3704, 5556), bool)
    for name in dataset.names[:88]:
        top, left = (int(part[1:]) for part in name.rsplit("_", 2)[1:])
        covered[top : top + 512, left : left + 512] = True
    assert covered.all()
    whole = tifffile.imread(trees / "WHU-OPT-SAR" / "sar" / "NH49E000013.tif")
    sample = dataset[87]
    assert sample["name"] == "NH49E000013_y3192_x5044"
    assert np.array_equal(sample["image"][0].numpy(), whole[3192:, 5044:])
    farmland_column = 16 * 321 - 5044  # stripe 321 % 8 = 1
    assert set(sample["mask"][:, farmland_column].tolist()) == {DDHR_6.classes.names.index("farmland")}


def test_components_and_channels_of_whole_scenes(trees: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real and imaginary numbers of int16 are stored; each window is read from the scenes by itself."""
    monkeypatch.setattr(windows, "read_stored", None)
    part = slice(88, 600), slice(1024, 1536)
    raw = {p: tifffile.imread(trees / AIR / "gz" / f"gz_{p}.tiff")[part] for p in ("hh", "hv", "vv")}
    power = {p: (values.astype(np.float64) ** 2).sum(-1) for p, values in raw.items()}
    expected = {
        "VV": [np.sqrt(power["vv"])],
        "HH": [np.sqrt(power["hh"])],
        "Full": [np.sqrt(power[p]) for p in raw],
        "Real": [np.sqrt(power[p]) for p in raw],
        "Complex(r)": [np.abs(raw[p][..., 0]) for p in raw],
        "Complex(i)": [np.abs(raw[p][..., 1]) for p in raw],
    }
    for domain, bands in expected.items():
        dataset = opened(trees, AIR, domain, check=False)
        sample = dataset[dataset.names.index("south__gz_y88_x1024")]
        np.testing.assert_allclose(sample["image"].numpy(), np.stack(bands), rtol=1e-6)


def test_north_and_south_are_scenes(trees: Path) -> None:
    north, south = (opened(trees, AIR, region, check=False).names for region in ("North", "South"))
    assert {name.split("_y")[0] for name in north} == {"north"}
    assert {name.split("_y")[0] for name in south} == {"south__sh", "south__gz"}
    assert (len(north), len(south)) == (10, 20)


def test_compressed_labels_are_read_within_a_tolerance(trees: Path) -> None:
    sample = opened(trees, AIR, "North", check=False)[0]
    index = np.broadcast_to(np.arange(512) // 16 % 6, (512, 512)).copy()
    index[:, :100] = IGNORE_INDEX  # white
    index[100:110, 200:210] = IGNORE_INDEX  # grey, far from every colour
    assert np.array_equal(sample["mask"].numpy(), index)
    stored = tifffile.imread(trees / AIR / "bj" / "modified" / "bj_gt_modify.tiff")[:512, :512]
    assert len(np.unique(stored.reshape(-1, 3), axis=0)) > 100, "there is something to tolerate"
    message = refusal(trees, AIR, "North", changes={"label_tolerance": 0})
    assert "stand for no class" in message


@pytest.mark.parametrize("unit", ["patch", "block"])
def test_no_pixel_of_a_scene_is_on_both_sides(unit: str, trees: Path) -> None:
    changes = {"split_unit": unit, "block": 2}
    seen = {}
    for part in ("train", "test"):
        names = opened(trees, AIR, "VV", part=part, changes=changes, check=False).names
        pixels: set[tuple[str, int, int]] = set()
        for name in names:
            scene, y, x = name.rsplit("_", 2)
            top, left = int(y[1:]), int(x[1:])
            pixels |= {(scene, r, c) for r in range(top, top + 512, 4) for c in range(left, left + 512, 4)}
        seen[part] = pixels
        assert pixels
    assert not seen["train"] & seen["test"]
    written = {path.name for path in Path("splits").iterdir()}
    blocks = "-blocks2" if unit == "block" else ""
    assert written == {f"{AIR}-{region}{blocks}-seed0.json" for region in ("north", "south")}


def test_blocks_keep_neighbours_together(trees: Path) -> None:
    changes = {"split_unit": "block", "block": 2}
    sides = {
        name: part
        for part in ("train", "test")
        for name in opened(trees, AIR, "VV", part=part, changes=changes, check=False).names
    }
    for scene in ("north", "south__sh", "south__gz"):
        for left in (0, 1024):
            block = {sides[f"{scene}_y{y}_x{x}"] for y in (0, 88) for x in (left, left + 512)}
            assert len(block) == 1


def test_small_patches_are_enlarged_and_labels_keep_their_shares(trees: Path) -> None:
    enlarged = opened(trees, DDHR, "CN")[0]
    plain = opened(trees, DDHR, "CN", changes={"upsample": False})[0]
    assert plain["image"].shape == (1, 256, 256)
    assert torch.equal(enlarged["mask"][::2, ::2], plain["mask"])
    assert torch.equal(enlarged["mask"][1::2, 1::2], plain["mask"])
    assert enlarged["image"].mean() == pytest.approx(float(plain["image"].mean()), rel=1e-2)


def test_class_maps_drop_and_join(trees: Path) -> None:
    sample = opened(trees, AIR, "North", task=AIR_5)[0]
    stripe = sample["mask"][0, 192::16]  # from the first whole cycle of six after the unlabelled margin
    names = BENCHMARK_DATASETS[AIR].classes
    expected = [AIR_5.classes.names.index(n) if n != "mountain" else IGNORE_INDEX for n in names]
    assert stripe[:6].tolist() == expected
    as_fusar = opened(trees, AIR, "AIR", task=FUSAR_5)[0]["mask"][0, 192::16][:6].tolist()
    assert [FUSAR_5.classes.names[i] if i != IGNORE_INDEX else None for i in as_fusar] == [
        "water",
        "vegetation",
        "other",
        "road",
        "building",
        None,
    ]
    building = opened(trees, SARBUD, "SARBuD", task=BUILDING_1)[0]["mask"]
    assert set(building.unique().tolist()) == {0, 1}
    assert BENCHMARK_DATASETS[AIR].dropped("air5") == ("mountain",)
    with pytest.raises(InputError, match="no class map for 'WHU-OPT-SAR'"):
        opened(trees, WHU, "WHU-SAR", task=FUSAR_5)


# --- pixels without a measurement -------------------------------------------------------------------------

HOLED = DatasetSpec(
    key="Holed",
    folder="Holed",
    home="nowhere",
    tree=(),
    images="sar/*.*",
    labels="labels/*.*",
    domains={"all": DomainSpec(regions=("all",))},
    classes=("a", "b"),
    window=64,
)


def write_holed(root: Path, *, side: int, tag: str | None) -> np.ndarray:
    """One scene: 12 rows of -1, which a GDAL tag may call nodata, a NaN and an infinity. What is measured."""
    values = np.random.default_rng(0).gamma(4, 1, (side, side)).astype(np.float32)
    values[:12], values[20, 30], values[40, 50] = -1, np.nan, np.inf
    (root / "Holed" / "sar").mkdir(parents=True)
    (root / "Holed" / "labels").mkdir()
    tags = [(42113, "s", 0, tag, True)] if tag is not None else []
    tifffile.imwrite(root / "Holed" / "sar" / "0.tif", values, extratags=tags, compression="lzw")
    Image.fromarray(np.eye(side, dtype=np.uint8)).save(root / "Holed" / "labels" / "0.png")
    return np.isfinite(values) & (values != -1)


@pytest.mark.parametrize("side", [64, 100], ids=["whole", "windows"])
@pytest.mark.parametrize("said_by", ["tag", "row"])
def test_what_was_not_measured_neither_counts_nor_shows(tmp_path: Path, side: int, said_by: str) -> None:
    measured = write_holed(tmp_path, side=side, tag="-1" if said_by == "tag" else None)
    spec = replace(
        HOLED, nodata=None if said_by == "tag" else -1.0, scene_size=(side, side) if side == 64 else None
    )
    sample = OfficialDataset(spec, tmp_path, "all")[0]
    measured = measured[:64, :64]
    assert np.array_equal((sample["mask"] != IGNORE_INDEX).numpy(), measured)
    assert int((~measured).sum()) == 12 * 64 + 2
    image = sample["image"][0].numpy()
    assert np.isin(image[~measured], image[measured]).all()
    assert image[:12].std() > 0.5, "speckle as everywhere"


def test_a_number_that_nobody_calls_nodata_is_refused(tmp_path: Path) -> None:
    write_holed(tmp_path, side=64, tag=None)
    with pytest.raises(InputError, match="if -1 marks pixels without a measurement, set nodata: -1"):
        OfficialDataset(HOLED, tmp_path, "all")


# --- splits -----------------------------------------------------------------------------------------------


def test_two_sides_share_nothing_and_are_written(trees: Path) -> None:
    train, test = (set(opened(trees, OEM, "OpenEarthMap", part=part).names) for part in ("train", "test"))
    assert (len(train), len(test)) == (6, 2)
    assert not train & test
    written = json.loads(Path("splits/OpenEarthMap-SAR-all-seed0.json").read_text())
    assert set(written["train"]) == train
    assert set(written["test"]) == test


def test_channels_of_a_place_stay_on_one_side(trees: Path) -> None:
    train = opened(trees, AIR, "VV", part="train").names
    test = opened(trees, AIR, "Full", part="test").names
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(opened(trees, AIR, "AIR").names)
    assert opened(trees, AIR, "South", part="test").names == [n for n in test if n.startswith("south")]


def test_scenes_are_split_whole(trees: Path) -> None:
    test = opened(trees, FUSAR, "FUSAR", part="test")
    assert len(test) == 4
    assert len({name.rsplit("_", 2)[0] for name in test.names}) == 1


def test_an_official_list_is_the_split(trees: Path, tmp_path: Path) -> None:
    (tmp_path / WHU).mkdir()
    for folder in ("sar", "lbl"):
        (tmp_path / WHU / folder).symlink_to(trees / WHU / folder)
    division = tmp_path / WHU / "The division of the dataset.txt"
    division.write_text("train:\nNH49E000013.tif\n\ntest:\nNH49E001013.tif\n\n")
    test = opened(tmp_path, WHU, "WHU-SAR", part="test", check=False)
    assert len(test) == 88
    assert all(name.startswith("NH49E001013") for name in test.names)
    assert not any("official list" in note for note in test.notes)
    assert any("official list" in n for n in opened(trees, WHU, "WHU-SAR", part="train", check=False).notes)
    division.write_text("NH49E099013\n")
    assert "1 of them unknown: NH49E099013" in refusal(tmp_path, WHU, "WHU-SAR", part="test")


def test_a_split_that_does_not_fit_is_refused(trees: Path) -> None:
    opened(trees, SARBUD, "SARBuD", part="train")
    path = Path("splits/SARBuD-all-seed0.json")
    content = json.loads(path.read_text())
    for change, words in (
        ({"test": []}, "lacks samples that are there"),
        ({"test": [*content["test"], "b77"]}, "names samples that are not there"),
        ({"test": [*content["test"], content["train"][0]]}, "puts samples on both sides"),
    ):
        path.write_text(json.dumps({**content, **change}))
        message = refusal(trees, SARBUD, "SARBuD", part="test")
        assert words in message
        assert "remove it to draw a new one" in message
    path.write_text("[]")
    assert "is no split" in refusal(trees, SARBUD, "SARBuD", part="test")


# --- corrupted trees --------------------------------------------------------------------------------------


def test_a_missing_dataset_says_where_to_get_it_and_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "SARBUD").mkdir()
    message = refusal(tmp_path, SARBUD, "SARBuD")
    assert f"SARBuD is not at {tmp_path / 'SARBuD'}" in message
    assert "holds SARBUD/" in message
    assert "Labelimgs.zip" in message
    assert "get it from https://" in message


def test_a_missing_region_and_missing_files(trees: Path, tmp_path: Path) -> None:
    write_trees(tmp_path, [DDHR, AIR])
    shutil.rmtree(tmp_path / DDHR / "china")
    assert "no image matches china/256_cloud/GF3/*.* or China" in refusal(tmp_path, DDHR, "CN")
    (tmp_path / DDHR / "korea" / "256_cloud" / "label" / "2.png").unlink()
    message = refusal(tmp_path, DDHR, "KR")
    assert "1 of 5 labels are missing" in message
    assert "got: 2 …" in message or "got: 2;" in message
    (tmp_path / AIR / "sh" / "sh_hv.tiff").unlink()
    assert "1 of 1 images of channel hv are missing" in refusal(tmp_path, AIR, "Full")
    assert len(opened(tmp_path, AIR, "VV")) == 30, "a domain without that channel is whole"
    shutil.rmtree(tmp_path / AIR / "sh")
    assert "region south lacks sh: no image matches sh/sh_vv.*" in refusal(tmp_path, AIR, "VV")
    assert len(opened(tmp_path, AIR, "North")) == 10


def test_truncated_image(tmp_path: Path) -> None:
    write_trees(tmp_path, [FUSAR])
    path = next((tmp_path / FUSAR / "sar_1024").iterdir())
    path.write_bytes(path.read_bytes()[:40000])
    message = refusal(tmp_path, FUSAR, "FUSAR")
    assert str(path) in message
    assert "the file ends at 40000" in message


def test_unknown_label_value_and_wrong_size(tmp_path: Path) -> None:
    write_trees(tmp_path, [OEM, SARBUD])
    label = tmp_path / OEM / "train" / "labels" / "TrainArea_001.tif"
    tifffile.imwrite(label, np.full((1024, 1024), 11, np.uint8))
    message = refusal(tmp_path, OEM, "OpenEarthMap")
    assert "11 (262144 pixels)" in message
    assert "8 (building)" in message
    tifffile.imwrite(label, np.zeros((1024, 1000), np.uint8))
    assert "image 1024 x 1024, label 1024 x 1000" in refusal(tmp_path, OEM, "OpenEarthMap")
    Image.fromarray(np.zeros((128, 256), np.uint8)).save(tmp_path / SARBUD / "images" / "b1.png")
    message = refusal(tmp_path, SARBUD, "SARBuD")
    assert "got: 128 x 256" in message
    assert "scene_size: null" in message
    assert "label 256 x 256" in refusal(tmp_path, SARBUD, "SARBuD", changes={"scene_size": None})


def test_real_values_where_complex_ones_belong(tmp_path: Path) -> None:
    write_trees(tmp_path, [AIR])
    path = tmp_path / AIR / "bj" / "bj_vv.tiff"
    tifffile.imwrite(path, np.ones((600, 2560), np.float32))
    for domain in ("VV", "Complex(r)"):
        message = refusal(tmp_path, AIR, domain)
        assert "bj_vv.tiff is no pairs of I and Q" in message
        assert "got: 1 bands of float32" in message
        message = refusal(tmp_path, AIR, domain, changes={"components": False})
        assert "is not 'complex' as AIR-PolSAR-Seg-2.0 is declared" in message
    assert len(opened(tmp_path, AIR, "HH")) == 30
    with pytest.raises(InputError, match="components"):
        open_spec(FUSAR, {"components": True})


def test_several_problems_come_together(tmp_path: Path) -> None:
    write_trees(tmp_path, [SARBUD])
    for i in range(3):
        (tmp_path / SARBUD / "images" / f"b{i}.png").write_bytes(b"nothing")
    message = refusal(tmp_path, SARBUD, "SARBuD")
    assert "3 of 5 samples looked at cannot be used" in message


def test_unknown_names_and_rows_that_cannot_be(trees: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'SARBuD'"):
        open_spec("SARBUD")
    with pytest.raises(InputError, match="did you mean 'label_values'"):
        open_spec(SARBUD, {"label_value": {}})
    assert "did you mean 'North'" in refusal(trees, AIR, "Nort")
    good: dict[str, Any] = {
        "key": "x",
        "folder": "x",
        "home": "",
        "tree": (),
        "images": "*.*",
        "labels": "l/*.*",
        "domains": {},
        "classes": ("a",),
    }
    DatasetSpec(**good)
    for change, words in (
        ({"images": "{place}/*.*"}, "no pattern known here"),
        ({"labels": "l/1.*"}, "as many"),
        ({"domains": {"d": DomainSpec(regions=("north",))}}, "north"),
        ({"domains": {"d": DomainSpec(regions=("all",), polarizations=("VV",))}}, "polarization"),
        ({"domains": {"d": DomainSpec(regions=("all",), part="real")}}, "complex values"),
    ):
        with pytest.raises(InputError, match=words):
            DatasetSpec(**{**good, **change})


def test_a_row_can_be_corrected_for_files_that_lie_otherwise(tmp_path: Path) -> None:
    for i in range(5):
        folder = tmp_path / "elsewhere" / "north"
        (folder / "VV").mkdir(parents=True, exist_ok=True)
        (folder / "gt").mkdir(exist_ok=True)
        np.save(folder / "VV" / f"{i}_VV.npy", np.full((64, 80), 1 + 1j, np.complex64))
        Image.fromarray(np.full((64, 80), i, np.uint8)).save(folder / "gt" / f"{i}_gt.png")
    changes = {
        "folder": "elsewhere",
        "images": "{region}/{polarization}/*_{polarization}.*",
        "labels": "{region}/gt/*_gt.*",
        "components": False,
        "regions": {"north": ["north"]},
        "label_palette": {},
        "label_values": {0: "ignore", 1: "water", 2: "road", 3: "building", 4: "mountain"},
        "scene_size": None,
        "domains": {"one": {"regions": ["north"], "polarizations": ["VV"]}},
    }
    dataset = opened(tmp_path, AIR, "one", changes=changes, task=AIR_5)
    masks = [int(sample["mask"][0, 0]) for sample in (dataset[i] for i in range(5))]
    assert masks == [255, 0, 3, 4, 255]


def test_every_row_says_its_ground_spacing() -> None:
    assert {key: spec.pixel_m for key, spec in BENCHMARK_DATASETS.items()} == {
        AIR: 8,
        "DDHR-SK": 1,
        FUSAR: 1,
        OEM: 0.5,
        SARBUD: 10,
        WHU: 5,
    }
    for source in PRETRAINING_SOURCES.values():
        assert source.spec.pixel_m is not None


def test_samples_say_their_spacing_as_they_come(trees: Path) -> None:
    """Those of 256 pixels are enlarged to 512, so that their pixels are half as long; changes go over it."""
    assert opened(trees, AIR, "VV")[0]["pixel_m"] == 8
    assert opened(trees, SARBUD, "SARBuD")[0]["pixel_m"] == 5
    assert (
        OfficialDataset(open_spec(SARBUD, {"pixel_m": 12}), trees, "SARBuD", check=False)[0]["pixel_m"] == 6
    )
    unknown = OfficialDataset(open_spec(FUSAR, {"pixel_m": None}), trees, "FUSAR", check=False)
    assert "pixel_m" not in unknown[0]
