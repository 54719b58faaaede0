"""The settings of a self-supervised run of a quarter of a second a step, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossearth_sar.config import from_mapping, layered, parse_overrides, to_mapping
from crossearth_sar.engine.config import RunConfig, selfsup_run

SCENES = {"length": 6, "image_size": 64, "resolution_m": 3.0}
MODEL: dict[str, Any] = {
    "moe": None,
    "crop_size": 64,
    "crop_stride": 64,
    "vit": {"dim": 32, "num_heads": 2, "patch_size": 16, "image_size": 64, "stem": ()},
}


def di3cl_run(output: Path, model: dict[str, Any] = MODEL, **changes: Any) -> RunConfig:
    """Six steps of four pairs on two simulated sensors, without a probe; `changes` are dotted keys."""
    small = {
        "output": str(output),
        "steps": 6,
        "batch_size": 4,
        "save_every": 100,
        "validate_every": 100,
        "pictures": 0,
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "model": model,
        "selfsup": {"method": {"queue_length": 16, "hidden_dim": 16, "output_dim": 8}},
        "train": {
            "name": "two",
            "mixture": [
                {"name": "C", "simulated": SCENES},
                {"name": "X", "simulated": {**SCENES, "band": "X", "seed": 1}},
            ],
        },
        "validation": None,
        "unseen": [],
        "probe": None,
    }
    said = parse_overrides([f"{key}={value}" for key, value in changes.items()])
    return from_mapping(RunConfig, layered(RunConfig, to_mapping(selfsup_run()), small, said))
