"""Every recipe is a run that can work on the ranks it is for, and its DeepSpeed json is what code builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossearth_sar.config import from_mapping, read_yaml
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.layout import deepspeed_config, plan_layout, run_model_config

TRAIN = Path(__file__).resolve().parents[2] / "train"
GPUS = {"cpt_s": 8, "cpt_b": 8, "cpt_l": 16, "cpt_l_experts": 16, "cpt_l_small": 4}


@pytest.mark.parametrize("name", GPUS)
def test_json_is_what_the_code_builds(name: str) -> None:
    """train/NAME.json is written by cpt.py --config train/recipes/NAME.yaml --write-deepspeed … --ranks N."""
    config = from_mapping(RunConfig, read_yaml(TRAIN / "recipes" / f"{name}.yaml"))
    layout = plan_layout(config, run_model_config(config, 7), ranks=GPUS[name], on_gpu=True)
    written = json.loads((TRAIN / f"{name}.json").read_text(encoding="utf-8"))
    assert written == deepspeed_config(config, layout)
    assert layout.use_bf16
    assert layout.micro_batch * config.accumulation * GPUS[name] == config.batch_size
    assert config.train.folder is not None
    assert len(config.train.folder.classes) == 7


def test_every_recipe_is_looked_at() -> None:
    for files in ((TRAIN / "recipes").glob("cpt_*.yaml"), TRAIN.glob("cpt_*.json")):
        assert {path.stem for path in files} == set(GPUS)
