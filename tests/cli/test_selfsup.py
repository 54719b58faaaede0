"""crossearth-sar selfsup as its users run it, and what becomes of the backbone that it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from di3cl_run import MODEL, SCENES, di3cl_run
from PIL import Image

from crossearth_sar import load_model
from crossearth_sar.cli.main import main
from crossearth_sar.config import write_yaml
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.log import read_csv

MOE = {"num_experts": 2, "descriptors": ["looks"]}
SPARSE = {**MODEL, "moe": MOE, "decoder": {"kind": "fpn", "channels": 32}}


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_whole_way_from_images_without_labels_to_a_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = {
        "probe.labelled": {"name": "labelled", "simulated": {**SCENES, "seed": 5}},
        "validation": {"name": "held-out", "simulated": {**SCENES, "seed": 6, "length": 3}},
        "probe.labels": [2, 4],
        "probe.seeds": 2,
        "pictures": 2,
        "executor": "local",
        "steps": 4,
    }
    write_yaml(di3cl_run(tmp_path / "di3cl", **probe), tmp_path / "run.yaml")
    assert command("selfsup", "--config", tmp_path / "run.yaml") == 0
    said = capsys.readouterr().out
    assert "| random initialisation |" in said
    assert "labelled images\n\n| features of | 2 | 4 |" in said
    left = {path.name for path in (tmp_path / "di3cl").iterdir()}
    assert {"metrics.json", "report.md", "curves.png", "views.png", "likeness.png", "patches.png"} <= left

    labelled = {"simulated": SCENES, "normalize": "image"}
    cpt = {
        "output": str(tmp_path / "cpt"),
        "executor": "local",
        "weights": str(tmp_path / "di3cl" / "model"),
        "expert_noise": 0.01,
        "model": SPARSE,
        "steps": 4,
        "batch_size": 2,
        "pictures": 0,
        "train": {"name": "train", **labelled},
        "validation": {"name": "held-out", **labelled, "simulated": {**SCENES, "seed": 7}},
    }
    (tmp_path / "cpt.yaml").write_text(yaml.safe_dump(cpt))
    assert command("train", "--config", tmp_path / "cpt.yaml") == 0
    upcycled = load_model(tmp_path / "cpt" / "model")
    start = load_model(tmp_path / "di3cl" / "model").state_dict()["backbone.blocks.0.mlp.fc1.weight"]
    experts = upcycled.state_dict()["backbone.blocks.0.mlp.experts.w1"]
    assert torch.nn.functional.cosine_similarity(experts.flatten(1), start.flatten()[None]).min() > 0.9

    tuned = {**cpt, "output": str(tmp_path / "tuned"), "weights": str(tmp_path / "cpt" / "model")}
    del tuned["expert_noise"]
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump({**tuned, "mode": "frozen"}))
    assert command("finetune", "--config", tmp_path / "tuned.yaml") == 0
    scene = np.random.default_rng(0).integers(1, 255, (80, 90), dtype=np.uint8)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    assert command(
        "predict", "--model", tmp_path / "tuned" / "model", "--images", tmp_path / "scene.png",
        "--values", "amplitude", "--output", tmp_path / "maps",
    ) == 0  # fmt: skip
    assert any((tmp_path / "maps").iterdir())


def test_the_command_alone_runs_and_resumes(tmp_path: Path) -> None:
    small = ("executor=local", "batch_size=2", "probe=null", "validation=null", "unseen=[]", "pictures=0")
    arguments = ("selfsup", "--set", f"output={tmp_path}", *small)
    assert command(*arguments, "steps=2") == 0
    assert command(*arguments, "steps=3", "--resume") == 0
    assert [row["step"] for row in read_csv(tmp_path / "train.csv")] == ["0", "1", "2"]
    assert load_model(tmp_path / "model").decoder is None


def test_a_run_with_labels_is_another_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("selfsup", "--set", "selfsup=null", f"output={tmp_path}") == 2
    assert "crossearth-sar train" in capsys.readouterr().err
    assert RunConfig().selfsup is None
