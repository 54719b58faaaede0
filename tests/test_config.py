"""Configs from mappings, overrides and YAML: right values in, one-screen errors out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from crossearth_sar.config import from_mapping, merge, parse_overrides, read_yaml, to_mapping, write_yaml
from crossearth_sar.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    table: dict[int, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    flag: bool = False
    size: int | Literal["auto"] = "auto"


def test_nested_mapping_builds_and_comes_back() -> None:
    mapping = {
        "name": "x",
        "inner": {"rate": 1, "sizes": [3]},
        "other": {"kind": "b"},
        "table": {-1: "ignore"},
        "size": 2,
    }
    config = from_mapping(Outer, mapping)
    assert config == Outer(
        name="x", inner=Inner(rate=1.0, sizes=(3,)), other=Inner(kind="b"), table={-1: "ignore"}, size=2
    )
    assert from_mapping(Outer, to_mapping(config)) == config


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = Outer(name="x", table={0: "other", -1: "ignore"}, other=Inner(rate=1e-5))
    write_yaml(config, tmp_path / "c.yaml")
    assert from_mapping(Outer, read_yaml(tmp_path / "c.yaml")) == config


def test_overrides_read_numbers_as_typed() -> None:
    changes = parse_overrides(["inner.rate=1e-4", "inner.sizes=[4, 5]", "flag=true", "other=null"])
    config = merge(Outer(name="x", other=Inner()), changes)
    assert config.inner == Inner(rate=1e-4, sizes=(4, 5))
    assert config.flag is True
    assert config.other is None


def test_merge_keeps_what_is_not_named() -> None:
    before = Outer(name="x", inner=Inner(rate=7.0, kind="b"))
    assert merge(before, {"inner": {"sizes": [9]}}).inner == Inner(rate=7.0, kind="b", sizes=(9,))


def test_merge_goes_into_free_form_settings_but_replaces_tables() -> None:
    before = Outer(name="x", extra={"vit": {"dim": 8, "depth": 2}}, table={0: "a", 1: "b"})
    after = merge(before, {"extra": {"vit": {"dim": 9}, "moe": None}, "table": {0: "c"}})
    assert after.extra == {"vit": {"dim": 9, "depth": 2}, "moe": None}
    assert after.table == {0: "c"}
    assert before.extra == {"vit": {"dim": 8, "depth": 2}}


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"name": "x", "iner": {}}, ["unknown config key 'iner'", "did you mean 'inner'"]),
        ({"name": "x", "inner": {"rat": 1}}, ["'inner.rat'", "did you mean 'rate'"]),
        ({"name": "x", "inner": {"rate": "fast"}}, ["'inner.rate'", "'fast'", "float"]),
        ({"name": "x", "inner": {"sizes": [1.5]}}, ["'inner.sizes[0]'", "1.5", "int"]),
        ({"name": "x", "inner": {"kind": "c"}}, ["'inner.kind'", "'a' | 'b'"]),
        ({"name": "x", "flag": 1}, ["'flag'", "bool"]),
        ({"name": "x", "size": "big"}, ["'size'", "'big'"]),
        ({"name": "x", "inner": 3}, ["'inner'", "not a mapping"]),
        ({}, ["lacks name"]),
    ],
)
def test_errors_name_key_value_and_remedy(mapping: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        from_mapping(Outer, mapping)
    for word in words:
        assert word in str(caught.value)


def test_merge_refuses_unknown_keys_too() -> None:
    with pytest.raises(InputError, match="did you mean 'rate'"):
        merge(Outer(name="x"), parse_overrides(["inner.ratee=1"]))


@pytest.mark.parametrize("text", ["no-equals", "=3", "a..b=1"])
def test_malformed_override(text: str) -> None:
    with pytest.raises(InputError, match="override"):
        parse_overrides([text])


def test_unreadable_yaml_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1,\n", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- 1\n", encoding="utf-8")
    for name in ("bad.yaml", "list.yaml", "missing.yaml"):
        with pytest.raises(InputError, match=name):
            read_yaml(tmp_path / name)
