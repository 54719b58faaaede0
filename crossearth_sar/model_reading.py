"""What a model folder says, read and checked: nothing is built here, and nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossearth_sar.config import from_mapping, merge, read_json
from crossearth_sar.errors import InputError
from crossearth_sar.model_files import CONFIG_FILE, require_model_files
from crossearth_sar.presets import ModelConfig
from crossearth_sar.shipped import model_folder, shipped_models

EXTRAS = ("classes", "temperature", "input")
"""Keys of config.json that are not of ModelConfig."""


@dataclass(frozen=True)
class SavedModel:
    """config: of the model, as it was saved; extras: the values of EXTRAS, None where absent."""

    folder: Path
    config: ModelConfig
    extras: Mapping[str, Any]


def read_model_folder(path: str | Path) -> SavedModel:
    """What folder `path`, or the package's model of that name, says of itself.

    Raises:
        InputError: a file is missing or damaged, or the config describes no model.
    """
    folder = model_folder(path)
    require_model_files(folder, f"a model of the package: {', '.join(shipped_models())}")
    mapping = read_json(folder / CONFIG_FILE)
    try:
        extras = {key: mapping.pop(key, None) for key in EXTRAS}
        config = from_mapping(ModelConfig, mapping)
    except InputError as error:
        raise InputError(
            f"{folder / CONFIG_FILE} describes no model",
            got=str(error),
            fix="use the config.json that was saved with the weights",
        ) from error
    return SavedModel(folder, config, extras)


def with_backend(config: ModelConfig, backend: str) -> ModelConfig:
    """The config with another MoE backend; of a dense model, itself."""
    return merge(config, {"moe": {"backend": backend}}) if config.moe else config
