"""A dataset and a benchmark that the package has never heard of: from files to a score and to a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ice_dataset import ICE, ICE_TASK, WINTER_TO_SUMMER, forget_afterwards, offer, register_all, write_ice

from crossearth_sar.config import from_mapping
from crossearth_sar.data.datasets import (
    Task,
    all_datasets,
    class_table,
    named_dataset,
    register,
    same_names,
)
from crossearth_sar.data.datasets.benchmarks import BENCHMARK_DATASETS
from crossearth_sar.data.domain import DomainConfig, open_domain, require_held_out
from crossearth_sar.data.sample import IGNORE_INDEX, Sample
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.protocol import (
    ProtocolConfig,
    absent_rows,
    open_target,
    run_benchmark,
    training_domains,
)
from crossearth_sar.evaluation.registry import (
    DomainRef,
    all_benchmarks,
    benchmark,
    register_benchmark,
)
from crossearth_sar.evaluation.report import write_html, write_tables


@pytest.fixture(autouse=True)
def _as_if_new(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_afterwards(monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_ice(tmp_path)


def oracle(sample: Sample) -> torch.Tensor:
    return torch.where(sample["mask"] == IGNORE_INDEX, 0, sample["mask"])


def test_a_registered_row_goes_from_files_to_a_score_and_a_report(root: Path, tmp_path: Path) -> None:
    register_all()
    config = ProtocolConfig(data_root=str(root), datasets={"Sea-Ice": {"nodata": 0}})
    assert absent_rows({WINTER_TO_SUMMER.key: WINTER_TO_SUMMER}, config) == {}
    target = open_target(benchmark("Wi2Su"), config)
    assert len(target) == 2
    assert target[0]["image"].shape == (1, 64, 64)
    assert set(target[0]["mask"].unique().tolist()) == {0, 1, IGNORE_INDEX}
    score = run_benchmark(WINTER_TO_SUMMER, oracle, target)
    assert score.miou == 1.0
    assert run_benchmark(WINTER_TO_SUMMER, lambda sample: 1 - oracle(sample), target).miou == 0.0
    write_tables(tmp_path, "ours", [score], about={}, absent={})
    page = write_html(tmp_path, "ours", [score], about={}, absent={}, pictures=[]).read_text()
    assert "0 of 22 benchmarks and 1 beside the paper" in page
    assert json.loads((tmp_path / "results.json").read_text())["benchmarks"][0]["paper_images"] is None
    assert "| ours |  | 100.0 | 100.0 |" in (tmp_path / "results.md").read_text()


def test_a_registered_row_gives_a_run_its_domains(root: Path) -> None:
    register_all()
    sides = training_domains(benchmark("Wi2Su"), ProtocolConfig(data_root=""))
    train, held_out = (open_domain(sides[key], str(root)) for key in ("train", "validation"))
    assert (len(train), len(held_out)) == (8, 2)
    require_held_out(train, [held_out])
    assert train.classes.names == ("water", "ice")
    official = from_mapping(
        DomainConfig, {"name": "x", "official": {"dataset": "Sea-Ice", "domain": "Winter", "task": "ice2"}}
    )
    whole = open_domain(official, str(root))
    assert len(whole) == 10
    assert torch.equal(whole[0]["db_mean"], open_domain(official, str(root))[3]["db_mean"])


def test_an_entry_point_is_asked_when_a_name_is_unknown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted() -> None:
        calls.append("called")
        register_all()

    offer(monkeypatch, counted)
    assert named_dataset("SARBuD") is BENCHMARK_DATASETS["SARBuD"]
    assert calls == [], "known names load nobody's package"
    assert len(open_target(benchmark("Wi2Su"), ProtocolConfig(data_root=str(root)))) == 2
    assert named_dataset("Sea-Ice") == ICE
    with pytest.raises(InputError, match="did you mean 'Sea-Ice'"):
        named_dataset("Sea-Icy")
    assert calls == ["called"]
    assert list(all_benchmarks())[-1] == "Wi2Su"
    assert list(all_datasets())[-1] == "Sea-Ice"


def test_entry_points_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ImportError("No module named 'ice'"))
    with pytest.raises(InputError, match=r"'ice' of crossearth_sar.datasets leads nowhere[\s\S]*ice.sar"):
        named_dataset("Sea-Ice")
    offer(monkeypatch, ICE)
    with pytest.raises(InputError, match=r"cannot be called[\s\S]*is DatasetSpec"):
        benchmark("Wi2Su")


def test_what_is_left_out_is_said_by_the_dataset_alone() -> None:
    register_all()
    bare = replace(ICE, key="Bare-Ice", maps={})
    register(bare)
    with pytest.raises(InputError, match=r"task 'ice2' has no class map for 'Bare-Ice'[\s\S]*no task"):
        register_benchmark(replace(WINTER_TO_SUMMER, key="x", source=DomainRef("Bare-Ice", "Winter")))
    half = {"ice2": {"open water": "water", "young ice": "ice"}}
    with pytest.raises(InputError, match="Half-Ice onto task 'ice2' lacks old ice"):
        register(replace(ICE, key="Half-Ice", maps=half))
    with pytest.raises(InputError, match=r"Wrong-Ice onto task 'ice2' names 'icy' \(did you mean 'ice'"):
        register(replace(ICE, key="Wrong-Ice", maps={"ice2": {**half["ice2"], "old ice": "icy"}}))
    with pytest.raises(InputError, match="no task 'ice3'"):
        register(replace(ICE, key="Lost-Ice", maps={"ice3": {}}))
    with pytest.raises(InputError, match="has no domain 'Wintre' \\(did you mean 'Winter'"):
        register_benchmark(replace(WINTER_TO_SUMMER, key="x", source=DomainRef("Sea-Ice", "Wintre")))
    for key in ("Half-Ice", "Wrong-Ice", "Lost-Ice"):
        with pytest.raises(InputError, match=f"no dataset '{key}'"):
            named_dataset(key)
    with pytest.raises(InputError, match="scores 'snow', which is no class of it"):
        Task(key="x", classes=class_table(("water", "ice")), scored=("snow",))


def test_known_rows_stay_what_they_are() -> None:
    register_all()
    register_all()  # the same again is no mistake
    for row, words in ((ICE, "dataset 'Sea-Ice'"), (BENCHMARK_DATASETS["SARBuD"], "dataset 'SARBuD'")):
        with pytest.raises(InputError, match=f"there is another {words}"):
            register(replace(row, window=128))
    with pytest.raises(InputError, match="there is another benchmark 'N2S'"):
        register_benchmark(replace(WINTER_TO_SUMMER, key="N2S"))


def test_a_map_can_come_from_the_data_file(root: Path) -> None:
    """Onto a task that the row says nothing of: no code has to be changed for a benchmark of one's own."""
    register(replace(ICE, maps={}), tasks=[ICE_TASK])
    maps = {"ice2": {**same_names(), "open water": "water", "young ice": "ice", "old ice": "ignore"}}
    official = {"dataset": "Sea-Ice", "domain": "Winter", "task": "ice2"}
    given = open_domain(
        from_mapping(DomainConfig, {"name": "x", "official": {**official, "changes": {"maps": maps}}}),
        str(root),
    )
    stripe = np.array([255, 0, 1, 255])  # of the values 0, 10, 20 and 30
    assert given[0]["mask"][0, ::16].tolist() == stripe.tolist()
    with pytest.raises(InputError, match="no class map for 'Sea-Ice'"):
        open_domain(from_mapping(DomainConfig, {"name": "x", "official": official}), str(root))
