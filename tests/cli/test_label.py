"""`crossearth-sar label` and `agreement` as users run them: two teachers, what they share, wrong input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossearth_sar.cli.main import main

ADAPTERS = """
import torch

def build(num_classes, device):
    levels = torch.arange(num_classes).view(1, -1, 1, 1) * 30.0 + 15
    return lambda image: -(image[:, :1] - levels).abs()

def shifted(num_classes, device):
    network = build(num_classes, device)
    return lambda image: network(image + 30 * (image < 100))
"""

IMAGES = ["--data-root", "data", "--sar", "sar/s_*.*", "--optical", "opt/o_*.*"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two pairs, of 14 columns from 15 to 195, and the adapters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "level_teachers.py").write_text(ADAPTERS)
    red = np.broadcast_to((np.arange(14) // 2 * 30 + 15).astype(np.uint8), (8, 14))
    for i in range(2):
        for name, values in (("sar/s", red), ("opt/o", np.stack([red] * 3, axis=-1))):
            path = tmp_path / "data" / f"{name}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return tmp_path


def test_two_teachers_and_their_agreement(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for function in ("build", "shifted"):
        teacher = ["--teacher", f"level_teachers:{function}", "--output", function]
        assert main(["label", *teacher, *IMAGES, "--confidence"]) == 0, capsys.readouterr().err
    assert "2 label maps in shifted/labels" in capsys.readouterr().out
    label = np.array(Image.open(place / "build" / "labels" / "sar" / "s_1.png"))
    assert label[3].tolist() == [i // 2 for i in range(14)]
    assert main(["agreement", "build", "shifted", "--json", "found.json"]) == 0
    assert json.loads((place / "found.json").read_text())["mean_agreement"] == pytest.approx(4 / 7)
    assert "57.14 %" in capsys.readouterr().out


def test_a_map_says_what_is_not_in_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "map.yaml").write_text("teacher_classes: [sea, city, oak]\nclasses: {sea: water, oak: forest}\n")
    arguments = ["--teacher", "level_teachers:build", "--map", "map.yaml", "--output", "out", *IMAGES]
    assert main(["label", *arguments]) == 0, capsys.readouterr().err
    assert "1 classes are not in the map and become ignore: city" in capsys.readouterr().out
    label = np.array(Image.open(place / "out" / "labels" / "sar" / "s_0.png"))
    assert label[0, :6].tolist() == [2, 2, 255, 255, 4, 4]
    assert json.loads((place / "out" / "manifest.json").read_text())["class_map"]["1 city"] == "ignore"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data-root", "data"], "no images are named"),
        (["--data-root", "data", "--sar", "sar/*.*"], "--sar needs its twins"),
        (["--data-root", "data", "--sar", "sar/*.*", "--optical", "opt/*.*"], "4 files have no twin"),
        ([*IMAGES, "--rename", "x"], "is no rule"),
        ([*IMAGES, "--threshold", "2"], "threshold does not fit"),
        ([*IMAGES, "--images", "0"], "--images does not fit"),
        ([*IMAGES, "--teacher", "level_teachers:bild"], "did you mean 'build'"),
        ([*IMAGES, "--teacher", "nowhere"], "no such folder"),
        (["--dataset", "SEN1-2"], "no dataset 'SEN1-2'"),
        (["--dataset", "SEN12"], "SEN12 is not at"),
    ],
)
def test_wrong_input_ends_with_one_screen(
    arguments: list[str],
    words: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = ["--teacher", "level_teachers:build", "--output", "out"]
    assert main(["label", *teacher, *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) < 25
    assert not (place / "out").exists()
