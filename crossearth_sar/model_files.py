"""The two files of a saved model, read and checked: nothing is built here, and nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crossearth_sar.config import from_mapping, merge
from crossearth_sar.errors import InputError
from crossearth_sar.presets import ModelConfig
from crossearth_sar.shipped import model_folder, shipped_models

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"

EXTRAS = ("classes", "temperature", "input")
"""Keys of config.json that are not of ModelConfig."""


@dataclass(frozen=True)
class SavedModel:
    """config: of the model, as it was saved; extras: the values of EXTRAS, None where absent; state: its
    tensors, on the CPU."""

    folder: Path
    config: ModelConfig
    extras: Mapping[str, Any]
    state: Mapping[str, Tensor]


def read_model_folder(path: str | Path) -> SavedModel:
    """What folder `path`, or the package's model of that name, holds.

    Raises:
        InputError: a file is missing or damaged, or the config describes no model.
    """
    folder = model_folder(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"no model in {folder}",
                got=f"{name} is missing",
                expected=f"{CONFIG_FILE} and {WEIGHTS_FILE}",
                fix="give the folder that save_model or a training run wrote, or a model of the package: "
                f"{', '.join(shipped_models())}",
            )
    reading = folder / CONFIG_FILE
    try:
        mapping = json.loads(reading.read_text(encoding="utf-8"))
        reading = folder / WEIGHTS_FILE
        state = load_file(reading)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InputError(
            f"{reading} cannot be read", got=str(error), fix="copy it again from where it came"
        ) from error
    try:
        extras = {key: mapping.pop(key, None) for key in EXTRAS} if isinstance(mapping, dict) else {}
        config = from_mapping(ModelConfig, mapping)
    except InputError as error:
        raise InputError(
            f"{folder / CONFIG_FILE} describes no model",
            got=str(error),
            fix="use the config.json that was saved with the weights",
        ) from error
    return SavedModel(folder, config, extras, state)


def with_backend(config: ModelConfig, backend: str) -> ModelConfig:
    """The config with another MoE backend; of a dense model, itself."""
    return merge(config, {"moe": {"backend": backend}}) if config.moe else config
