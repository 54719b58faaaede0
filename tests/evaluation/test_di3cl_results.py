"""The DI3CL paper's scores: the shipped table is the original, and its mean counts an eleventh class."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import pytest

from crossearth_sar.cli.main import main
from crossearth_sar.evaluation.di3cl_results import di3cl_results

PAPER = Path(__file__).parents[3] / "shared" / "paper"
TEN = {"water", "wetland", "farmland", "forest", "meadow", "road", "village", "city", "ground", "other"}


def test_every_row_has_ten_classes_and_a_mean_that_is_not_theirs() -> None:
    rows = di3cl_results()
    assert [row.table for row in rows] == ["II"] * 12 + ["III"] * 12
    for row in rows:
        assert set(row.f1) == TEN
        assert 4.0 < row.miou - row.ten_class_miou < 5.8
        lowest = 98.0 if row.method == "SimSiam" else 99.2  # a misprint in that row
        assert lowest < row.eleventh_iou < 100


def test_figures_worked_by_hand() -> None:
    """Random Init of Table II: F1 in, IoU out, one by one."""
    first = di3cl_results()[0]
    f1 = [44.96, 12.34, 74.57, 88.96, 81.50, 2.37, 63.90, 64.78, 41.33, 0.00]
    assert list(first.f1.values()) == f1
    iou = [29.0, 6.577, 59.451, 80.116, 68.776, 1.199, 46.951, 47.906, 26.049, 0.0]
    assert first.ten_class_miou == pytest.approx(sum(iou) / 10, abs=0.01)
    assert first.miou == pytest.approx((sum(iou) + first.eleventh_iou) / 11, abs=0.01)


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's tables are not beside the repository")
def test_the_shipped_table_is_the_original_and_agrees_with_its_check() -> None:
    shipped = files("crossearth_sar.evaluation").joinpath("di3cl_results.csv").read_text(encoding="utf-8")
    assert shipped == (PAPER / "di3cl_results.csv").read_text(encoding="utf-8")
    with (PAPER / "di3cl_consistency.csv").open(encoding="utf-8") as file:
        checked = list(csv.DictReader(file))
    for line, row in zip(checked, di3cl_results(), strict=True):
        method = ", ".join(filter(None, (line["method"], line["backbone"])))
        assert (line["table"], method) == (row.table, row.method)
        assert float(line["printed mIoU"]) == row.miou
        ten = float(line["mean IoU of the ten classes from their F1"])
        eleventh = float(line["IoU an eleventh class must have"])
        assert row.ten_class_miou == pytest.approx(ten, abs=0.006)
        assert row.eleventh_iou == pytest.approx(eleventh, abs=0.06)


def test_evaluate_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--published"]) == 0
    shown = capsys.readouterr().out
    assert "eleventh class" in shown
    assert "| DI3CL | 51.03 | 46.18 | 99.5" in shown
    assert "| UperNet, DI3CL-ResNet50 | 58.59 | 54.46 | 99.8" in shown
