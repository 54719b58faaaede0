"""train/evaluate.py as its users run it: an adapter over all rows that are there, and wrong input."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_trees import write_trees

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


def main_of_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    spec = importlib.util.spec_from_file_location("train_evaluate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return int(module.main())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmark", "K2C", "--model", "none"], "DDHR-SK is not at"),
        (["--benchmark", "C(R)2R", "--model", "none"], "did you mean 'C(r)2R'"),
        (["--all", "--adapter", "a:b"], "no benchmark's data are there"),
        (["--all"], "no model is named"),
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
    assert main_of_script(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) < 25


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of_script(monkeypatch, "--list") == 0
    said = capsys.readouterr().out
    assert said.count("->") == 22
    assert "WHU-OPT-SAR/" in said
