"""Sweeps: what varies is checked at the start, trials are kept and not repeated, the best comes first."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossearth_sar.config import merge
from crossearth_sar.engine.config import RunConfig, simulated_run
from crossearth_sar.engine.sweep.report import write_sweep_report
from crossearth_sar.engine.sweep.settings import (
    SweepConfig,
    Vary,
    is_integer,
    read_sweep,
    require_score,
    trial_config,
)
from crossearth_sar.engine.sweep.study import Study, Trial
from crossearth_sar.errors import InputError

pytest.importorskip("optuna")

RATE = {"low": 1e-4, "high": 1e-2, "log": True}
SPACE: dict[str, Any] = {"optim.lr": RATE, "batch_size": {"low": 2, "high": 8}, "mode": {"values": ["full"]}}


def written(place: Path, **content: Any) -> Path:
    file = place / "sweep.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def run_in(place: Path) -> RunConfig:
    return merge(simulated_run(), {"output": str(place)})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"vary": {"optim.learning": RATE}}, ["unknown config key 'optim.learning'", "lr"]),
        ({"vary": {"model.moe.topk": {"values": [1]}}}, ["topk", "top_k"]),
        ({"vary": {"optim.lr": {"low": 1e-2, "high": 1e-4}}}, ["vary.optim.lr", "low below high"]),
        ({"vary": {"optim.lr": {"low": 0, "high": 1, "log": True}}}, ["low above 0"]),
        ({"vary": {"optim.lr": {"low": 1e-4}}}, ["vary.optim.lr", "low and high"]),
        ({"vary": {"optim.lr": {"low": 1e-4, "high": 1.0, "values": [1]}}}, ["values: […], or low and high"]),
        ({"vary": {"optim.lr": {"values": [1, 1]}}}, ["each value once"]),
        ({"vary": {"optim.lr": {"low": -1.0, "high": 1.0}}}, ["cannot set optim.lr to -1.0", "above 0"]),
        ({"vary": {"batch_size": {"low": 1.5, "high": 4}}}, ["vary.batch_size", "whole numbers"]),
        ({"vary": {"mode": {"low": 1, "high": 4}}}, ["mode takes no range"]),
        ({"vary": {"mode": {"values": ["full", "frozn"]}}}, ["cannot set mode to 'frozn'", "frozen"]),
        ({"vary": {"model.vit.num_heads": {"values": [3, 5]}}}, ["cannot set model.vit.num_heads to 5"]),
        ({"vary": {"output": {"values": ["a"]}}}, ["output"]),
        ({"vary": {}}, ["at least one setting"]),
        ({"vary": {"optim.lr": RATE}, "trials": 0}, ["trials"]),
        ({"vary": {"optim.lr": RATE}, "trails": 3}, ["did you mean 'trials'"]),
    ],
)
def test_what_is_wrong_is_said_at_the_start(tmp_path: Path, content: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        read_sweep(written(tmp_path, **content), run_in(tmp_path))
    for word in words:
        assert word in str(error.value)


def test_a_score_is_a_column_of_the_run() -> None:
    require_score("iou_water", ["other", "water"])
    with pytest.raises(InputError, match="did you mean 'iou_water'"):
        require_score("iou_watr", ["other", "water"])


def test_types_are_those_of_the_settings(tmp_path: Path) -> None:
    both = Vary(low=1, high=4)
    assert is_integer("batch_size", both)
    assert is_integer("model.moe.top_k", both)
    assert not is_integer("augment.gain_db", both), "a whole bound of a real number is real"
    base = run_in(tmp_path)
    values = {"optim.lr": 3e-4, "model.vit.stem": [16, 32], "augment.speckle_looks": None}
    config = trial_config(base, values, tmp_path / "trial-0000")
    assert (config.optim.lr, config.output) == (3e-4, str(tmp_path / "trial-0000"))
    assert config.model["vit"] == {"stem": [16, 32]}
    assert config.model["pixel_m"] == 10.0, "what is not varied stays"
    assert config.train == base.train


def opened(place: Path, trials: int = 12, **changes: Any) -> Study:
    place.mkdir(exist_ok=True)
    space = {key: Vary(**how) for key, how in SPACE.items()}
    return Study(SweepConfig(vary=space, trials=trials, **changes), run_in(place))


def scored(trial: Trial) -> Trial:
    """Best at a learning rate of 1e-3."""
    score = -abs(float(trial.values["optim.lr"]) - 1e-3)
    return Trial(trial.number, trial.values, score, None, {"seconds": 60.0, "step": 5})


def told(study: Study, count: int) -> list[Trial]:
    for _ in range(count):
        trial = study.next()
        assert trial is not None
        study.tell(scored(trial))
    return study.finished()


def test_a_stopped_sweep_repeats_one_that_was_not(tmp_path: Path) -> None:
    whole = told(opened(tmp_path / "whole"), 12)
    assert opened(tmp_path / "whole").next() is None, "finished ones never again"
    stopped = opened(tmp_path / "stopped")
    told(stopped, 5)
    broken_off = stopped.next()
    again = opened(tmp_path / "stopped")
    assert again.next() == broken_off, "what was broken off is run again, with its settings"
    assert told(again, 7) == whole
    assert [trial.number for trial in whole] == list(range(12))
    assert len({trial.values["optim.lr"] for trial in whole}) == 12, "draws differ"
    assert all(1e-4 <= trial.values["optim.lr"] <= 1e-2 for trial in whole)
    assert {type(trial.values["batch_size"]) for trial in whole} == {int}
    other = told(opened(tmp_path / "other", seed=1), 1)
    assert other[0].values != whole[0].values
    assert told(opened(tmp_path / "whole", trials=13), 1)[:12] == whole, "more trials may be asked for"


def test_a_trial_killed_while_it_was_drawn_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(tmp_path / "sweep", trials=1)
    monkeypatch.setattr(study, "_space", {"optim.lr": study._space["optim.lr"]})
    study._study.ask(study._space)
    again = opened(tmp_path / "sweep", trials=1)
    trial = again.next()
    assert trial is not None
    assert set(trial.values) == set(SPACE)
    again.tell(scored(trial))
    assert again.next() is None
    assert again.best() == again.finished()[0]


def test_another_sweep_in_the_folder_is_refused(tmp_path: Path) -> None:
    told(opened(tmp_path / "sweep"), 1)
    with pytest.raises(InputError, match=r"another the sweep's seed"):
        opened(tmp_path / "sweep", seed=3)
    space = SweepConfig(vary={key: Vary(**how) for key, how in SPACE.items()})
    with pytest.raises(InputError, match="another steps"):
        Study(space, merge(run_in(tmp_path / "sweep"), {"steps": 7}))


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'crossearth-sar\[sweep\]'"):
        opened(tmp_path / "sweep")


def test_the_table_has_the_best_first(tmp_path: Path) -> None:
    space = SweepConfig(vary={"optim.lr": Vary(**RATE), "model.vit.stem": Vary(values=([], [16]))}, trials=3)
    low, high = ({"optim.lr": rate, "model.vit.stem": [16]} for rate in (1e-4, 1e-3))
    trials = [
        Trial(0, low, 0.25, None, {"seconds": 90.0, "step": 5}),
        Trial(1, low, None, "out of memory", {"seconds": 30.0}),
        Trial(2, high, 0.5, None, {"seconds": 60.0, "step": 10}),
    ]
    text = write_sweep_report(tmp_path, space, trials)
    assert text == (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "--set optim.lr=0.001 'model.vit.stem=[16]'" in text
    assert "trial-0001 has no score: out of memory" in text
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["trial-0002", "trial-0000", "trial-0001"]
    assert rows[0] == {
        "trial": "trial-0002", "miou": "0.5", "optim.lr": "0.001", "model.vit.stem": "[16]", "of step": "10",
        "minutes": "1.0", "failure": "",
    }  # fmt: skip
    lines = [line for line in text.splitlines() if line.startswith("| trial-")]
    assert lines[0].startswith("| trial-0002 | 0.5 | 0.001 | [16] | 10 | 1 |")
