"""What replace_ffn did, as the config of a model of transformers keeps it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from crossearth_sar.moe.expert_spec import ExpertSpec
from crossearth_sar.moe.surgery.dense_ffn import MoEOptions

KEY = "crossearth_moe"

NOT_KEPT = ("expert_noise", "seed", "backend")
"""The noise is in the weights, and the backend is that of the machine."""


def note_replacement(model: nn.Module, paths: list[str], options: MoEOptions) -> None:
    """Adds the call to the config of a model of transformers; other models keep no such record."""
    config = getattr(model, "config", None)
    if not hasattr(config, "save_pretrained"):
        return
    kept = {name: value for name, value in asdict(options).items() if name not in NOT_KEPT}
    own = copy.deepcopy(config)  # models built from one config share it
    setattr(own, KEY, [*getattr(own, KEY, []), {"paths": paths, **kept}])
    model.config = own  # type: ignore[assignment]


def options_of(call: Mapping[str, Any]) -> MoEOptions:
    """What a saved call of replace_ffn asked for."""
    kept = {name: value for name, value in call.items() if name != "paths"}
    kept["expert"] = ExpertSpec(**kept["expert"])
    return MoEOptions(**kept, expert_noise=0.0, seed=0, backend="auto")
