"""The measures of bench.experiments.simulator_realism, on images whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.experiments import simulator_realism as realism
from bench.experiments.simulator_realism import Tile
from crossearth_sar.data.simulator.speckle import multi_look


def tile(looks: float = 4.0, correlation: float = 0.0, step_db: float = 0.0, seed: int = 0) -> Tile:
    """Speckle whose left half is water, so much darker."""
    power = np.ones((128, 128), np.float32)
    power[:, :64] = 10 ** (-step_db / 10)
    water = np.zeros((128, 128), int)
    water[:, :64] = 1
    return Tile(multi_look(np.random.default_rng(seed), power, looks, correlation), water)


def test_looks_and_correlation() -> None:
    row = realism.measures([tile(9.0, 0.0, seed=i) for i in range(4)])
    assert float(str(row["ENL"])) == pytest.approx(11, abs=2)  # the plainest tenth of blocks is above 9
    assert abs(float(str(row["lag-1"]))) < 0.1
    oversampled = realism.measures([tile(9.0, 0.7, seed=i) for i in range(4)])
    assert float(str(oversampled["lag-1"])) > 0.5


def test_edges_and_contrast() -> None:
    flat, stepped = (realism.measures([tile(40.0, 0.0, step)]) for step in (0.0, 8.0))
    assert float(str(flat["edges %"])) == 0
    assert float(str(stepped["edges %"])) == pytest.approx(100 * 6 / 122, abs=2.5)
    assert str(stepped["contrast dB 10-50-90 %"]) == "8.0/8.0/8.0"
    assert str(stepped["water % 10-50-90 %"]) == "50/50/50"


def test_percentiles_are_relative_to_the_mean() -> None:
    row = realism.measures([tile(1.0, seed=i) for i in range(6)])
    assert float(str(row["p50 dB"])) == pytest.approx(10 * np.log10(np.log(2)), abs=0.1)
    assert float(str(row["p99.9 dB"])) == pytest.approx(10 * np.log10(np.log(1000)), abs=0.4)


def test_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realism, "REAL", {"made up": (lambda root, band: iter([tile()]), 0)})
    words = ["realism", "--real", str(tmp_path), "--out", str(tmp_path / "out"), "--tiles", "3"]
    monkeypatch.setattr("sys.argv", words)
    realism.main()
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "made up" in text
    assert "wide, about 10 m" in text
    assert len((tmp_path / "out" / "results.csv").read_text(encoding="utf-8").splitlines()) == 6
