"""Configurations: frozen keyword-only dataclasses, built from mappings, YAML files and `a.b=c` overrides.

The dataclasses themselves live beside the code that reads them; this file holds only what all of them
share: building from untrusted mappings with types checked and unknown keys refused, and the way back.
Each field is followed by a string that says what it means: the command line shows it.
Not a framework: no inheritance of configs, no registry, no interpolation.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from crossearth_sar.config_keys import config_below, config_in, field_names, hints_of, join, meant_key
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.whole import write_text

T = TypeVar("T")

MAX_NODES = 100_000
"""Values in one config; a few lines of aliases can stand for billions."""

MAX_NAME = 150
"""Bytes; a file's name may have 255, and a name is only a part of it."""


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Builds dataclass `cls` from nested mappings, as read from YAML.

    Raises:
        InputError: for an unknown key (naming the nearest known one, wherever it is), a missing one, or a
            value of another type; `where` is the dotted path used in the message.
    """
    return _build(cls, mapping, _Place(where, cls, where))


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
    """A copy of `config` with the nested `changes` applied; keys not named keep their values.

    Raises:
        InputError: as `from_mapping`.
    """
    return _merged(config, changes, _Place(where, type(config), where))


def layered(cls: type, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of several of `cls`, later over earlier: what `from_mapping` then checks as a whole.

    Settings with keys of their own are merged; lists and tables (label_values, say) are replaced.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            known, under = key in field_names(cls), result.get(key)
            below = config_below(cls, key) if known else None
            if not isinstance(value, Mapping) or not isinstance(under, Mapping):
                result[key] = value
            elif below is not None:
                result[key] = layered(below, under, value)
            elif known and hints_of(cls)[key] == dict[str, Any]:
                result[key] = _merge_trees(under, value)
            else:
                result[key] = value
    return result


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "c=[2, 3]"]` -> `{"a": {"b": 1}, "c": [2, 3]}`; the right side is read as YAML."""
    tree: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        keys = [key.strip() for key in path.split(".")]
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
        node[keys[-1]] = _read_yaml_value(value, text)
    return tree


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: naming the file, where it cannot be read, is no mapping, or gives a key twice.
    """
    path = Path(path)
    try:
        content = _loaded(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read config file {path}", got=error.strerror, fix="give the path of a YAML file"
        ) from error
    except _NOT_YAML as error:
        raise InputError(f"config file {path} is not YAML", got=str(error)) from error
    if not isinstance(content or {}, dict):
        raise InputError(f"config file {path} is not a mapping", got=type(content).__name__)
    return content or {}


def read_json(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        InputError: naming the file, where it cannot be read, is no mapping, or is nested without end.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read: it is not JSON", got=str(error), fix="copy it again from where it came"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is not a mapping", got=type(content).__name__, fix="copy it again from where it came"
        )
    return content


def write_yaml(config: Any, path: str | Path) -> None:
    """Writes a config so that `from_mapping(cls, read_yaml(path))` gives it back."""
    write_text(Path(path), yaml.safe_dump(to_mapping(config), sort_keys=False))


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """The check a config's `__post_init__` makes: raises InputError unless `condition`."""
    if not condition:
        raise InputError(f"{name} does not fit", got=repr(value), expected=expected)


def require_name(name: str, what: str, *, of_file: bool = False) -> None:
    """InputError unless it is a name for reports and logs, and with `of_file` for files."""
    fits = name.strip() == name != "" and name.isprintable() and len(name.encode()) <= MAX_NAME
    expected = f"printable letters without a line break, 1 to {MAX_NAME} bytes of UTF-8, no blanks about it"
    if of_file:
        fits = fits and not {"/", "\\"} & {*name} and not name.startswith(".")
        expected += ", no slash and no dot at the start: files are called so"
    require(fits, what, name, expected)


def require_range(config: Any, prefix: str, low: float, high: float, *names: str) -> None:
    """InputError unless these fields of a config lie from `low` to `high`, which NaN does not; None passes.

    What is absurd is refused here, before anybody builds or allocates it: settings come in files, too.
    """
    for name in names:
        value = getattr(config, name)
        require(value is None or low <= value <= high, f"{prefix}{name}", value, f"{low:g} to {high:g}")


