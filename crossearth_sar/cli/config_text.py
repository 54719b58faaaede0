"""A config as text for people: the table of its keys below `--help`, and YAML with a comment a key."""

from __future__ import annotations

import dataclasses
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from crossearth_sar.cli.field_docs import field_docs
from crossearth_sar.config import to_mapping
from crossearth_sar.config_keys import config_below, field_names, hints_of, join

WIDTH = 100


def key_table(config: Any) -> str:
    """Every dotted key of a config, its type, its value in `config`, and what it means.

    Args:
        config: a dataclass with its defaults, or its class alone. A nested class that comes again, as the
            validation domain's after the training domain's, is not listed again.
    """
    is_class = isinstance(config, type)
    return "\n".join(_rows(config if is_class else type(config), None if is_class else config, "", {}))


def commented_yaml(config: Any) -> str:
    """The config as YAML that `from_mapping` reads back, each key under a comment that says what it means."""
    return "\n".join(_yaml_lines(config)) + "\n"


def _rows(cls: type, config: Any, where: str, seen: dict[type, str]) -> list[str]:
    """The lines of `cls` at the path `where`; `seen` holds where each class was listed first."""
    seen[cls] = where
    docs, lines = field_docs(cls), []
    for field in dataclasses.fields(cls):
        path, hint = join(where, field.name), hints_of(cls)[field.name]
        value = _default(field) if config is None else getattr(config, field.name)
        lines.append(f"  {path}: {type_words(hint)}{_default_words(value)}")
        lines += _wrapped(docs.get(field.name, ""), "      ")
        below = config_below(cls, field.name)
        if below is not None and (below not in seen or _is_flat(below)):
            lines += _rows(below, value if dataclasses.is_dataclass(value) else None, path, seen)
            continue
        again = [seen[c] for c in (below, *_items(hint)) if c in seen]
        lines += [f"      keys as those of {listed or 'the whole'}" for listed in again]
    return lines


def _is_flat(cls: type) -> bool:
    """Whether a class is short enough to be listed wherever it is: no config inside it."""
    return not any(config_below(cls, name) for name in field_names(cls))


_REQUIRED = object()


def _default_words(value: Any) -> str:
    if value is _REQUIRED:
        return ", required"
    if _holds_configs(value):
        return f" = [{len(value)} of them: see --print_config]"
    return "" if dataclasses.is_dataclass(value) else f" = {_flow(value)}"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _REQUIRED


def _items(hint: Any) -> list[type]:
    """The dataclass that the items of a list are."""
    args = typing.get_args(hint) if typing.get_origin(hint) is tuple else ()
    return [a for a in args if isinstance(a, type) and dataclasses.is_dataclass(a)]


def type_words(hint: Any) -> str:
    """A type as one writes its values in YAML: `auto | fp32`, `[int, …]`, `str | null`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is types.NoneType:
        return "null"
    if hint is Any:
        return "anything"
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(type_words, args))
    if origin is tuple:
        return "[" + ", ".join("…" if a is Ellipsis else type_words(a) for a in args) + "]"
    if origin is dict:
        return f"{{{type_words(args[0])}: {type_words(args[1])}}}"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _holds_configs(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(dataclasses.is_dataclass, value))


def _yaml_lines(config: Any) -> list[str]:
    cls: type = type(config)
    docs, lines = field_docs(cls), []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lines += _wrapped(docs.get(field.name, ""), "# ")
        if dataclasses.is_dataclass(value):
            lines += [f"{field.name}:", *(f"  {line}" for line in _yaml_lines(value))]
        elif _holds_configs(value):
            lines.append(f"{field.name}:")
            for item in value:
                lines += ["  -", *(f"    {line}" for line in _yaml_lines(item))]
        else:
            lines += _block(field.name, value)
    return lines


def _block(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:  # nested settings, better read one below the other
        text = yaml.safe_dump({name: to_mapping(value)}, sort_keys=False, allow_unicode=True, width=WIDTH)
        return text.splitlines()
    return [f"{name}: {_flow(value)}"]


def _flow(value: Any) -> str:
    """As one writes it behind `--set KEY=`."""
    text = yaml.safe_dump(to_mapping(value), default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
