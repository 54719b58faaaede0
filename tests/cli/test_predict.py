"""train/predict.py as its users run it: maps of several kinds of files, going on, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from saved_model import SMALL

from crossearth_sar import InputError, build_model, load_model, save_model
from crossearth_sar.cli import map_names
from crossearth_sar.cli.main import main
from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.files.readers import read_bands
from crossearth_sar.device import checked_device
from crossearth_sar.evaluation.calibration import store_temperature
from crossearth_sar.folder_lock import LOCK_FILE

ALL = ["--images", "data/*/*.*", "--values", "amplitude", "--normalize", "domain"]


def speckle(height: int, width: int) -> np.ndarray:
    mean = np.linspace(20, 90, width) * (1 + np.arange(height) // 30 % 2)[:, None]
    return (mean * np.random.default_rng(0).rayleigh(size=(height, width))).clip(1, 255).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and three images: a PNG, a float TIFF with nodata, an NPY."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(saved)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
    Image.fromarray(speckle(50, 70).astype(np.uint8)).save("data/a/one.png")
    tiff = speckle(50, 64)
    tiff[:9, 3:20] = -9999
    tags = [(42113, "s", 0, "-9999", True)]  # GDAL's nodata
    tifffile.imwrite("data/a/two.tif", tiff, extratags=tags, photometric="minisblack")
    np.save("data/b/three.npy", speckle(64, 60))
    return tmp_path


@pytest.fixture
def without_rasterio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_names, "has_rasterio", lambda: False)


def run(*arguments: str, output: str = "maps") -> int:
    return main(["predict", "--model", "model", "--output", output, "--device", "cpu", *arguments])


@pytest.mark.usefixtures("without_rasterio")
def test_a_folder_of_png_tiff_and_npy(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run(*ALL) == 0, capsys.readouterr().err
    assert "rasterio is not installed" in caplog.text
    assert "3 of 3 maps in maps" in capsys.readouterr().out
    record = json.loads((place / "maps" / "prediction.json").read_text())
    assert record["classes"] == ["sea", "land", "ice"]
    assert record["palette"][2] == [255, 255, 255]
    statistics = torch.tensor(record["db_mean"])[None], torch.tensor(record["db_std"])[None]
    model = load_model("model")
    found = set()
    for name in ("a/one.png", "a/two.tif", "b/three.npy"):
        values = read_bands(place / "data" / name).astype(np.float32)
        nodata = values[0] == -9999
        filled = torch.from_numpy(fill_unmeasured(values, ~nodata))[None]
        expected = model.predict(filled, *statistics)[0].numpy()
        expected[nodata] = 255
        got = read_bands((place / "maps" / name).with_suffix(".png"))[0]  # a label map: indices
        assert np.array_equal(got, expected), name
        found |= {*np.unique(got).tolist()}
    assert {255} < found
    assert len(found) > 2, "one class everywhere would show no mistake"
    with Image.open(place / "maps" / "a" / "two.png") as picture:
        assert picture.convert("RGB").getpixel((5, 5)) == (212, 212, 212)
        index = picture.getpixel((60, 40))
        assert list(picture.convert("RGB").getpixel((60, 40))) == record["palette"][index]


@pytest.mark.usefixtures("without_rasterio")
def test_finished_maps_are_left_alone_and_statistics_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*ALL) == 0
    first = {path: path.read_bytes() for path in (place / "maps").rglob("*.*") if path.is_file()}
    assert len(first) == 5, "with the lock"
    other = Image.fromarray(np.full((50, 70), 2, np.uint8))  # as whole as ours
    other.save(place / "maps" / "a" / "one.png")
    finished = (place / "maps" / "a" / "one.png").read_bytes()
    (place / "maps" / "a" / "two.png").unlink()
    Image.fromarray(speckle(40, 40).astype(np.uint8)).save("data/a/new.png")  # would change the statistics
    capsys.readouterr()
    assert run(*ALL) == 0
    assert "2 of 4 maps are there already" in capsys.readouterr().out
    assert (place / "maps" / "a" / "new.png").is_file()
    assert (place / "maps" / "a" / "one.png").read_bytes() == finished
    for name in ("a/two.png", "prediction.json"):
        assert (place / "maps" / name).read_bytes() == first[place / "maps" / name]
    assert run(*ALL[:3], "intensity") == 2
    said = capsys.readouterr().err
    assert "got: values 'intensity'" in said
    assert "expected: values 'amplitude'" in said


def test_a_geotiff_keeps_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="georeferenced maps")
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 4_600_000)
    size = {"height": 40, "width": 50, "count": 1, "dtype": "float32"}
    with rasterio.open("scene.tif", "w", crs="EPSG:32633", transform=transform, nodata=0, **size) as file:
        values = speckle(40, 50)
        values[30:, :7] = 0
        file.write(values, 1)
    arguments = ["--images", "scene.tif", "--values", "amplitude", "--normalize", "image"]
    assert run(*arguments) == 0, capsys.readouterr().err
    with rasterio.open("maps/scene.tif") as got:
        assert got.crs.to_epsg() == 32633
        assert got.transform == transform
        assert got.nodata == 255
        assert got.dtypes == ("uint8",)
        classes = got.read(1)
        record = json.loads(Path("maps/prediction.json").read_text())
        assert [list(color[:3]) for color in got.colormap(1).values()] == record["palette"]
        assert got.tags(1)["class_2"] == "ice"
        assert got.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert record["db_mean"] is None
    assert np.array_equal(classes == 255, values == 0)
    assert np.array_equal(read_bands("maps/scene.tif")[0], classes)


@pytest.mark.usefixtures("without_rasterio")
def test_one_bad_image_does_not_stop_the_others(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("data/a/empty.npy", np.full((20, 20), np.nan, np.float32))
    assert run("--images", "data/a/*.*", "--values", "amplitude") == 1
    said = capsys.readouterr()
    assert "no map: data/a/empty.npy has no valid pixel" in said.err
    assert "2 of 3 maps in maps" in said.out
    assert sorted(path.name for path in (place / "maps").iterdir()) == [
        LOCK_FILE,
        "one.png",
        "prediction.json",
        "two.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "data/*.tif", "--values", "db"], "names no file"),
        (["--images", "data/a", "--values", "db"], "give 'data/a/*.tif'"),
        (["--images", "data/a/*", "--values", "db", "--output", "data"], "lies in --output"),
        (["--images", "data/a/*.png", "x/one.npy", "--values", "db"], "two images would give maps/one.png"),
        (
            ["--images", "x/four.npy", "--values", "db"],
            "1 of 1 images cannot be used\nx/four.npy has 4",
        ),
        ([*ALL, "--values", "db"], "values that are no decibels"),
        ([*ALL, "--values", "complex"], "is real but its values are declared 'complex'"),
        ([*ALL, "--model", "nowhere"], "no model in nowhere"),
        ([*ALL, "--device", "gpu"], "device 'gpu' cannot be used"),
    ],
)
@pytest.mark.usefixtures("without_rasterio")
def test_wrong_input_ends_with_one_screen(
    arguments: list[str],
    words: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place / "x").mkdir()
    np.save("x/one.npy", speckle(30, 30))
    np.save("x/four.npy", np.stack([speckle(30, 30)] * 4))
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) < 25
    assert not (place / "maps").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    assert checked_device("cpu").type == "cpu"
    with pytest.raises(InputError, match=r"(?s)device 'cuda' cannot be used.*--device cpu"):
        checked_device("cuda")


@pytest.mark.usefixtures("without_rasterio")
def test_at_the_ground_spacing_of_the_model(
    place: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What is given goes over a file's tags; what nobody says is said once, and taken as it is."""
    torch.manual_seed(4)
    save_model(build_model("crossearth_sar_tiny", 3, changes={**SMALL, "pixel_m": 10.0}), place / "scaled")
    keys = [1, 1, 0, 1, 1024, 0, 1, 1]
    tags = [(33550, "d", 3, (5.0, 5.0, 0.0), True), (34735, "H", 8, keys, True)]
    values = speckle(128, 140)
    (place / "tagged").mkdir()
    tifffile.imwrite("tagged/one.tif", values, extratags=tags, photometric="minisblack")
    np.save("tagged/two.npy", values)
    model = load_model(place / "scaled")
    arguments = ["--model", "scaled", "--images", "tagged/*", "--values", "amplitude", "--normalize", "image"]
    for output, given, own in (("tags", [], (5.0, None)), ("given", ["--pixel-m", "20"], (20.0, 20.0))):
        caplog.clear()
        assert run(*arguments, *given, output=output) == 0, capsys.readouterr().err
        unknown = [r.getMessage() for r in caplog.records if "ground spacing" in r.getMessage()]
        assert len(unknown) == (not given)
        for name, metres in zip(("one", "two"), own, strict=True):
            expected = model.predict(values[None, None], pixel_m=metres)[0].numpy()
            assert np.array_equal(read_bands(place / output / f"{name}.png")[0], expected), (output, name)
        if not given:
            assert "1 of 2 images, tagged/two.npy first" in unknown[0]
            assert "--pixel-m" in unknown[0]
    assert run(*arguments, "--pixel-m", "7", output="given") == 2
    assert "got: pixel_m 7.0" in capsys.readouterr().err
    assert run(*arguments, "--pixel-m", "0.01", output="wrong") != 0
    assert "0.01 m a pixel is not for a model that works at 10 m" in capsys.readouterr().err


