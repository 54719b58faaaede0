"""`evaluate --config` as its users run it: models side by side on their own images, going on, wrong input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dataset_trees import save

from crossearth_sar import build_model, load_model, save_model
from crossearth_sar.cli import evaluate_own
from crossearth_sar.cli.main import main

SMALL = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "patch_size": 16, "depth": 4},
    "crop_size": 64,
    "crop_stride": 64,
    "pixel_m": 10.0,
}
FOUR = ("water", "road", "barren", "other")


def write_images(root: Path, count: int) -> None:
    for i in range(count):
        rng = np.random.default_rng(i)
        is_water = rng.random((70, 90)) < 0.3
        amplitude = rng.rayleigh(size=(70, 90)) * np.where(is_water, 0.2, 1.0) + 1e-3
        label = is_water.astype(np.uint8)
        label[:3] = 255
        save(root / "images" / f"{i}.tif", amplitude.astype(np.float32))
        save(root / "labels" / f"{i}.png", label)


def model(folder: Path, classes: tuple[str, ...], seed: int = 0, *, named: bool = True) -> None:
    torch.manual_seed(seed)
    found = build_model("crossearth_sar_tiny", len(classes), changes=SMALL)
    if named:
        found.name_classes(classes)
    save_model(found, folder)


def domain(name: str, root: str, **settings: object) -> dict[str, object]:
    files = {"images": "images/*.tif", "labels": "labels/*.png", "values": "amplitude", "pixel_m": 5.0}
    return {"name": name, "folder": {"root": root, "classes": ["other", "water"], **files, **settings}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two domains, a model of their two classes, and one of four."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data" / "lake", 4)
    write_images(tmp_path / "data" / "sea", 1)
    model(tmp_path / "runs" / "two" / "model", ("other", "water"), seed=1)
    model(tmp_path / "runs" / "four" / "model", FOUR, seed=2)
    domains = [domain("my lake", "lake"), domain("sea", "sea", tile=48)]
    write("my.yaml", {"domains": domains, "data_root": "data", "output": "out"})
    return tmp_path


def write(name: str, settings: dict[str, object]) -> None:
    Path(name).write_text(yaml.safe_dump(settings), encoding="utf-8")


def run(*arguments: str, models: tuple[str, ...] = ("runs/two/model", "runs/four/model")) -> int:
    return main(["evaluate", "--config", "my.yaml", "--device", "cpu", "--model", *models, *arguments])


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_models_on_two_domains(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--pictures", "2") == 0, capsys.readouterr().err
    content = json.loads(Path("out/metrics.json").read_text())
    assert [(one["model"], one["domain"]) for one in content["scores"]] == [
        (name, where) for name in ("two", "four") for where in ("my lake", "sea")
    ]
    for one in content["scores"]:
        confusion = np.array(one["confusion"], float)
        right = confusion.diagonal()
        assert confusion.sum() == (67 * 90 * 4 if one["domain"] == "my lake" else sea_pixels())
        rates = {"precision": right / confusion.sum(0), "recall": right / confusion.sum(1)}
        rates["iou"] = right / (confusion.sum(0) + confusion.sum(1) - right)
        for rate, expected in rates.items():
            found = [np.nan if one[rate][name] is None else one[rate][name] for name in one["classes"]]
            np.testing.assert_allclose(found, expected)
        assert one["pixel_accuracy"] == pytest.approx(right.sum() / confusion.sum())
        assert 0 <= one["ece"] <= 1
        assert one["temperature"] is None
    lake, sea = content["scores"][:2]
    assert lake["miou_interval_95"][0] <= lake["miou"] <= lake["miou_interval_95"][1]
    assert (sea["images"], sea["samples"], sea["miou_interval_95"]) == (1, 4, None), "tiles of one image"
    assert "road, barren of the model count as «other»" in content["scores"][2]["notes"][0]
    readme = Path("out/README.md").read_text()
    for words in ("## my lake: 4 images", "## sea: 4 tiles of 1 image", "two: F1", "four: recall", "–"):
        assert words in readme
    for line in readme.splitlines():
        if "](" in line:
            assert (place / "out" / line.partition("](")[2].rstrip(")")).stat().st_size > 1000
    assert len(rows("out/classes.csv")) == 2 * 2 * 2
    assert len(rows("out/images.csv")) == 2 * (4 + 4)
    (lake_file,) = Path("out").glob("confusion-two--my-lake-*.csv")
    with lake_file.open(encoding="utf-8") as file:
        table = list(csv.reader(file))
    assert table[0][1:] == ["other", "water"]
    assert [[int(v) for v in row[1:]] for row in table[1:]] == lake["confusion"]


def sea_pixels() -> int:
    """Of four tiles of 48 that overlap, over 70 x 90, without the three rows that are ignored."""
    return 2 * 48 * 48 + 2 * 45 * 48


def test_what_is_finished_is_kept_unless_it_would_differ(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    score = evaluate_own.score_images

    def counted(*arguments: object, **options: object) -> object:
        done.append(arguments[1].name)  # type: ignore[attr-defined]
        if len(done) == 3:
            raise KeyboardInterrupt
        return score(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate_own, "score_images", counted)
    with pytest.raises(KeyboardInterrupt):
        run("--pictures", "1")
    content = json.loads(Path("out/metrics.json").read_text())
    assert len(content["scores"]) == 2
    assert content["absent"] == {f"four on {name}": "not scored yet" for name in ("my lake", "sea")}
    assert run("--pictures", "1") == 0
    assert done == ["my lake", "sea", "my lake", "my lake", "sea"]
    first = json.loads(Path("out/metrics.json").read_text())["scores"]
    assert run("--pictures", "1") == 0
    assert len(done) == 5
    assert "two on my lake is there already" in capsys.readouterr().out
    assert json.loads(Path("out/metrics.json").read_text())["scores"] == first
    model(place / "runs" / "two" / "model", ("other", "water"), seed=9)
    assert run("--pictures", "1") == 0
    assert done[5:] == ["my lake", "sea"], "another model of that name"
    assert run("--pictures", "1", "--max-images", "2") == 0
    assert len(done) == 7 + 4


def test_a_temperature_is_fitted_kept_and_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("runs/two/model",)
    assert run("--pictures", "0", models=one) == 0
    plain = json.loads(Path("out/metrics.json").read_text())["scores"]
    assert run("--pictures", "0", "--calibrate", models=one) == 0, capsys.readouterr().err
    lake, sea = json.loads(Path("out/metrics.json").read_text())["scores"]
    temperature = load_model("runs/two/model").temperature
    assert temperature == lake["temperature"] == sea["temperature"] != 1
    assert (lake["temperature_fitted_here"], sea["temperature_fitted_here"]) == (True, False)
    assert lake["ece_at_temperature"] < lake["ece"], "on images that it was not fitted on"
    assert lake["confusion"] == plain[0]["confusion"]
    assert sea["ece"] == plain[1]["ece"]
    assert "fitted on every second of these samples" in Path("out/README.md").read_text()
    assert run("--pictures", "0", models=one) == 0
    lake = json.loads(Path("out/metrics.json").read_text())["scores"][0]
    assert (lake["temperature"], lake["temperature_fitted_here"]) == (temperature, False)
    before = Path("runs/two/model/config.json").read_bytes()
    assert run("--pictures", "0", "--calibrate", "my lake", models=one) == 0
    assert Path("runs/two/model/config.json").read_bytes() == before


def test_a_training_run_is_scored_on_what_it_holds_out(place: Path) -> None:
    settings = {
        "train": domain("lake", "lake"),
        "unseen": [domain("sea", "sea")],
        "data_root": "data",
        "output": "runs/training",
        "steps": 7,
    }
    write("my.yaml", settings)
    arguments = ["--pictures", "0", "--max-images", "1", "--set", "train.folder.test_share=0.4"]
    assert run(*arguments, "--output", "scored", models=("runs/two/model",)) == 0
    content = json.loads(Path("scored/metrics.json").read_text())
    assert [one["domain"] for one in content["scores"]] == ["lake-held-out", "sea"]
    assert not Path("runs/training").exists()
    write("my.yaml", {**settings, "validation": domain("rest", "sea")})
    assert run("--pictures", "0", "--output", "scored", models=("runs/two/model",)) == 0
    content = json.loads(Path("scored/metrics.json").read_text())
    assert [one["domain"] for one in content["scores"]] == ["rest", "sea"]


def test_what_counts_as_what_can_be_said(place: Path) -> None:
    three = domain("three", "lake", classes=["land", "water"])
    write("my.yaml", {"domains": [three], "data_root": "data", "output": "out"})
    arguments = ["--pictures", "0", "--max-images", "1"]
    assert run(*arguments, models=("runs/four/model",)) == 2
    assert run(*arguments, "--as", "land=road,barren,other", models=("runs/four/model",)) == 0
    (one,) = json.loads(Path("out/metrics.json").read_text())["scores"]
    assert one["notes"][0] == "road of the model counts as «land», as --as says"


def test_an_image_that_breaks_leaves_the_other_domains(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlabelled = domain("blank", "sea")
    unlabelled["folder"]["labels"] = None  # type: ignore[index]
    write("my.yaml", {"domains": [unlabelled, domain("sea", "sea")], "data_root": "data", "output": "out"})
    assert run("--pictures", "0", models=("runs/two/model",)) == 1
    assert "two on blank is not scored: domain 'blank' has no labelled pixel" in capsys.readouterr().err
    content = json.loads(Path("out/metrics.json").read_text())
    assert [one["domain"] for one in content["scores"]] == ["sea"]
    assert "no labelled pixel" in content["absent"]["two on blank"]
    assert "two on blank: domain 'blank'" in Path("out/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], "no model in nowhere"),
        (["--model", "runs/two/model", "runs/two/model"], "each folder once"),
        (["--as", "other=rod"], "did you mean 'road'"),
        (["--calibrate", "lake"], "--calibrate: no domain 'lake' (did you mean 'my lake'?)"),
        (["--set", "domains=[]"], "at least one, with distinct names"),
        (["--set", "data_rot=x"], "did you mean 'data_root'"),
        (["--set", "data_root=elsewhere"], "elsewhere"),
        (["--max-images", "1", "--calibrate"], "cannot both fit a temperature and test it"),
    ],
)
def test_wrong_input_ends_with_one_screen(
    arguments: list[str], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) < 25
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "my.yaml"], "no model is named"),
        (["--config", "my.yaml", "--adapter", "a:b"], "--adapter is for benchmarks"),
        (["--benchmark", "N2S", "--model", "a", "b"], "benchmarks take one model"),
        (["--benchmark", "N2S", "--model", "a", "--as", "a=b"], "are for --config"),
    ],
)
def test_benchmarks_and_domains_of_ones_own_are_told_apart(
    arguments: list[str], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert words in capsys.readouterr().err
