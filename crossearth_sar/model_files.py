"""A model folder as files: config.json and model.safetensors, at any moment both of one model.

Both are written aside and flushed, in a folder that is then renamed: from there on the new model holds, and
what is left, giving the files their names, is made good by whoever reads next. A full disk or a kill before
leaves the model that was there. What this is not: an opinion on what the files say; that is `model.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from crossearth_sar.errors import InputError
from crossearth_sar.whole import NotWritten, flush, one_writer

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_WRITING, _WRITTEN = ".model-writing", ".model-written"


def save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """safetensors', which makes files that their owner alone can read: this one follows the umask.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path)
    path.chmod(mode)


def write_model_files(folder: Path, tensors: Mapping[str, Tensor], mapping: Mapping[str, Any]) -> None:
    """The two files, in place of those of an older model.

    Raises:
        NotWritten: they cannot be written; an older model is as it was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_writer(folder):
            _write(folder, tensors, mapping)
    except (OSError, SafetensorError) as error:
        raise NotWritten(
            f"the model cannot be written to {folder}",
            got=getattr(error, "strerror", None) or str(error),
            fix="make room, or give another folder",
        ) from error


def _write(folder: Path, tensors: Mapping[str, Tensor], mapping: Mapping[str, Any]) -> None:
    writing = folder / _WRITING
    finish_writing(folder)
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir()
        save_file(tensors, writing / WEIGHTS_FILE)
        write_config(writing, mapping)
        for path in (writing / WEIGHTS_FILE, writing / CONFIG_FILE, writing):
            flush(path)
        writing.rename(folder / _WRITTEN)
        flush(folder)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    finish_writing(folder)


def write_config(folder: Path, mapping: Mapping[str, Any]) -> None:
    """config.json alone."""
    (folder / CONFIG_FILE).write_text(json.dumps(mapping, indent=2) + "\n", encoding="utf-8")


def finish_writing(folder: Path) -> None:
    """Gives their names to files of a model that is written, where a kill or another process left that.

    Raises:
        OSError: the folder cannot be written.
    """
    written = folder / _WRITTEN
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        with suppress(FileNotFoundError):
            os.replace(written / name, folder / name)
    if written.is_dir():
        flush(folder)
        with suppress(FileNotFoundError):
            written.rmdir()


def require_model_files(folder: Path, otherwise: str) -> None:
    """InputError unless both files are there, or can be put there.

    Args:
        otherwise: what may be given in place of a folder.
    """
    try:
        finish_writing(folder)
    except OSError as error:
        raise InputError(
            f"the model in {folder} was being replaced, and cannot be put in place",
            got=error.strerror,
            fix=f"move the files of {folder / _WRITTEN} into {folder}",
        ) from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"no model in {folder}",
                got=f"{name} is missing",
                expected=f"{CONFIG_FILE} and {WEIGHTS_FILE}",
                fix=f"give the folder that save_model or a training run wrote, or {otherwise}",
            )


def require_fitting_weights(build: Callable[[], nn.Module], folder: Path) -> None:
    """InputError unless the weights are of such a model: found out before it is built, for sizes in a file
    that is not the weights' own may ask for any memory."""
    try:
        with torch.device("meta"):
            wanted = {key: tuple(value.shape) for key, value in build().state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:  # what torch says of sizes beyond 64 bits
        raise InputError(
            f"{folder / CONFIG_FILE} describes no model that can be built", got=str(error).splitlines()[0]
        ) from error
    found = _stored_shapes(folder / WEIGHTS_FILE)
    wrong = [
        f"{key}: {found.get(key, 'missing')} on disk, {wanted.get(key, 'nothing')} in the model"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]
    if wrong:
        raise InputError(
            f"{WEIGHTS_FILE} and {CONFIG_FILE} in {folder} do not fit each other",
            got="; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""),
            fix="use the two files of one save_model call or training run",
        )


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read", got=str(error), fix="copy it again from where it came"
        ) from error
