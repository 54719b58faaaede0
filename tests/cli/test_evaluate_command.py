"""train/evaluate.py as its users run it: an adapter over all rows there are, a sparse model, wrong input."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dataset_trees import fusar, write_trees

from crossearth_sar.cli import evaluate
from crossearth_sar.cli.main import main
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.evaluation.protocol import BenchmarkScore
from crossearth_sar.evaluation.registry import Benchmark, benchmark
from crossearth_sar.model import build_model, save_model

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train" / "evaluate.py"

ADAPTER = """
import torch

def build(num_classes, device):
    levels = torch.arange(num_classes).view(1, -1, 1, 1) * 40.0
    return lambda image: (image.mean(1, keepdim=True) - levels).abs().neg()[..., ::8, ::8]
"""


def test_all_rows_that_are_there(tmp_path: Path) -> None:
    write_trees(tmp_path / "data", ["SARBuD", "FUSAR-Map"])
    (tmp_path / "thresholds.py").write_text(ADAPTER)
    arguments = ["--data-root", "data", "--all", "--adapter", "thresholds:build", "--name", "thresholds"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--max-images", "1", "--pictures", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    assert "thresholds: 3 of 22 benchmarks" in done.stdout
    output = tmp_path / "runs" / "evaluate"
    content = json.loads((output / "results.json").read_text())
    assert [b["benchmark"] for b in content["benchmarks"]] == ["A2F", "A2S", "D2F"]
    assert all(0 < b["miou"] < 1 for b in content["benchmarks"])
    assert len(content["absent"]) == 19
    for name in ("report.html", "radar.png", "predictions-A2F.png", "confusion-D2F.csv", "results.csv"):
        assert (output / name).stat().st_size > 100
    assert (tmp_path / "data" / "splits" / "SARBuD-all-seed0.json").is_file()
    assert "got 5 patches, the paper has 25000" in done.stderr
    assert not list(output.glob("experts-*")), "a model of somebody else has no experts to show"


def main_of_script(*arguments: str) -> int:
    return main(["evaluate", *arguments])


def save_small(folder: Path, classes: int = 5) -> None:
    small = {
        "crop_size": 512,
        "vit": {"dim": 32, "num_heads": 2, "depth": 4, "patch_size": 64, "image_size": 512},
        "decoder": {"channels": 32, "num_queries": 6, "pixel_layers": 1, "query_layers": 1},
    }
    save_model(build_model("crossearth_sar_tiny", classes, changes=small), folder)


def test_a_row_that_cannot_be_run_is_listed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fusar(tmp_path / "data", scenes=2)
    save_small(tmp_path / "models" / "A2F")
    output = tmp_path / "out"
    arguments = ["--data-root", str(tmp_path / "data"), "--max-images", "1", "--pictures", "0"]
    arguments += ["--model", str(tmp_path / "models" / "{benchmark}"), "--output", str(output)]
    assert main_of_script("--benchmark", "D2F", "K2C", "A2F", *arguments) == 1
    said = capsys.readouterr()
    assert "D2F is not run: no model in" in said.err
    assert "K2C is not run: DDHR-SK is not at" in said.err
    content = json.loads((output / "results.json").read_text())
    assert [b["benchmark"] for b in content["benchmarks"]] == ["A2F"]
    assert list(content["absent"]) == ["D2F", "K2C"]
    reason = content["absent"]["D2F"]
    assert "config.json is missing; expected: config.json and model.safetensors; to do:" in reason
    assert f"- D2F: {reason}" in (output / "results.md").read_text()
    assert "K2C" in (output / "report.html").read_text()
    save_small(tmp_path / "models" / "D2F", classes=6)
    assert main_of_script("--benchmark", "D2F", "K2C", *arguments) == 2
    said = capsys.readouterr()
    assert "the model does not fit benchmark D2F" in said.err
    assert "none of the rows can be run\n  got: D2F, K2C" in said.err


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (["--model", "none"], "no model in none"),
        (["--adapter", "nowhere_at_all:build"], "cannot be imported"),
    ],
)
def test_a_model_of_all_rows_that_is_not_there_is_said_once(
    model: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    fusar(tmp_path / "data", scenes=2)
    assert main_of_script("--data-root", "data", "--benchmark", "A2F", "D2F", "K2C", *model) == 2
    said = capsys.readouterr().err
    assert said.count(words) == 1
    assert "is not run" not in said
    assert not (tmp_path / "runs").exists()


def test_what_is_scored_is_kept_when_a_later_row_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = evaluate
    asked: list[tuple[str, int | None]] = []

    def run_row(row: Benchmark, model: object, target: object, max_images: int | None) -> BenchmarkScore:
        asked.append((row.key, max_images))
        if max_images != 0 and row.key == "S2N":
            raise InputError("a damaged image")
        if max_images != 0 and row.key == "K2C":
            raise RuntimeError("out of memory")
        return sparse_score(row.key, 0, 0)

    monkeypatch.setattr(module, "run_benchmark", run_row)
    monkeypatch.setattr(module, "open_target", lambda *_: [])
    monkeypatch.setattr(module, "open_model", lambda arguments, row: None)
    arguments = ["--model", "x", "--output", str(tmp_path), "--benchmark", "N2S", "S2N", "K2C", "C2K"]
    with pytest.raises(RuntimeError, match="out of memory"):
        main(["evaluate", *arguments])
    assert asked[:4] == [("N2S", 0), ("S2N", 0), ("K2C", 0), ("C2K", 0)], "all are looked at first"
    content = json.loads((tmp_path / "results.json").read_text())
    assert [b["benchmark"] for b in content["benchmarks"]] == ["N2S"]
    waiting = dict.fromkeys(("K2C", "C2K"), "not scored yet")
    assert content["absent"] == {"S2N": "a damaged image", **waiting}


def test_targets_are_measured_at_the_spacing_of_the_rows_model(tmp_path: Path) -> None:
    changes = {"crop_size": 64, "vit": {"image_size": 64}, "pixel_m": 8.0}
    row = benchmark("A2F")
    for name, given in ((f"{row.slug}-scaled", changes), (f"{row.slug}-plain", {**changes, "pixel_m": None})):
        save_model(
            build_model("crossearth_sar_tiny", 5, changes={**given, "crop_stride": 64}), tmp_path / name
        )

    def of(model: str | None) -> float | None:
        return evaluate.working_pixel_m(argparse.Namespace(model=model), row)

    assert of(str(tmp_path / "{benchmark}-scaled")) == 8
    assert of(str(tmp_path / "{benchmark}-plain")) is None
    assert of(str(tmp_path / "nowhere")) is None
    assert of(None) is None, "another's model takes images as they are"


def test_a_sparse_model_shows_its_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of one target, so the same images through the same model: their shares are the same."""
    fusar(tmp_path / "data", scenes=2)
    save_small(tmp_path / "model")
    output = tmp_path / "out"
    arguments = ["--data-root", str(tmp_path / "data"), "--benchmark", "A2F", "D2F", "--max-images", "1"]
    arguments += ["--model", str(tmp_path / "model"), "--pictures", "0", "--output", str(output)]
    assert main_of_script(*arguments) == 0
    with (output / "experts-by-domain.csv").open() as file:
        lines = list(csv.DictReader(file))
    shares = {(b["benchmark"], int(b["layer"]), int(b["expert"])): float(b["share"]) for b in lines}
    assert len(shares) == 2 * 4 * 6
    for layer in range(4):
        row = [shares["A2F", layer, expert] for expert in range(6)]
        assert sum(row) == pytest.approx(1, abs=1e-5)
        assert row == [shares["D2F", layer, expert] for expert in range(6)]
    page = (output / "report.html").read_text()
    assert page.count("<img") == 3  # both rows in one picture, and a picture a row
    assert page.index("Experts against domains") < page.index("A2F: share of tokens")


