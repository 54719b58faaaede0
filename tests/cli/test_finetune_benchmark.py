"""train/finetune.py --benchmark: a row's source is trained on, its target scored as evaluate.py scores it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dataset_trees import air, ddhr

from crossearth_sar.config import from_mapping, merge, read_yaml
from crossearth_sar.engine.config import RunConfig, finetuning_settings
from crossearth_sar.evaluation.protocol import ProtocolConfig, training_domains
from crossearth_sar.evaluation.registry import BENCHMARKS

TRAIN = Path(__file__).resolve().parents[2] / "train"
RECIPE = TRAIN.parent / "crossearth_sar" / "cli" / "recipes" / "finetune_benchmark.yaml"

SMALL: dict[str, Any] = {
    "preset": "crossearth_sar_tiny",
    "model": {
        "crop_size": 512,
        "vit": {"dim": 32, "num_heads": 2, "depth": 4, "patch_size": 64, "image_size": 512},
        "decoder": {"channels": 32, "num_queries": 6, "pixel_layers": 1, "query_layers": 1, "num_points": 64},
    },
    "steps": 2,
    "workers": 0,
    "pictures": 1,
}
"""The recipe's settings, on a model that takes a fraction of a second."""


def script(name: str, *arguments: str) -> int:
    """The script's exit status, run in this process."""
    path = TRAIN / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
    return int(end.value.code or 0)


def test_what_it_trains_is_what_evaluate_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ddhr(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    changes = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in SMALL.items()
    ]
    changes = [change.removesuffix("\n...") for change in changes]
    row = ["--benchmark", "K2C", "--data-file", "changes.yaml", "--split-seed", "3"]
    (tmp_path / "changes.yaml").write_text("DDHR-SK: {upsample: false}\n")
    settings = ["--set", *changes, "data_root=data", "weights=random"]
    assert script("finetune", "--config", str(RECIPE), *row, *settings) == 0
    said = capsys.readouterr().err
    assert (
        "train DDHR-SK-KR-train (4 images), held out DDHR-SK-KR-test (1), unseen DDHR-SK-CN-test (1)" in said
    )
    run = tmp_path / "runs" / "finetune-K2C"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["classes"] == list(BENCHMARKS["K2C"].classes.classes.names)
    scored = ["--data-root", "data", "--benchmark", "K2C", "--data-file", "changes.yaml", "--seed", "3"]
    assert script("evaluate", *scored, "--model", "runs/finetune-{benchmark}/model", "--pictures", "0") == 0
    (result,) = json.loads((tmp_path / "runs" / "evaluate" / "results.json").read_text())["benchmarks"]
    own = metrics["domains"]["DDHR-SK-CN-test"]["model"]
    assert result["iou"] == own["iou"]
    assert sum(map(sum, result["confusion"])) == 256 * 256, "the changed row is read"
    assert {path.name for path in (tmp_path / "data" / "splits").iterdir()} == {
        "DDHR-SK-korea-seed3.json",
        "DDHR-SK-china-seed3.json",
    }
    again = from_mapping(RunConfig, read_yaml(run / "config.yaml"))
    assert again.train is not None
    assert again.train.official is not None
    assert again.train.official.changes == {"upsample": False}


@pytest.mark.parametrize("unit", ["patch", "block"])
def test_whole_scenes_as_they_are_distributed(
    unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AIR-PolSAR-Seg-2.0, int16 components and compressed labels: VV trains, all channels are scored."""
    air(tmp_path / "data", width=1280)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "changes.yaml").write_text(
        f"AIR-PolSAR-Seg-2.0: {{split_unit: {unit}, block: 1, window: 256}}\n"
    )
    changes = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}".removesuffix("\n...")
        for key, value in {**SMALL, "pictures": 0, "validation_samples": 2}.items()
    ]
    row = ["--benchmark", "VV2F", "--data-file", "changes.yaml"]
    settings = ["--set", *changes, "data_root=data", "weights=random"]
    assert script("finetune", "--config", str(RECIPE), *row, *settings) == 0
    said = capsys.readouterr().err
    # of 3 x 5 windows a scene, the last row is over the one before it: 10 units a scene, of which 8 train
    assert "train AIR-PolSAR-Seg-2.0-VV-train (3" in said
    scored = ["--data-root", "data", *row, "--model", "runs/finetune-VV2F/model", "--pictures", "0"]
    assert script("evaluate", *scored, "--max-images", "2") == 0
    (result,) = json.loads((tmp_path / "runs" / "evaluate" / "results.json").read_text())["benchmarks"]
    assert all(sum(row) > 1000 for row in result["confusion"]), "labels of every class, by their colours"
    blocks = "-blocks1" if unit == "block" else ""
    splits = {path.name for path in (tmp_path / "data" / "splits").iterdir()}
    assert splits == {f"AIR-PolSAR-Seg-2.0-{region}{blocks}-seed0.json" for region in ("north", "south")}


@pytest.mark.parametrize("key", BENCHMARKS)
def test_every_row_makes_a_config(key: str) -> None:
    row = BENCHMARKS[key]
    domains = training_domains(row, ProtocolConfig(data_root=""))
    config = merge(finetuning_settings(), {**read_yaml(RECIPE), **domains})
    for domain, side, part in (
        (config.train, row.source, "train"),
        (config.validation, row.source, "test"),
        (config.unseen[0], row.target, "test"),
    ):
        assert domain is not None
        assert domain.official is not None
        assert (domain.official.dataset, domain.official.domain) == (side.dataset, side.domain)
        assert (domain.official.part, domain.official.task) == (part, row.task)
        assert not set(domain.name) & set("() /"), "names become file names"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "names no domains"),
        (["--benchmark", "K2D"], "did you mean"),
        (["--benchmark", "K2C", "--set", "weights=random"], "DDHR-SK is not at"),
        (["--splits", "x", "--set", "train={}"], "are for --benchmark"),
    ],
)
def test_wrong_input_ends_with_one_screen(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script("finetune", "--config", str(RECIPE), *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) < 25
