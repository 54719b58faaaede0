"""The miniature benchmarks: a small run end to end, stopped and resumed; and what their statistics say."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.experiments import (
    ablations,  # bench/ is on the path, see pyproject.toml
    bench22,
    miniature_runs,
)
from bench.experiments.miniature_model import Backbone, Budget, Setting, majority_miou, pretrain
from bench.experiments.miniature_runs import Job, RunStore, estimate, fingerprint, paired, run_job, verdict
from crossearth_sar.config import merge
from crossearth_sar.evaluation.miniature import STAND_INS, Tiles
from crossearth_sar.presets import MoEConfig

SMALL = {
    "sensors": 2,
    "sensor_scenes": 1,
    "steps": 3,
    "batch": 4,
    "row_scenes": 1,
    "test_scenes": 1,
    "head_steps": 2,
    "head_batch": 2,
    "dim": 32,
}
BUDGET = merge(Budget(), SMALL)
PAPER = Path(__file__).resolve().parents[3] / "shared" / "paper"
ROW = "S2A-sim"
SHUFFLED = "shuffled between images"
DEFAULTS = {"balance": "weight 0.005", "descriptors": "all", "experts": "n=6", "top_k": "k=1"}


def finished(setting: Setting, seed: int, row: str, miou: float) -> dict[str, object]:
    numbers = {"target_miou": miou, "source_miou": miou + 1, "majority_miou": 5.0}
    experts = {"effective_experts": 3.0, "largest_share": 0.5} if setting.moe else {}
    return {
        "setting_id": fingerprint(setting, BUDGET),
        "seed": seed,
        "row": row,
        **numbers,
        "effective_experts": None,
        "largest_share": None,
        **experts,
    }


def filled(
    folder: Path, values: dict[tuple[str, int], float], settings: dict[str, Setting], rows: list[str]
) -> RunStore:
    """A store with the given mIoU for (setting's name, seed), in every row."""
    store = RunStore(folder, BUDGET)
    store.add(
        finished(settings[name], seed, row, miou) for (name, seed), miou in values.items() for row in rows
    )
    return store


def test_command_and_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench22.py", "--rows", "S2A", "--seeds", "0", "--processes", "1"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    command += ["--set", *(f"{key}={value}" for key, value in SMALL.items())]
    monkeypatch.setattr(sys, "argv", command)
    bench22.main()
    assert "3 of 3 runs are finished" in capsys.readouterr().out
    lines = (tmp_path / "work" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    report = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {"device", "commit", "date"} <= set(report["provenance"])
    assert {run["name"] for run in report["runs"]} == set(bench22.VARIANTS)
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8") as file:
        assert [row["row"] for row in csv.DictReader(file)] == [ROW]

    # A kill while a line was written: that run is repeated, from the weights, with the same score.
    (tmp_path / "work" / "runs.jsonl").write_text("\n".join(lines)[:-40], encoding="utf-8")
    store = RunStore(tmp_path / "work", BUDGET)
    jobs = store.jobs(bench22.VARIANTS.values(), [0], [ROW])
    lost = json.loads(lines[-1])
    assert [(job.rows, job.setting.mapping()) for job in jobs] == [((ROW,), lost["setting"])]
    again = run_job(jobs[0], BUDGET, str(store.weights(jobs[0].setting, 0)))
    assert again[0]["target_miou"] == pytest.approx(lost["target_miou"], abs=1e-3)
    store.add(again)
    assert RunStore(tmp_path / "work", BUDGET).jobs(bench22.VARIANTS.values(), [0], [ROW]) == []


def test_jobs_come_seed_by_seed_and_share_a_source(tmp_path: Path) -> None:
    store = RunStore(tmp_path, BUDGET)
    jobs = store.jobs([Setting(), Setting(moe=MoEConfig())], [0, 1], ["D2O-sim", "D2W-sim", "N2S-sim"])
    assert [job.seed for job in jobs] == [0] * 6 + [1] * 6
    assert [job.rows for job in jobs[:6]] == [(), (), *[("D2O-sim", "D2W-sim")] * 2, *[("N2S-sim",)] * 2]
    other = RunStore(tmp_path, replace(BUDGET, steps=4))
    assert fingerprint(Setting(), BUDGET) != fingerprint(Setting(), other.budget)


def test_settings_of_a_seed_are_a_pair() -> None:
    """What is not an FFN starts alike, and zero-step routers aside so do the descriptors' effects."""
    still = replace(BUDGET, steps=1, lr=0.0)
    torch.set_num_threads(1)
    dense, sparse = (pretrain(s, 3, still).state_dict() for s in (Setting(), Setting(moe=MoEConfig())))
    shared = {key for key in dense if ".mlp." not in key}
    assert shared
    assert all(torch.equal(dense[key], sparse[key]) for key in shared)
    assert {key for key in sparse if key not in dense} >= {"vit.blocks.0.mlp.router.weight"}


def test_shuffled_descriptors_are_another_images() -> None:
    torch.manual_seed(0)
    image = torch.rand(4, 64, 64) * torch.tensor([0.1, 1.0, 10.0, 100.0])[:, None, None]
    own, other = (
        Backbone(Setting(moe=MoEConfig(), shuffled=shuffled), BUDGET).eval() for shuffled in (False, True)
    )
    expected = own._descriptors(image[:, None])
    got = other._descriptors(image[:, None])
    assert expected is not None
    assert got is not None
    assert torch.equal(got, expected[[2, 3, 0, 1]])
    assert not torch.equal(got, expected)


def test_majority_of_the_training_masks() -> None:
    row = STAND_INS["F2A-sim"]
    nothing = torch.zeros(0)
    train = Tiles(nothing, torch.tensor([[[2, 2, 1, 255]]], dtype=torch.uint8), nothing, nothing)
    test = Tiles(nothing, torch.tensor([[[2, 1, 1, 255]]], dtype=torch.uint8), nothing, nothing)
    assert majority_miou(train, test, row.task) == pytest.approx((1 / 3 + 0) / 2)


def test_estimate_is_students() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.std, found.seeds) == (2.0, 1.0, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert not found.excludes_zero
    assert estimate([2.0, 2.1, 1.9]).excludes_zero
    assert math.isnan(estimate([1.0]).half_width)
    assert not estimate([1.0]).excludes_zero
    assert "better" in verdict("x", estimate([2.0, 2.1, 1.9]))
    assert "not told apart" in verdict("x", found)
    assert "one finished seed" in verdict("x", estimate([1.0]))


def test_differences_are_of_whole_seeds(tmp_path: Path) -> None:
    rows = ["N2S-sim", "S2N-sim"]
    settings = {"a": Setting(), "b": Setting(moe=MoEConfig())}
    values = {("a", 0): 10.0, ("b", 0): 12.0, ("a", 1): 20.0, ("b", 1): 23.0, ("a", 2): 30.0}
    store = filled(tmp_path, values, settings, rows)
    store.add([finished(settings["b"], 2, "N2S-sim", 99.0)])  # half a seed: does not count
    found = paired(store, settings["b"], settings["a"], [0, 1, 2], rows)
    assert (found.mean, found.seeds) == (2.5, 2)
    assert paired(store, settings["b"], settings["a"], [0, 1, 2], ["N2S-sim"]).seeds == 3


def test_gate_answer_says_only_what_the_seeds_say(tmp_path: Path) -> None:
    gates, rows = ablations.AXES["gate"], ["N2S-sim"]
    clear = {("normalized", s): 30.0 + s for s in range(3)} | {("probability", s): 20.0 + s for s in range(3)}
    clear |= {("straight_through", s): 25.0 + 1.1 * s for s in range(3)}
    store = filled(tmp_path / "clear", clear, gates, rows)
    assert "at this budget, normalized is best" in ablations.best_of(store, "gate", [0, 1, 2], rows)
    unclear = clear | {("straight_through", s): 30.0 + (-1) ** s for s in range(3)}
    store = filled(tmp_path / "unclear", unclear, gates, rows)
    answer = ablations.best_of(store, "gate", [0, 1, 2], rows)
    assert "is not better than" in answer
    assert "at this budget" not in answer
    del clear["probability", 2]
    text = ablations.report(
        filled(tmp_path / "part", clear, gates, rows), ["gate"], [0, 1, 2], rows, tmp_path
    )
    assert "8 of 9 runs are finished" in text
    assert "Not decided" in ablations.best_of(RunStore(tmp_path / "none", BUDGET), "gate", [0], rows)


def test_axes_are_the_papers() -> None:
    assert set(ablations.AXES) == {"balance", "descriptors", "experts", "top_k", "gate"}
    for axis, values in ablations.AXES.items():
        assert sum(setting == Setting(moe=MoEConfig()) for setting in values.values()) == 1, axis
        assert len({fingerprint(setting, BUDGET) for setting in values.values()}) == len(values)
    kinds = ablations.AXES["descriptors"]
    assert len(kinds) == 6
    assert kinds[SHUFFLED].shuffled


@pytest.mark.skipif(not PAPER.is_dir(), reason="the paper's tables are not beside the repository")
def test_shipped_ablations_are_the_originals() -> None:
    shipped = Path(ablations.__file__).with_name("paper_ablations.csv")
    assert shipped.read_text(encoding="utf-8") == (PAPER / "ablations.csv").read_text(encoding="utf-8")


def test_every_value_stands_beside_the_papers() -> None:
    table = ablations.paper_table()
    named = {row for rows in ablations.PAPER_ROWS.values() for row in rows.values()}
    assert named <= set(table)
    comparable = {row for row in table if row[0] in ("moe", "experts", "top_k", "descriptor")}
    assert comparable - named == {("moe", "plain MoE")}, "two changes at once: no value of one axis"
    for axis, values in ablations.AXES.items():
        assert set(ablations.PAPER_ROWS.get(axis, {})) <= set(values)
    found = {
        (axis, value): tuple(ablations.paper_cells(axis, value).values())
        for axis, values in ablations.AXES.items()
        for value in values
    }
    assert found["balance", "off"] == ("61.6", "lower")
    assert found["descriptors", "none"] == ("62.2", "lower")
    assert found["experts", "n=3"] == ("60.9", "lower")
    assert found["top_k", "k=3"] == ("61.3", "lower")
    defaults = [key for key, cells in found.items() if cells[1] == "default"]
    assert [(axis, DEFAULTS[axis]) for axis, _ in defaults] == defaults
    assert {found[key][0] for key in defaults} == {"62.4"}
    # Table 6 by hand; and CrossEarth-SAR-L on N2S, VV2F, C(r)2R, O2D and S2A.
    alone = ablations.paper_value("descriptors", "enl only")
    assert alone is not None
    assert alone.score == pytest.approx((37.48 + 73.33 + 75.97 + 19.68 + 59.02) / 5)
    assert alone.default == pytest.approx((37.8 + 73.8 + 76.4 + 23.7 + 59.1) / 5)
    assert found["descriptors", "enl only"] == ("53.1, mean of 5 rows", "lower")
    without = {key for key, cells in found.items() if cells == ("–", "–")}
    assert without == {*(("gate", g) for g in ablations.AXES["gate"]), ("descriptors", SHUFFLED)}


def test_sides_are_told_only_where_the_seeds_tell_them(tmp_path: Path) -> None:
    weight, off = ablations.AXES["balance"]
    values = {(weight, s): 30.0 + s for s in range(3)} | {(off, s): 31.0 + 1.1 * s for s in range(3)}
    rows = ["N2S-sim"]
    store = filled(tmp_path / "more", values, ablations.AXES["balance"], rows)
    lines = ablations.axis_table(store, "balance", [0, 1, 2], rows)
    assert [line["against the default, here"] for line in lines] == ["default", "higher"]
    assert [line["paper, val mIoU †"] for line in lines] == ["62.4", "61.6"]
    assert ablations.side(estimate([-1.0, -1.1, -0.9])) == "lower"
    assert ablations.side(estimate([-1.0, 1.0, 0.5])) == "not told apart"
    assert ablations.side(estimate([-1.0])) == "not told apart"
    assert ablations.side(estimate([])) == "–"
    text = ablations.report(store, ["balance"], [0, 1, 2], rows, tmp_path)
    assert "† Figures of the paper, not measured here" in text
    assert "mean 54.2, stand for it" in text


def test_a_job_waits_for_its_weights(tmp_path: Path) -> None:
    store = RunStore(tmp_path, BUDGET)
    head = Job(setting=Setting(), seed=0, rows=(ROW,))
    assert miniature_runs._next_ready(store, [head]) is None
    train = Job(setting=Setting(), seed=1)
    assert miniature_runs._next_ready(store, [head, train]) is train


def test_a_wrong_row_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in ((["--rows", "N2X"], "no stand-in 'N2X'"), (["--set", "stepz=3"], "stepz")):
        monkeypatch.setattr(sys, "argv", ["bench22.py", *arguments])
        with pytest.raises(SystemExit, match="2"):
            bench22.main()
        assert said in capsys.readouterr().err