def sparse_score(key: str, layers: int, experts: int) -> BenchmarkScore:
    row = benchmark(key)
    return BenchmarkScore(
        row=row,
        confusion=ConfusionMatrix(len(row.classes.classes)),
        images=1,
        notes=(),
        expert_share_LE=torch.full((layers, experts), 1 / max(experts, 1)),
    )


def test_experts_stand_beside_each_other_only_where_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = evaluate
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        module, "expert_domain_figure", lambda shares, path, title: drawn.append(list(shares)) or path
    )
    dense, one = sparse_score("N2S", 0, 0), sparse_score("F2A", 4, 6)
    assert module.overall_pictures("x", [dense, one], tmp_path) == []
    assert module.overall_pictures("x", [sparse_score("S2A", 2, 6), one], tmp_path) == []
    assert "[(2, 6), (4, 6)]" in caplog.text
    scores = [one, sparse_score("K2C", 4, 6), sparse_score("S2A", 4, 6)]
    titles = [picture.title for picture in module.overall_pictures("x", scores, tmp_path)]
    assert titles[-1] == "Experts against domains: share of tokens"
    first, second, third = drawn[0]
    assert (first, second) == ("AIR-PolSAR-Seg-2.0 · F2A", "AIR-PolSAR-Seg-2.0 · S2A")
    assert third == "DDHR-SK CN · K2C"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmark", "K2C", "--model", "none"], "DDHR-SK is not at"),
        (["--benchmark", "C(R)2R", "--model", "none"], "did you mean 'C(r)2R'"),
        (["--all", "--adapter", "a:b"], "no benchmark's data are there"),
        (["--all"], "no model is named"),
        (["--all", "--model", "none", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["--model", "x"], "no benchmark is named"),
    ],
)
def test_wrong_input_ends_with_one_screen(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main_of_script(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) < 25


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of_script("--list") == 0
    said = capsys.readouterr().out
    assert said.count("->") == 22
    assert "WHU-OPT-SAR/" in said