@pytest.mark.usefixtures("without_rasterio")
def test_scores_lie_beside_the_maps(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Percents of each class at the model's temperature, and the entropy; maps are the same without."""
    assert run(*ALL) == 0
    assert run(*ALL, "--scores") == 0, "the same maps go on"
    assert "are there already" not in capsys.readouterr().out
    model, record = load_model("model"), json.loads(Path("maps/prediction.json").read_text())
    mean, std = torch.tensor(record["db_mean"])[None], torch.tensor(record["db_std"])[None]
    values = torch.from_numpy(read_bands("data/b/three.npy").astype(np.float32))[None]
    scores = model.eval().slide_scores(values, mean, std)[0].detach()
    expected = {}
    for temperature in (None, 3.0):
        powers = (scores / scores.sum(0)) ** (1 / (temperature or 1))
        p = powers / powers.sum(0)
        entropy = -(p * p.log()).sum(0) / np.log(3)
        expected[temperature] = 100 * torch.cat([p, entropy[None]]).numpy()
    np.testing.assert_allclose(read_bands("maps/b/three-scores.tif"), expected[None], atol=0.6)
    two, sure = read_bands("maps/a/two.png")[0], read_bands("maps/a/two-scores.tif")
    assert sure.shape == (4, 50, 64)
    assert all(np.array_equal(two == 255, band == 255) for band in sure)
    assert (sure[0] == 255).sum() == 9 * 17
    assert sure[sure != 255].max() <= 100
    (place / "warm").mkdir()
    for name in ("config.json", "model.safetensors"):
        (place / "warm" / name).write_bytes((place / "model" / name).read_bytes())
    store_temperature(place / "warm", 3.0)
    assert run(*ALL, "--scores", "--model", "warm", output="warm-maps") == 0
    np.testing.assert_allclose(read_bands("warm-maps/b/three-scores.tif"), expected[3.0], atol=0.6)
    assert np.array_equal(read_bands("warm-maps/b/three.png"), read_bands("maps/b/three.png"))


def test_names_that_are_taken(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rasterio", reason="else a TIFF's map is a PNG, and no name is taken")
    tifffile.imwrite("data/a/two-scores.tif", speckle(20, 20), photometric="minisblack")
    assert run(*ALL, "--scores") == 2
    assert "--scores would write over the map maps/a/two-scores.tif" in capsys.readouterr().err
    Image.fromarray(speckle(20, 20).astype(np.uint8)).save("data/a/one-quicklook.png")
    assert run(*ALL, "--page") == 2
    assert "--page would write over the map maps/a/one-quicklook.png" in capsys.readouterr().err
    assert not Path("maps").exists()


def test_scores_of_a_geotiff(place: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="georeferenced maps")
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 4_600_000)
    size = {"height": 40, "width": 50, "count": 1, "dtype": "float32"}
    with rasterio.open("scene.tif", "w", crs="EPSG:32633", transform=transform, **size) as file:
        file.write(speckle(40, 50), 1)
    assert run("--images", "scene.tif", "--values", "amplitude", "--scores") == 0
    names = ("sea, percent", "land, percent", "ice, percent", "entropy, percent of its maximum")
    with rasterio.open("maps/scene-scores.tif") as got:
        assert (got.crs.to_epsg(), got.transform, got.nodata) == (32633, transform, 255)
        assert got.descriptions == names
        assert got.read().max() <= 100
    np.save("plain.npy", speckle(40, 50))
    assert run("--images", "plain.npy", "--values", "amplitude", "--scores", output="plain") == 0
    with rasterio.open("plain/plain-scores.tif") as got:
        assert (got.descriptions, got.nodata, got.count) == (names, 255, 4)


def test_bands_and_values_that_nobody_gave_are_said(
    place: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(build_model("crossearth_sar_tiny", 3, changes={**SMALL, "bands": 1}), place / "one-band")
    db = 20 * np.log10(speckle(64, 64) / 300)
    np.save("pair.npy", np.stack([db, db + 3]))
    np.save("first.npy", db[None])
    for name in ("pair", "first"):
        given = ["predict", "--model", "one-band", "--images", f"{name}.npy", "--output", f"maps-{name}"]
        assert main(given) == 0
    assert "has 2 bands, the model was trained on 1: --bands 0 are taken" in caplog.text
    assert "pair.npy are taken for db" in caplog.text
    both = [np.asarray(Image.open(f"maps-{name}/{name}.png")) for name in ("pair", "first")]
    assert np.array_equal(*both)
