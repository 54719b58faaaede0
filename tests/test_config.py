"""Configs from mappings, overrides and YAML: right values in, one-screen errors out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from crossearth_sar.config import (
    from_mapping,
    layered,
    merge,
    parse_overrides,
    read_yaml,
    to_mapping,
    write_yaml,
)
from crossearth_sar.config_keys import settings_of
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


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree as a run's is: parts in parts, settings of something else, one name at several places."""

    size: int = 1
    rating: int = 1
    first: Part = field(default_factory=Part)
    second: Part | None = None
    items: tuple[Part, ...] = ()
    changes: dict[str, Any] = settings_of(Outer)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (
            {"rate": 1},
            "unknown config key 'rate' (did you mean 'first.inner.rate' or 'second.inner.rate' or ",
        ),
        ({"kinds": "a"}, "'kinds' (did you mean 'first.inner.kind'?)"),
        ({"inner": {}}, "'inner' (did you mean 'first.inner' or 'second.inner' or 'changes.inner'?)"),
        ({"ratin": 1}, "'ratin' (did you mean 'rating'?)"),
        ({"first": {"rate": 1}}, "'first.rate' (did you mean 'first.inner.rate'?)"),
        ({"second": {"flag": True}}, "'second.flag' (did you mean 'changes.flag'?)"),
        ({"first": {"parts": [{"inner": {"rat": 1}}]}}, "'first.parts[0].inner.rat' (did you mean 'rate'?)"),
        ({"items": [{}, {"rate": 1}]}, "'items[1].rate' (did you mean 'items[1].inner.rate'?)"),
        ({"changes": {"inner": {"sise": 1}}}, "'changes.inner.sise' (did you mean"),
        ({"changes": {"other": {"kid": 1}}}, "'changes.other.kid' (did you mean 'kind'?)"),
        ({"changes": {"rate": 1}}, "'changes.rate' (did you mean 'changes.inner.rate' or"),
        ({"zzzzzz": 1}, "unknown config key 'zzzzzz'\n"),
    ],
)
@pytest.mark.parametrize("way", ["built", "merged"])
def test_a_wrong_key_is_looked_for_in_the_whole_tree(mapping: dict[str, Any], words: str, way: str) -> None:
    with pytest.raises(InputError) as caught:
        from_mapping(Tree, mapping) if way == "built" else merge(Tree(second=Part()), mapping)
    assert words in str(caught.value)


def test_a_suggested_key_carries_the_place_of_the_whole_config() -> None:
    with pytest.raises(
        InputError, match=r"'model\.rate' \(did you mean 'model\.inner\.rate' or 'model\.other"
    ):
        merge(Outer(name="x"), {"rate": 1}, "model")


def test_settings_of_something_else_stay_open_in_their_values() -> None:
    tree = merge(Tree(changes={"inner": {"rate": 1}}), {"changes": {"inner": {"kind": "b"}, "other": None}})
    assert tree.changes == {"inner": {"rate": 1, "kind": "b"}, "other": None}
    assert tree == from_mapping(Tree, to_mapping(tree))


def test_layers_merge_settings_and_replace_lists_and_tables() -> None:
    layers = (
        {"name": "x", "inner": {"rate": 1, "sizes": [1]}, "table": {0: "a"}, "extra": {"a": {"b": 1}}},
        {"inner": {"kind": "b"}, "other": {"rate": 2}},
        {"inner": {"sizes": [2]}, "other": None, "table": {1: "b"}, "extra": {"a": {"c": 2}}, "new": 1},
    )
    assert layered(Outer, *layers) == {
        "name": "x",
        "inner": {"rate": 1, "kind": "b", "sizes": [2]},
        "other": None,
        "table": {1: "b"},
        "extra": {"a": {"b": 1, "c": 2}},
        "new": 1,  # from_mapping refuses it
    }
    assert layers[0]["inner"] == {"rate": 1, "sizes": [1]}, "layers stay as they are"


@pytest.mark.parametrize("text", ["inner.rate=[", "name={a", "name='x", "extra={a: 1, a: 2}"])
def test_an_override_that_is_no_yaml_is_refused_with_words(text: str) -> None:
    with pytest.raises(InputError, match="is not YAML") as caught:
        parse_overrides([text])
    assert text in str(caught.value).replace('\\"', '"')


def test_a_key_given_twice_is_refused_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    for text in ("name: x\nname: y\n", "inner:\n  rate: 1\n  kind: a\n  rate: 2\n", "a: [{b: 1, b: 1}]\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"(?s)twice\.yaml is not YAML.*is given twice"):
            read_yaml(path)


def test_an_anchor_may_be_changed_where_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc:\n  <<: *b\n  x: 4\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 4, "y": 3}}


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