_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What yaml raises of text that is none; the others of dates, numbers and lists that cannot be."""


def _loaded(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded_size(node, {}) > MAX_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"its aliases stand for more than {MAX_NODES} values", node.start_mark
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node is once every alias in it is what it stands for."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.composer.ComposerError(None, None, "a value contains itself", node.start_mark)
        return size
    known[id(node)] = None
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inner = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
    known[id(node)] = size = 1 + sum(_expanded_size(part, known) for part in inner)
    return size


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(name)
        return node


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in a config we are: its dotted path, and the config that reaches from `prefix` downwards."""

    path: str
    root: type
    prefix: str

    def below(self, key: object) -> _Place:
        return dataclasses.replace(self, path=join(self.path, str(key)))

    def item(self, index: int) -> _Place:
        return dataclasses.replace(self, path=f"{self.path}[{index}]")

    def refuse_unknown(self, cls: type, mapping: Any) -> None:
        """InputError unless `mapping` is one, and holds fields of `cls` alone."""
        known = field_names(cls)
        if not isinstance(mapping, Mapping):
            raise InputError(
                f"config {self.path or 'root'!r} is not a mapping",
                got=repr(mapping),
                expected=f"keys {', '.join(known)}",
            )
        for key in mapping:
            if key not in known:
                meant = meant_key(str(key), cls, self.path, self.root, self.prefix)
                raise InputError(
                    f"unknown config key {join(self.path, str(key))!r}{meant}",
                    expected=f"one of {', '.join(known)}",
                )


def _build(cls: type[T], mapping: Mapping[str, Any], place: _Place) -> T:
    place.refuse_unknown(cls, mapping)
    values = {key: _coerce_field(cls, key, value, place.below(key)) for key, value in mapping.items()}
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(
            f"config {place.path or 'root'!r} lacks {', '.join(missing)}",
            expected="a value for each, they have no default",
        )
    return cls(**values)


def _merged(config: T, changes: Mapping[str, Any], place: _Place) -> T:
    cls: type = type(config)
    place.refuse_unknown(cls, changes)
    new: dict[str, Any] = {}
    for key, value in changes.items():
        current, here = getattr(config, key), place.below(key)
        if dataclasses.is_dataclass(current) and isinstance(value, Mapping):
            new[key] = _merged(current, value, here)
            continue
        new[key] = _coerce_field(cls, key, value, here)
        if hints_of(cls)[key] == dict[str, Any]:
            new[key] = _merge_trees(current, value)  # nested settings of something else, not one value
    return dataclasses.replace(config, **new)  # type: ignore[type-var]


def _coerce_field(cls: type, key: str, value: Any, place: _Place) -> Any:
    hint, below = hints_of(cls)[key], config_below(cls, key)
    if below is not None and config_in(hint) is None and isinstance(value, Mapping):
        _refuse_unknown_settings(below, value, place)
    return _coerce(hint, value, place)


def _refuse_unknown_settings(cls: type, settings: Mapping[str, Any], place: _Place) -> None:
    place.refuse_unknown(cls, settings)
    for key, value in settings.items():
        below = config_below(cls, key)
        if below is not None and isinstance(value, Mapping):
            _refuse_unknown_settings(below, value, place.below(key))


def _merge_trees(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both_nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge_trees(merged[key], value) if both_nested else value
    return merged


def _read_yaml_value(text: str, override: str) -> Any:
    try:
        value = _loaded(text)
    except _NOT_YAML as error:
        raise InputError(
            "cannot read an override: what is right of the '=' is not YAML",
            got=f"{override!r}; {error}",
            expected="a number, a word, a [list] or a {mapping}",
            fix="quote it for the shell: --set 'optim.lr=1e-4'",
        ) from error
    if isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as a string; everybody who types it means a number
            return float(value)
        except ValueError:
            return value
    return value


def _coerce(hint: Any, value: Any, place: _Place) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(args, value, place)
    if origin is Literal:
        if value not in args:
            raise InputError(
                f"config {place.path!r} has no choice {value!r}{nearest(value, args)}",
                expected=" | ".join(map(repr, args)),
            )
        return value
    if dataclasses.is_dataclass(hint):
        is_built = isinstance(value, typing.cast(type, hint))
        return value if is_built else _build(typing.cast(type, hint), value, place)
    if origin is tuple and isinstance(value, list | tuple):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_coerce(args[0], item, place.item(i)) for i, item in enumerate(value))
        if len(args) == len(value):
            return tuple(
                _coerce(a, item, place.item(i)) for i, (a, item) in enumerate(zip(args, value, strict=True))
            )
    if origin is dict and isinstance(value, Mapping):
        return {_coerce(args[0], k, place): _coerce(args[1], v, place.below(k)) for k, v in value.items()}
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(
        f"config {place.path!r} has a value of another type",
        got=f"{value!r} ({type(value).__name__})",
        expected=_describe(hint),
    )


def _coerce_union(args: tuple[Any, ...], value: Any, place: _Place) -> Any:
    if value is None and types.NoneType in args:
        return None
    errors = []
    for option in (a for a in args if a is not types.NoneType):
        try:
            return _coerce(option, value, place)
        except InputError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise InputError(
        f"config {place.path!r} has a value of another type",
        got=f"{value!r} ({type(value).__name__})",
        expected=" or ".join(_describe(a) for a in args),
    )


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
