"""Two steps of pre-training on two published sources in their layouts: one band by a teacher, three bands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_trees import AIR_1_COLORS, save, speckle, stripes
from ranks import begin, micro_run, shared_pool

from crossearth_sar.config import from_mapping
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.engine.config import RunConfig, finetuning_settings
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.make_run import make_run
from crossearth_sar.errors import InputError


def write_sources(root: Path) -> None:
    for i in range(5):
        save(root / "QXS-SAROPT" / "sar_256_oc_0.2" / f"{i}.png", speckle((64, 64), i))
        save(root / "taught" / "sar_256_oc_0.2" / f"{i}.png", stripes(64, 64, 4))
        for channel in ("HH", "HV", "VV"):
            save(root / "AIR-PolSAR-Seg-1.0" / "train_set" / f"{i}_{channel}.png", speckle((64, 64), i))
        save(root / "AIR-PolSAR-Seg-1.0" / "train_set" / f"{i}_gt.png", AIR_1_COLORS[stripes(64, 64, 6)])


def train(config: RunConfig) -> dict[str, Any]:
    trainer = begin(config)
    bands = [batch["image"].shape[1] for batch in trainer._batches()]
    return {"done": trainer.fit(), "bands": bands, **trainer.finish()}


def test_two_sources_train_together(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    write_sources(tmp_path / "data")
    taught = {"pseudo_labels": "taught", "changes": {"upsample": False}}
    parts = [
        {"name": "q", "official": {"dataset": "QXS-SAROPT", "task": "seven", **taught}},
        {"name": "p", "official": {"dataset": "AIR-PolSAR-Seg-1.0", "task": "seven", "part": "train"}},
    ]
    held_out = {"dataset": "AIR-PolSAR-Seg-1.0", "task": "seven", "part": "test"}
    config = replace(
        micro_run(tmp_path / "run", steps=2, data_root=str(tmp_path / "data"), pictures=1),
        train=from_mapping(DomainConfig, {"name": "both", "mixture": parts}),
        validation=from_mapping(DomainConfig, {"name": "held-out", "official": held_out}),
    )
    (found,) = shared_pool(1)(train, config)
    assert found["done"]
    assert max(found["bands"]) == 3
    assert found["steps"] == 2
    assert len(found["classes"]) == 7
    assert found["domains"]["held-out"]["images"] == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"model", "predictions-held-out.png"}


def test_data_that_cannot_teach_or_test_are_refused_before_the_first_step(tmp_path: Path) -> None:
    """By both kinds of runs; which data these are, tests/data/test_domain.py looks at."""
    save(tmp_path / "a.png", speckle((64, 64), 0))
    files = {"root": str(tmp_path), "images": "a.png", "values": "amplitude", "classes": SEVEN_CLASSES.names}
    bare = from_mapping(DomainConfig, {"name": "bare", "folder": {**files, "labels": None}})
    taught = micro_run(tmp_path / "run")
    same = {key: getattr(taught, key) for key in ("output", "train", "validation", "model", "augment")}
    finetune = replace(finetuning_settings(), mode="full", **same)

    def build(run: RunConfig) -> None:
        make_run(run, Ranks(0, 1, torch.device("cpu")))

    for config in (taught, finetune):
        build(config)
        with pytest.raises(InputError, match="'bare' has no labels to train on"):
            build(replace(config, train=bare))
        with pytest.raises(InputError, match="'again' shows what 'sensors' trains on"):
            build(replace(config, unseen=(replace(config.train, name="again"),)))
