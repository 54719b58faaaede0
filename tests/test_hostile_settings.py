"""Settings and names that lie: refused at the start, in a moment, with words."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from crossearth_sar import InputError, load_model
from crossearth_sar.cli.predict import SETTINGS, checked_record
from crossearth_sar.config import parse_overrides, read_yaml
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.data.sample import ClassTable
from crossearth_sar.data.simulator.scenes import SimulatorConfig

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
HOSTILE = {
    "aliases that stand for billions": (BOMB, "aliases stand for more than"),
    "a value that contains itself": ("a: &a [*a]\n", "contains itself"),
    "nested without end": ("a: " + "[" * 20_000, "is not YAML"),
    "a date that is none": ("a: 2026-99-99\n", "is not YAML"),
    "a number without end": ("a: " + "9" * 5000, "is not YAML"),
    "a list as a key": ("? [a, b]\n: 1\n", "unhashable"),
    "a key twice": ("a: 1\na: 2\n", "given twice"),
    "an object of Python": ("a: !!python/object/apply:os.system [x]\n", "could not determine a constructor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_yaml_that_is_no_config(name: str, tmp_path: Path) -> None:
    text, words = HOSTILE[name]
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    started = time.perf_counter()
    with pytest.raises(InputError, match=words):
        read_yaml(tmp_path / "a.yaml")
    assert time.perf_counter() - started < 20


def test_aliases_of_the_usual_kind_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {b: 1}\nc: {<<: *a, d: 2}\ne: [*a, *a]\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": [{"b": 1}, {"b": 1}]}


@pytest.mark.parametrize("value", ["[", "{a: ", "2026-99-99", "9" * 5000, "*x"], ids=range(5))
def test_overrides_that_are_not_yaml(value: str) -> None:
    with pytest.raises(InputError, match="cannot read an override"):
        parse_overrides([f"optim.lr={value}"])


NO_NAMES = ["", " ", "x" * 300, "a\0b", "a\nb", "\udc80", "a\tb", " a"]
NO_FILES = ["../x", "a/b", "a\\b", ".", "..", ".hidden"]


@pytest.mark.parametrize("name", [*NO_NAMES, *NO_FILES], ids=ascii)
def test_a_domain_is_called_what_a_file_may_be(name: str) -> None:
    with pytest.raises(InputError, match="a domain's name does not fit"):
        DomainConfig(name=name, simulated=SimulatorConfig())


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_a_class_is_called_what_a_report_may_hold(name: str) -> None:
    with pytest.raises(InputError, match="the name of a class does not fit"):
        ClassTable(names=(name, "water"), palette=((0, 0, 0), (0, 0, 255)))


@pytest.mark.parametrize("name", ["Wald & <b>", "Überflutung", "水", "C(r)2R", "bare, dry"], ids=ascii)
def test_names_in_any_script(name: str) -> None:
    assert DomainConfig(name=name, simulated=SimulatorConfig()).name == name
    assert ClassTable(names=(name, "a/b"), palette=((0, 0, 0), (0, 0, 255))).names[0] == name


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (0.0, float("nan")), (0.0, float("inf")), (float("nan"), 1.0)]
)
def test_statistics_that_are_none(mean: float, std: float) -> None:
    with pytest.raises(InputError, match="db_mean and db_std are no statistics"):
        load_model("tiny").predict(torch.rand(1, 1, 32, 32), [mean], [std])


@pytest.mark.parametrize(
    "damage",
    [{"db_std": [0.0]}, {"db_mean": [float("nan")]}, {"db_mean": "x"}, {"db_std": None}, {"palette": [[0]]}],
    ids=str,
)
def test_a_record_of_maps_with_other_numbers_is_damaged(damage: dict[str, object], tmp_path: Path) -> None:
    settings = dict.fromkeys(SETTINGS, "domain")
    record = {**settings, "db_mean": [1.0], "db_std": [2.0], "classes": ["a"], "palette": [[0, 0, 0]]}
    path = tmp_path / "prediction.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    assert checked_record(path, settings)["db_std"] == [2.0]
    path.write_text(json.dumps({**record, **damage}), encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        checked_record(path, settings)
