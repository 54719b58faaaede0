"""Loggers beside CSV and TensorBoard: Weights & Biases, MLflow and what else Accelerate's trackers reach.

Each is the tracker's own library behind Accelerate's common hook; credentials and places are its own affair
(WANDB_MODE, MLFLOW_TRACKING_URI, …).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossearth_sar.errors import InputError, nearest

logger = logging.getLogger("crossearth_sar")

PROJECT = "crossearth-sar"


class Trackers:
    """The loggers of a run, on its main rank; a fault of one is a warning and never ends the run.

    Args:
        names: as Accelerate calls them.
        output: the run's folder, for trackers that write to one, and the run's name.
        settings: of the run, nested.

    Raises:
        InputError: for an unknown name, or a package that is not installed.
    """

    def __init__(self, names: Sequence[str], output: Path, settings: Mapping[str, Any]) -> None:
        self._open = [_started(name, output, settings) for name in names]

    def log(self, prefix: str, row: Mapping[str, Any], step: int) -> None:
        """The numbers of a row, under prefix/name."""
        numbers = {f"{prefix}/{k}": v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        for tracker in list(self._open):
            try:
                tracker.log(numbers, step=step)
            except Exception as error:  # noqa: BLE001 - whatever somebody's server does, training goes on
                logger.warning("%s failed at step %d and is left out: %s", tracker.name, step, error)
                self._open.remove(tracker)

    def close(self) -> None:
        for tracker in self._open:
            try:
                tracker.finish()
            except Exception as error:  # noqa: BLE001 - as above
                logger.warning("%s did not end well: %s", tracker.name, error)
        self._open = []


def _started(name: str, output: Path, settings: Mapping[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if name not in LOGGER_TYPE_TO_CLASS:
        raise InputError(
            f"unknown tracker{nearest(name, LOGGER_TYPE_TO_CLASS)}",
            got=repr(name),
            expected=" | ".join(LOGGER_TYPE_TO_CLASS),
        )
    kind = LOGGER_TYPE_TO_CLASS[name]
    folder = {"logging_dir": str(output / name)} if kind.requires_logging_directory else {}
    try:
        tracker = kind(PROJECT, **folder)
        tracker.start()
    except ImportError as error:
        raise InputError(
            f"tracker {name!r} is not installed", got=str(error), fix=f"pip install {name}, or leave it out"
        ) from error
    tracker.store_init_configuration({"output": str(output), **_flat(settings)})
    return tracker


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; what is no number, word or null becomes words."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str | int | float | None) else str(value)
    return flat
