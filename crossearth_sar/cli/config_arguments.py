"""The options of every command that has a config: --config, --set, --print_config, and its keys below --help.

jsonargparse and tyro were tried for this. Both make the help of the dataclasses, but refuse an unknown key
without the nearest nested one (or with no word of what was expected), and open-ended settings such as
`model.moe.top_k=2` stay text in the one and are refused by the other; so this is argparse over config.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from crossearth_sar.cli.config_text import commented_yaml, key_table
from crossearth_sar.cli.options import add_set_option
from crossearth_sar.cli.process import speaks
from crossearth_sar.config import from_mapping, layered, parse_overrides, read_yaml, to_mapping
from crossearth_sar.config_keys import by_likeness
from crossearth_sar.errors import InputError

T = TypeVar("T")


def add_config_arguments(parser: argparse.ArgumentParser, default: Any, *, required: bool = False) -> None:
    """Adds `config`, `overrides` and `print_config`, and a table of all keys to the end of the help.

    Args:
        default: the config that holds where nothing else is said, or a config's class.
        required: no run without --config.
    """
    parser.add_argument(
        "--config",
        metavar="YAML|NAME",
        required=required,
        help="settings: a file, or the name of a recipe that comes with the package",
    )
    add_set_option(parser)
    parser.add_argument(
        "--print_config",
        "--print-config",
        action="store_true",
        help="print all settings as they would hold, each with its meaning, and end",
    )
    parser.epilog = (
        f"recipes:\n  {', '.join(recipe_names())}\n\n"
        f"keys of --config and --set, with their defaults:\n{key_table(default)}"
    )


def read_config(path_or_name: str) -> dict[str, Any]:
    """The settings in a file, or else in the recipe of that name, with or without .yaml.

    Raises:
        InputError: there is neither, or it is not readable as YAML.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return read_yaml(path)
    name = path_or_name.removesuffix(".yaml")
    if name in recipe_names():
        with resources.as_file(_recipes() / f"{name}.yaml") as file:
            return read_yaml(file)
    raise InputError(
        f"no config {path_or_name!r}",
        got="neither a file nor a recipe of that name",
        expected=f"a YAML file, or one of {', '.join(by_likeness(path.stem, recipe_names()))}",
    )


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _recipes().iterdir() if file.name.endswith(".yaml")
    )


def built_config(
    default: T,
    arguments: argparse.Namespace,
    *,
    changes: Mapping[str, Any] | None = None,
    whole: Sequence[str] = (),
) -> T:
    """The config of a command: `default`, over it --config, over that `changes`, over that --set.

    Where a layer names another preset, the default's `model` is left out.

    With --print_config it is printed, and the program ends.

    Args:
        changes: what other options say, --benchmark for instance; may hold built dataclasses.
        whole: keys that belong together, such as train, validation and unseen: where --config or
            `changes` has one of them, the default's values of all are left out.

    Raises:
        InputError: as `read_config` and `from_mapping`; all layers are checked as one config.
    """
    content = read_config(arguments.config) if arguments.config is not None else {}
    over = {key: to_mapping(value) for key, value in (changes or {}).items()}
    base, said = to_mapping(default), parse_overrides(arguments.overrides)
    presets = [layer["preset"] for layer in (base, content, over, said) if "preset" in layer]
    if presets and presets[-1] != presets[0]:
        base.pop("model", None)  # its settings are for the default's preset
    if {*content, *over} & {*whole}:
        base = {key: value for key, value in base.items() if key not in whole}
    cls = type(default)
    config = from_mapping(cls, layered(cls, base, content, over, said))
    if arguments.print_config:
        if speaks():
            print(commented_yaml(config), end="")
        raise SystemExit(0)
    return config


def _recipes() -> Any:
    return resources.files("crossearth_sar.cli") / "recipes"
