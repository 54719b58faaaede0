"""Configurations: frozen keyword-only dataclasses, built from mappings, YAML files and `a.b=c` overrides.

The dataclasses themselves live beside the code that reads them; this file holds only what all of them
share: building from untrusted mappings with types checked and unknown keys refused, and the way back.
Not a framework: no inheritance of configs, no registry, no interpolation.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from crossearth_sar.errors import InputError, nearest

T = TypeVar("T")


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Builds dataclass `cls` from nested mappings, as read from YAML.

    Raises:
        InputError: for an unknown key (naming the nearest known one), a missing one, or a value of
            another type; `where` is the dotted path used in the message.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(
            f"config {where or 'root'!r} is not a mapping",
            got=repr(mapping),
            expected=f"keys {', '.join(_field_names(cls))}",
        )
    _refuse_unknown(cls, mapping, where)
    hints = typing.get_type_hints(cls)
    values = {key: _coerce(hints[key], value, _join(where, key)) for key, value in mapping.items()}
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(
            f"config {where or 'root'!r} lacks {', '.join(missing)}",
            expected="a value for each, they have no default",
        )
    return cls(**values)


def to_mapping(config: Any) -> Any:
    """The nested plain-data form of a config: what `from_mapping` reads and YAML or JSON can hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_mapping(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_mapping(item) for item in config]
    return config


def merge(config: T, changes: Mapping[str, Any], where: str = "") -> T:
    """A copy of `config` with the nested `changes` applied; keys not named keep their values."""
    cls = type(config)
    if not isinstance(changes, Mapping):
        raise InputError(
            f"config {where or 'root'!r} is not a mapping",
            got=repr(changes),
            expected=f"keys {', '.join(_field_names(cls))}",
        )
    _refuse_unknown(cls, changes, where)
    hints = typing.get_type_hints(cls)
    new: dict[str, Any] = {}
    for key, value in changes.items():
        path, current = _join(where, key), getattr(config, key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            new[key] = merge(current, value, path)
        elif hints[key] == dict[str, Any] and isinstance(value, Mapping):
            new[key] = _merge_trees(current, value)  # nested settings of something else, not one value
        else:
            new[key] = _coerce(hints[key], value, path)
    return dataclasses.replace(config, **new)  # type: ignore[type-var]


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "c=[2, 3]"]` -> `{"a": {"b": 1}, "c": [2, 3]}`; the right side is read as YAML."""
    tree: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise InputError(
                "cannot read an override",
                got=repr(text),
                expected="a.b=value",
                fix="write --set optim.lr=1e-4",
            )
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise InputError(f"override {path!r} sets a part of something already given a value")
        node[keys[-1]] = _read_yaml_value(value)
    return tree


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an unreadable or non-mapping file is an InputError that names it."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read config file {path}", got=error.strerror, fix="give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config file {path} is not YAML", got=str(error)) from error
    if not isinstance(content or {}, dict):
        raise InputError(f"config file {path} is not a mapping", got=type(content).__name__)
    return content or {}


def write_yaml(config: Any, path: str | Path) -> None:
    """Writes a config so that `from_mapping(cls, read_yaml(path))` gives it back."""
    Path(path).write_text(yaml.safe_dump(to_mapping(config), sort_keys=False), encoding="utf-8")


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """The check a config's `__post_init__` makes: raises InputError unless `condition`."""
    if not condition:
        raise InputError(f"{name} does not fit", got=repr(value), expected=expected)


def _merge_trees(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge_trees(merged[key], value) if both_nested else value
    return merged


def _read_yaml_value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as a string; everybody who types it means a number
            return float(value)
        except ValueError:
            return value
    return value


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(args, value, where)
    if origin is Literal:
        if value not in args:
            raise InputError(
                f"config {where!r} has no choice {value!r}{nearest(value, args)}",
                expected=" | ".join(map(repr, args)),
            )
        return value
    if dataclasses.is_dataclass(hint):
        is_built = isinstance(value, typing.cast(type, hint))
        return value if is_built else from_mapping(typing.cast(type, hint), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) == len(value):
            return tuple(
                _coerce(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(args, value, strict=True))
            )
    if origin is dict and isinstance(value, Mapping):
        return {_coerce(args[0], k, where): _coerce(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(
        f"config {where!r} has a value of another type",
        got=f"{value!r} ({type(value).__name__})",
        expected=_describe(hint),
    )


def _coerce_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in args:
        return None
    errors = []
    for option in (a for a in args if a is not types.NoneType):
        try:
            return _coerce(option, value, where)
        except InputError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise InputError(
        f"config {where!r} has a value of another type",
        got=f"{value!r} ({type(value).__name__})",
        expected=" or ".join(_describe(a) for a in args),
    )


def _refuse_unknown(cls: type, mapping: Mapping[str, Any], where: str) -> None:
    known = _field_names(cls)
    for key in mapping:
        if key not in known:
            raise InputError(
                f"unknown config key {_join(where, str(key))!r}{nearest(key, known)}",
                expected=f"one of {', '.join(known)}",
            )


def _field_names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
