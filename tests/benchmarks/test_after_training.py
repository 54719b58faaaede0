"""The end of a pre-training's report: a table of real images where there are some, else a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from real_tree import write_real

from bench.experiments.real import after_training  # bench/ is on the path
from bench.experiments.real.sets import SETS
from crossearth_sar.model import load_model, save_model
from crossearth_sar.shipped import model_folder

REPORT = "# a run\n\nnumbers of simulated scenes\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, and few sets to score."""
    monkeypatch.chdir(tmp_path)
    names = ("ombria-te", "kompsat5", "sf-vv-cover")
    monkeypatch.setattr(after_training, "SETS", [row for row in SETS if row.name in names])
    folder = tmp_path / "runs" / "short"
    shutil.copytree(model_folder("tiny"), folder / "model")
    (folder / "report.md").write_text(REPORT, encoding="utf-8")
    return folder


def words(real: Path) -> list[str]:
    """What make gives it: the settings of the training, and where images would lie."""
    return ["--real", str(real), "--resume", "--set", "steps=3", "output=runs/short"]


def table(text: str) -> dict[str, dict[str, str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:]}


def test_the_report_ends_with_real_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_real(tmp_path / "real")
    after_training.main(words(real))
    text = (run / "report.md").read_text(encoding="utf-8")
    assert text.startswith(REPORT)
    assert text.removeprefix(REPORT).strip() in capsys.readouterr().out
    rows = table(text)
    assert list(rows) == ["ombria-te", "kompsat5", "mean of the 2 sets"], "water alone"
    assert float(rows["ombria-te"]["mIoU, Otsu"].split()[0]) > 80, "dark and bright halves"
    scored = [float(rows[name]["mIoU, model"].split()[0]) for name in ("ombria-te", "kompsat5")]
    mean = float(rows["mean of the 2 sets"]["mIoU, model"])
    assert mean == pytest.approx(sum(scored) / 2, abs=0.11)
    after_training.main(words(real))
    assert (run / "report.md").read_text(encoding="utf-8") == text, "a second call adds nothing"
    assert " done" not in capsys.readouterr().out, "nor scores again"


def test_without_images_a_line_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after_training.main(words(tmp_path / "nowhere"))
    text = (run / "report.md").read_text(encoding="utf-8")
    assert text.startswith(REPORT)
    assert f"there are none below {tmp_path / 'nowhere'}" in text
    assert text.removeprefix(REPORT).strip() in capsys.readouterr().out


def test_a_run_without_a_model_or_of_other_classes_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(run / "model")
    model.name_classes([f"ship {number}" for number in range(7)])
    save_model(model, run / "model")
    after_training.main(words(write_real(tmp_path / "real")))
    assert "none of the sets has classes that the model knows" in (run / "report.md").read_text(
        encoding="utf-8"
    )
    settings = run / "model" / "config.json"
    settings.write_text(settings.read_text().replace('"bands": 1', '"bands": 2').replace("ship 2", "water"))
    after_training.main(words(tmp_path / "real"))
    assert "Not scored: " in (text := (run / "report.md").read_text(encoding="utf-8"))
    assert "images of other bands" in text
    assert text.count("## Real images") == 1
    shutil.rmtree(run / "model")
    before = (run / "report.md").read_bytes()
    after_training.main(words(tmp_path / "real"))
    assert "holds no finished run" in capsys.readouterr().out
    assert (run / "report.md").read_bytes() == before
