"""Every recipe is a run that can work on the ranks it is for, and its DeepSpeed json is what code builds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from crossearth_sar.cli.config_arguments import add_config_arguments, built_config
from crossearth_sar.config import from_mapping, read_yaml
from crossearth_sar.data.datasets.pretraining import (
    PRETRAINING_IMAGES,
    PRETRAINING_SOURCES,
    VALIDATION_IMAGES,
)
from crossearth_sar.engine.config import DOMAINS, RunConfig, selfsup_run, simulated_run
from crossearth_sar.engine.planning.layout import deepspeed_config, plan_layout, run_model_config

TRAIN = Path(__file__).resolve().parents[2] / "train"
RECIPES = TRAIN.parent / "crossearth_sar" / "cli" / "recipes"
GPUS = {"cpt_s": 8, "cpt_b": 8, "cpt_l": 16, "cpt_l_experts": 16, "cpt_l_small": 4, "cpt_200k": 16}
SELF_SUPERVISED = {"di3cl_simulated": 1, "di3cl_corpus": 1, "di3cl_vit_s": 8, "di3cl_resnet50_paper": 8}


@pytest.mark.parametrize("name", GPUS)
def test_json_is_what_the_code_builds(name: str) -> None:
    """train/NAME.json is written by cpt.py --config NAME --write-deepspeed … --ranks N."""
    config = from_mapping(RunConfig, read_yaml(RECIPES / f"{name}.yaml"))
    layout = plan_layout(config, run_model_config(config, 7), ranks=GPUS[name], on_gpu=True)
    written = json.loads((TRAIN / f"{name}.json").read_text(encoding="utf-8"))
    assert written == deepspeed_config(config, layout)
    assert layout.use_bf16
    assert layout.micro_batch * config.accumulation * GPUS[name] == config.batch_size
    if config.train.folder is not None:
        assert len(config.train.folder.classes) == 7


@pytest.mark.parametrize("name", GPUS)
def test_the_command_takes_no_model_settings_from_the_default_run(name: str) -> None:
    """Recipes lie over the tiny model's run, whose spacing, bands and descriptors are for that model."""
    parser = argparse.ArgumentParser()
    add_config_arguments(parser, simulated_run())
    taken = built_config(simulated_run(), parser.parse_args(["--config", name]), whole=DOMAINS)
    alone = from_mapping(RunConfig, read_yaml(RECIPES / f"{name}.yaml"))
    assert run_model_config(taken, 7) == run_model_config(alone, 7)


def test_the_200k_recipe_is_the_papers_set() -> None:
    """All ten sources train, six by a teacher's labels; 4,000 images with real labels validate."""
    config = from_mapping(RunConfig, read_yaml(RECIPES / "cpt_200k.yaml"))
    assert [part.name for part in config.train.mixture] == list(PRETRAINING_SOURCES)
    for part in config.train.mixture:
        source, official = PRETRAINING_SOURCES[part.name], part.official
        assert official is not None
        pseudo = source.labels_are == "pseudo"
        expected = ("all", f"pseudo/{part.name}/labels") if pseudo else ("train", None)
        assert (official.part, official.pseudo_labels) == expected
        assert (official.dataset, official.task) == (part.name, "seven")
    validated = [part.official for part in config.validation.mixture]
    assert [(o.dataset, o.part) for o in validated if o] == [
        (key, "test") for key, source in PRETRAINING_SOURCES.items() if source.labels_are == "real"
    ]
    assert config.validation.max_samples == VALIDATION_IMAGES
    assert config.steps == pytest.approx(18 * PRETRAINING_IMAGES / config.batch_size, rel=0.01)


@pytest.mark.parametrize("name", SELF_SUPERVISED)
def test_a_self_supervised_recipe_can_work(name: str) -> None:
    """On the ranks that it is for: a backbone alone, whole batches in the queue, its own data alone."""
    parser = argparse.ArgumentParser()
    add_config_arguments(parser, selfsup_run())
    config = built_config(selfsup_run(), parser.parse_args(["--config", name]), whole=DOMAINS)
    ranks = SELF_SUPERVISED[name]
    model = run_model_config(config, num_classes=1)
    layout = plan_layout(config, model, ranks=ranks, on_gpu=ranks > 1)
    assert (model.decoder, model.moe, layout.ep_size) == (None, None, 1)
    said = read_yaml(RECIPES / f"{name}.yaml")
    assert config.train is not None
    assert config.train.name == said["train"]["name"]
    assert (config.probe is None) == (said.get("probe") is None)


def test_the_published_recipe_has_the_published_numbers() -> None:
    config = from_mapping(RunConfig, read_yaml(RECIPES / "di3cl_resnet50_paper.yaml"))
    assert config.selfsup is not None
    method, optim = config.selfsup.method, config.optim
    assert config.steps == 400 * (460_532 // config.batch_size)
    weights = (method.global_weight, method.contour_weight, method.region_weight)
    assert (*weights, method.queue_length, method.momentum) == (0.8, 0.2, 5.0, 65536, 0.999)
    assert (optim.kind, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.03, 0.9, 1e-4)


def test_every_recipe_is_looked_at() -> None:
    assert {path.stem for path in RECIPES.glob("di3cl_*.yaml")} == set(SELF_SUPERVISED)
    for files in (RECIPES.glob("cpt_*.yaml"), TRAIN.glob("cpt_*.json")):
        assert {path.stem for path in files} == set(GPUS)
