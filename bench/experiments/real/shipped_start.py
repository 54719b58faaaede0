"""The shipped model as a start for other classes: every weight of it, its head put together by class names.

A class of the target that the shipped model knows by its name takes that row of the last layer. Any other
takes the mean of the rows that count as it, its bias raised by the logarithm of their number: by Jensen's
inequality a bound from below of what their probabilities sum to. So water against «other», six of the seven
classes, starts close to what the shipped model says, and nothing that it has learnt is thrown away.

K classes of the shipped model, C of the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.experiments.real.sets import TASKS, class_lookup
from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR, load_model

HEAD = "decoder.classify"
SHIPPED = "tiny"


def started_from_shipped(classes: Sequence[str], pixel_m: float | None) -> CrossEarthSAR:
    """The shipped model with a head of `classes`, at its own ground spacing; all of it can be trained.

    Raises:
        InputError: it works at another spacing than `pixel_m`, or has no counterpart of a class.
    """
    shipped = load_model(SHIPPED)
    if shipped.config.pixel_m != pixel_m:
        raise InputError(
            "the shipped weights are of another ground spacing than the source",
            got=f"{pixel_m} m a pixel",
            expected=f"{shipped.config.pixel_m:g} m",
        )
    members = counterparts(shipped.class_names or (), classes)
    model = CrossEarthSAR(replace(shipped.config, num_classes=len(classes)))
    state = shipped.state_dict()
    for part in ("weight", "bias"):
        state[f"{HEAD}.{part}"] = joined_rows(state[f"{HEAD}.{part}"], members, raises=part == "bias")
    model.load_state_dict(state)
    return model


def counterparts(names: Sequence[str], classes: Sequence[str]) -> list[list[int]]:
    """For each of `classes` the indices of `names` that count as it, by the task of these classes.

    Raises:
        InputError: no task has these classes, or one of them has no counterpart.
    """
    task = next((task for task in TASKS.values() if task.classes == tuple(classes)), None)
    lookup = None if task is None else class_lookup(names, task)
    if lookup is None:
        raise InputError(
            "the shipped weights have no head for these classes",
            got=", ".join(classes),
            expected=" | ".join(", ".join(task.classes) for task in TASKS.values()),
        )
    of_name = lookup[: len(names)].tolist()
    return [[i for i, found in enumerate(of_name) if found == index] for index in range(len(classes))]


def joined_rows(rows_K: Tensor, members: Sequence[Sequence[int]], *, raises: bool) -> Tensor:
    """(K, …) -> (C, …): means over members, with log(their number) added where `raises`."""
    means = [rows_K[list(group)].mean(0) + (math.log(len(group)) if raises else 0.0) for group in members]
    return torch.stack(means)
