"""A replaced model of transformers, saved and loaded by its own save_pretrained and from_pretrained.

`replace_ffn` writes what it did into the model's config, under KEY, which save_pretrained and the Trainer's
checkpoints put into config.json; `load_replaced` does it again before the weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from crossearth_sar.errors import InputError
from crossearth_sar.moe.surgery.handle import Describe, ReplacedFFN
from crossearth_sar.moe.surgery.record import KEY
from crossearth_sar.moe.surgery.replace import replace_again


def load_replaced(
    model_class: type,
    folder: str | Path,
    *,
    descriptors: Describe | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    **options: Any,
) -> tuple[nn.Module, ReplacedFFN]:
    """The model that save_pretrained, or a checkpoint of the Trainer, left in `folder`, experts included.

    Args:
        model_class: of transformers, as the model was: Dinov2Model, say.
        folder: with config.json and the weights.
        descriptors: as of `replace_ffn`; functions are not saved.
        prepare: called with the fresh model before its weights are read: adds what it had been given beside
            its own parts, a RunningStandardizer, say.
        options: of from_pretrained.

    Returns:
        Model and handle; of several calls of replace_ffn the last's, the others' by `ReplacedFFN.of` a part.

    Raises:
        InputError: where the config tells of no replacement, or weights are missing, left over or unfit.
    """
    config = model_class.config_class.from_pretrained(folder)  # type: ignore[attr-defined]
    calls = getattr(config, KEY, None)
    if not calls:
        raise InputError(
            f"the model in {folder} tells of no replaced FFN",
            expected=f"{KEY!r} in its config.json, as replace_ffn leaves it",
            fix="load it as it is, and call replace_ffn",
        )
    handles: list[ReplacedFFN] = []

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)  # type: ignore[misc]
        if hasattr(self.config, KEY):
            delattr(self.config, KEY)  # the calls write it again
        if prepare is not None:
            prepare(self)
        handles[:] = [replace_again(self, call, descriptors) for call in calls]

    names = {"__init__": build, "__module__": model_class.__module__}
    restored: Any = type(model_class.__name__, (model_class,), names)
    model, report = restored.from_pretrained(folder, config=config, output_loading_info=True, **options)
    _require_all(report, folder)
    model.__class__ = model_class
    return model, handles[-1]


def _require_all(report: Mapping[str, Any], folder: str | Path) -> None:
    problems = {
        "missing": report.get("missing_keys"),
        "left over": report.get("unexpected_keys"),
        "of another shape": report.get("mismatched_keys"),
    }
    wrong = [f"{what}: {', '.join(sorted(map(str, keys)))}" for what, keys in problems.items() if keys]
    if wrong:
        raise InputError(
            f"the weights in {folder} do not fill the model",
            got="; ".join(wrong),
            expected="every weight in its place",
            fix="add in prepare= what the model had beside its own parts",
        )
