"""What a sweep varies, how, and how often: a small YAML file, checked against the run before any trial."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth_sar.config import from_mapping, layered, parse_overrides, read_yaml, require, to_mapping
from crossearth_sar.config_keys import config_below, hints_of
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.planning.layout import run_model_config
from crossearth_sar.errors import InputError, nearest

PLAIN_SCORES = ("miou", "pixel_accuracy")
"""Columns of validation.csv that every run has; each class has iou_NAME besides."""


@dataclass(frozen=True, kw_only=True)
class Vary:
    """How one setting varies: one of `values`, or a number from `low` to `high`."""

    values: tuple[Any, ...] = ()
    """What it may be."""
    low: float | None = None
    """The least, itself included."""
    high: float | None = None
    """The most, itself included."""
    log: bool = False
    """Whether the logarithm is drawn evenly, not the number."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep; its keys are those of the file."""

    vary: dict[str, Vary]
    """Setting, by the name that --set has for it -> how it varies."""
    trials: int = 20
    """How many runs."""
    maximize: str = "miou"
    """Column of validation.csv: miou, pixel_accuracy, or iou_ and a class."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        require(len(self.vary) > 0, "vary", self.vary, "at least one setting")
        require(self.trials >= 1, "trials", self.trials, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require("output" not in self.vary, "vary", "output", "settings that matter; trials have own folders")
        for key, vary in self.vary.items():
            given = [vary.low is not None, vary.high is not None]
            either = any(given) != bool(vary.values) and any(given) == all(given)
            require(either, f"vary.{key}", to_mapping(vary), "values: […], or low and high")
            if vary.low is None or vary.high is None:
                require(not vary.log, f"vary.{key}.log", vary.log, "log for low and high alone")
                texts = [json.dumps(value) for value in vary.values]
                require(len(set(texts)) == len(texts), f"vary.{key}.values", texts, "each value once")
                continue
            bounds = (vary.low, vary.high)
            require(vary.low < vary.high, f"vary.{key}", bounds, "low below high")
            require(not vary.log or vary.low > 0, f"vary.{key}", bounds, "low above 0 where log is true")


def read_sweep(path: str | Path, base: RunConfig) -> SweepConfig:
    """The sweep in a file, every value of it tried on `base`, one setting at a time.

    Raises:
        InputError: for a key, value or bound that is not one, of the sweep or of the run.
    """
    sweep = from_mapping(SweepConfig, read_yaml(path))
    for key, vary in sweep.vary.items():
        for value in vary.values or (vary.low, vary.high):
            try:
                is_whole = is_integer(key, vary)
                config = trial_config(base, {key: int(value) if is_whole else value}, base.output)
                run_model_config(config, num_classes=1)
            except InputError as error:
                raise InputError(f"the sweep cannot set {key} to {value!r}: {error}") from error
    return sweep


def is_integer(key: str, vary: Vary) -> bool:
    """Whether a range is of whole numbers: the setting's own type says so.

    Raises:
        InputError: the setting is no number, or a bound of a whole one is broken.
    """
    if vary.low is None or vary.high is None:
        return False
    types = _types_at(key)
    if types & {float, Any}:
        return False
    if int not in types:
        raise InputError(f"{key} takes no range", expected="values: [one, another]")
    for bound in (vary.low, vary.high):
        require(bound == int(bound), f"vary.{key}", bound, "whole numbers, as the setting is one")
    return True


def trial_config(base: RunConfig, values: Mapping[str, Any], output: str | Path) -> RunConfig:
    """`base` with settings of a trial, by the names that --set has for them, in a folder of its own.

    Raises:
        InputError: as `from_mapping`.
    """
    over = parse_overrides([f"{key}={json.dumps(value)}" for key, value in values.items()])
    place = {"output": str(output)}
    return from_mapping(RunConfig, layered(RunConfig, to_mapping(base), over, place))


def require_score(maximize: str, classes: typing.Sequence[str]) -> None:
    """InputError unless validation.csv of a run with these classes has the column."""
    known = [*PLAIN_SCORES, *(f"iou_{name}" for name in classes)]
    if maximize not in known:
        raise InputError(
            f"no validation score is called {maximize!r}{nearest(maximize, known)}",
            expected=f"maximize: one of {', '.join(known)}",
        )


def _types_at(key: str) -> set[Any]:
    """The types that a setting of RunConfig may have; Any below a table without known keys."""
    cls: type = RunConfig
    *path, name = key.split(".")
    for part in path:
        below = config_below(cls, part) if part in hints_of(cls) else None
        if below is None:
            return {Any}
        cls = below
    hint = hints_of(cls).get(name, Any)
    return {hint, *typing.get_args(hint)}
