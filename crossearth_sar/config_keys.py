"""The tree of keys of nested config dataclasses: which there are, and which one a wrong key meant."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import Any

from crossearth_sar.errors import nearest

_NEAR_ELSEWHERE = 0.75
"""How alike (0 to 1) a misspelt key must be to one at another place, to be taken for it."""

_SHOWN = 3


def settings_of(target: type) -> Any:
    """A field of type dict[str, Any], empty by default, for changes to a `target`: its keys are known too.

    `model: dict[str, Any] = settings_of(ModelConfig)` refuses `model.moe.topk` where it is read.
    """
    return dataclasses.field(default_factory=dict, metadata={"settings_of": target})


def field_names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Field name -> its type, resolved."""
    return typing.get_type_hints(cls)


def config_in(hint: Any) -> type | None:
    """The dataclass that a type is, or is when not None."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    found = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    return found[0] if found else None


def config_below(cls: type, name: str) -> type | None:
    """The dataclass that holds the keys below field `name` of `cls`, where there are such."""
    settings: dict[str, type | None] = {
        f.name: f.metadata.get("settings_of") for f in dataclasses.fields(cls)
    }
    return settings[name] or config_in(hints_of(cls)[name])


def key_paths(cls: type, where: str = "", _trail: tuple[type, ...] = ()) -> Iterator[str]:
    """Every dotted key below `where`; a class inside itself is not entered again, nor the items of a list."""
    for name in field_names(cls):
        path = join(where, name)
        yield path
        below = config_below(cls, name)
        if below is not None and below not in (*_trail, cls):
            yield from key_paths(below, path, (*_trail, cls))


def meant_key(key: str, cls: type, where: str, root: type, prefix: str) -> str:
    """A « (did you mean 'optim.lr'?)» for a `key` that `cls`, at `where`, does not know; '' for nothing near.

    The same name below `where`, then anywhere in `root`, wins over one that is alike. A name without a dot
    is a neighbour of the wrong key; all others are whole paths.
    """
    inside, elsewhere = list(key_paths(cls, where)), list(key_paths(root, prefix))
    for paths in (inside, elsewhere):
        same = sorted((path for path in paths if leaf(path) == key), key=lambda path: path.count("."))
        if same:
            return f" (did you mean {' or '.join(map(repr, same[:_SHOWN]))}?)"
    neighbour = nearest(key, field_names(cls))
    far = max([*inside, *elsewhere], key=lambda path: _likeness(key, leaf(path)), default="")
    best_here = max((_likeness(key, name) for name in field_names(cls)), default=0.0)
    alike = _likeness(key, leaf(far))
    if alike >= _NEAR_ELSEWHERE and alike > best_here:
        return f" (did you mean {far!r}?)"
    return neighbour


def by_likeness(name: str, known: Iterable[str]) -> list[str]:
    """`known`, the one most like `name` first."""
    return sorted(known, key=lambda other: -_likeness(name, other))


def join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
