"""A dataset of another package goes through `finetune --benchmark` and `evaluate` as one of this one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ice_dataset import forget_afterwards, offer, register_all, write_ice

from crossearth_sar.cli.main import main

SMALL = (
    "preset=crossearth_sar_tiny",
    "model={crop_size: 64, crop_stride: 64}",
    "model.vit={dim: 32, num_heads: 2, depth: 4, patch_size: 16, image_size: 64}",
    "model.decoder={channels: 32, num_queries: 6, pixel_layers: 1, query_layers: 1, num_points: 64}",
    "augment.crop_size=64",
    "steps=2",
    "workers=0",
    "pictures=0",
    "weights=random",
    "data_root=.",
)


def test_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_afterwards(monkeypatch)
    offer(monkeypatch, register_all)
    monkeypatch.chdir(write_ice(tmp_path))
    recipe = Path(__file__).resolve().parents[2] / "crossearth_sar/cli/recipes/finetune_benchmark.yaml"
    assert main(["finetune", "--config", str(recipe), "--benchmark", "Wi2Su", "--set", *SMALL]) == 0
    model = "runs/finetune-{benchmark}/model"
    assert main(["evaluate", "--data-root", ".", "--benchmark", "Wi2Su", "--model", model]) == 0
    (result,) = json.loads(Path("runs/evaluate/results.json").read_text())["benchmarks"]
    assert (result["target"], result["classes"], result["images"]) == (
        "Sea-Ice Summer",
        ["water", "ice"],
        2,
    )
    metrics = json.loads(Path("runs/finetune-Wi2Su/metrics.json").read_text())
    assert result["iou"] == metrics["domains"]["Sea-Ice-Summer-test"]["model"]["iou"]
