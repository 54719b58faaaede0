"""Every command that writes a folder, at its smallest: what it is given, and the folder it reads from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from dataset_trees import save
from di3cl_run import di3cl_run
from PIL import Image

from crossearth_sar import build_model, save_model
from crossearth_sar.cli.main import main
from crossearth_sar.config import write_yaml

SMALL: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "patch_size": 16, "depth": 4, "stem": ()},
    "decoder": {"kind": "fpn", "channels": 16},
    "crop_size": 64,
    "crop_stride": 64,
}
TEACHER = """
import torch

def build(num_classes, device):
    levels = torch.arange(num_classes).view(1, -1, 1, 1) * 30.0 + 15
    return lambda image: -(image[:, :1] - levels).abs()
"""
FILES = {"images": "images/*.tif", "labels": "labels/*.png", "values": "amplitude", "pixel_m": 10.0}


def lay_out(place: Path) -> None:
    """Images, labels, a model, a checkpoint and settings below `place`."""
    for i in range(4):
        rng = np.random.default_rng(i)
        is_water = np.zeros((64, 64), bool)
        is_water[: 20 + 5 * i] = True
        amplitude = rng.rayleigh(size=is_water.shape) * np.where(is_water, 0.2, 1.0) + 1e-3
        water = place / ("lake" if i < 2 else "sea")
        save(water / "images" / f"{i}.tif", amplitude.astype(np.float32))
        save(water / "labels" / f"{i}.png", is_water.astype(np.uint8))
        for name, values in (("sar", is_water), ("opt", np.stack([is_water] * 3, axis=-1))):
            path = place / "twins" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8) * 90).save(path)
    (place / "faults_teacher.py").write_text(TEACHER, encoding="utf-8")
    torch.manual_seed(0)
    model = build_model("crossearth_sar_tiny", 2, changes=SMALL)
    model.name_classes(["other", "water"])
    save_model(model, place / "model")
    checkpoint = place / "run" / "checkpoints" / "step-000002"
    save_model(model, checkpoint)
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in checkpoint.iterdir()}
    state = {"format": 2, "step": 2, "adam_step": 2, "best": None, "sha256": sums, "run": {}}
    (checkpoint / "state.json").write_text(json.dumps(state), encoding="utf-8")
    lake, sea = (
        {"name": name, "folder": {"root": str(place / name), "classes": ["other", "water"], **FILES}}
        for name in ("lake", "sea")
    )
    _write(place / "own.yaml", {"domains": [lake]})
    _write(place / "probe.yaml", {"train": lake, "domains": [sea]})
    run = {
        "executor": "local", "steps": 4, "batch_size": 2, "save_every": 2, "validate_every": 4, "workers": 0,
        "keep_checkpoints": 1, "pictures": 0, "unseen": [], "model": SMALL, "optim": {"warmup_steps": 1},
        "train": lake, "validation": sea,
    }  # fmt: skip
    _write(place / "train.yaml", run)
    _write(place / "finetune.yaml", {**run, "mode": "frozen", "weights": str(place / "model")})
    write_yaml(di3cl_run(place / "di3cl", steps=4, save_every=2, executor="local"), place / "selfsup.yaml")


def arguments_of(command: str, place: Path, output: Path) -> list[str]:
    """What `command` is given to write into `output`."""
    config, model = ["--config", f"{place / command}.yaml"], ["--model", str(place / "model")]
    maps = ["--page", "--output", str(output)]
    twins = ["--data-root", str(place / "twins"), "--sar", "sar/*.*", "--optical", "opt/*.*"]
    given = {
        "train": [*config, "--set", f"output={output}"],
        "finetune": [*config, "--set", f"output={output}"],
        "selfsup": [*config, "--set", f"output={output}"],
        "export": [str(place / "run"), str(output)],
        "evaluate": ["--config", str(place / "own.yaml"), *model, "--output", str(output)],
        "probe": [*config, *model, "--labels", "2", "--seeds", "0", "--output", str(output)],
        "predict": [*model, "--images", str(place / "lake/images/*.tif"), "--values", "amplitude", *maps],
        "label": ["--teacher", "faults_teacher:build", *twins, "--output", str(output)],
    }
    return [command, *given[command]]


COMMANDS = ("train", "finetune", "selfsup", "export", "evaluate", "probe", "predict", "label")


def carry_out(command: str, place: Path, output: Path, *more: str) -> int:
    """The exit status of `command`."""
    return main([*arguments_of(command, place, output), *more])


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
