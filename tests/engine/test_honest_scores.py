"""What a run on a folder says of classes that validation lacks, and what its model keeps of its input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ranks import micro_run

from crossearth_sar.config import from_mapping
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.objectives.segmentation import Segmentation
from crossearth_sar.engine.run import Run

RNG = np.random.default_rng(0)


def domain(root: Path, name: str, water_rows: int) -> DomainConfig:
    for kind in ("i", "l"):
        (root / name / kind).mkdir(parents=True)
    label = np.zeros((64, 64), np.uint8)
    label[:water_rows] = 1
    Image.fromarray(RNG.integers(1, 200, (64, 64)).astype(np.uint8)).save(root / name / "i" / "a.png")
    Image.fromarray(label).save(root / name / "l" / "a.png")
    folder = {
        "root": str(root / name),
        "images": "i/*.png",
        "labels": "l/*.png",
        "values": "amplitude",
        "classes": ["land", "water"],
    }
    return from_mapping(DomainConfig, {"name": name, "folder": folder})


def objective(root: Path) -> Segmentation:
    config = replace(
        micro_run(root / "run", steps=1),
        train=domain(root, "lakes", 20),
        validation=domain(root, "desert", 0),
        unseen=(),
    )
    return Segmentation(config, Ranks(rank=0, size=1, device=torch.device("cpu")))


def test_a_score_says_which_classes_it_is_of(tmp_path: Path) -> None:
    segmentation = objective(tmp_path)
    row = {"miou": math.nan, "pixel_accuracy": 1.0, "iou_land": 1.0, "iou_water": math.nan}
    assert segmentation.score_words(row) == "no mIoU: only land in what was seen of desert"
    row = {"miou": 0.45, "pixel_accuracy": 0.9, "iou_land": 0.9, "iou_water": 0.0}
    assert segmentation.score_words(row) == "mIoU 0.450 on desert"


def test_a_model_keeps_what_it_was_trained_on(tmp_path: Path) -> None:
    segmentation = objective(tmp_path)
    contract = segmentation.build(from_start=True).contract
    assert contract is not None
    assert (contract.domain, contract.values, contract.bands) == ("lakes", "amplitude", 1)
    assert contract.db_mean is not None
    (measured,) = segmentation.domains.train[0]["db_mean"].tolist()
    assert contract.db_mean == (measured,)


def test_a_score_that_is_none_is_not_the_best_for_ever() -> None:
    run = Run.__new__(Run)

    class Scores:
        best_by = "miou"
        values = iter([math.nan, 0.2, math.nan, 0.1])

        def score(self, model: object) -> dict[str, float]:
            return {"miou": next(self.values)}

    run.objective, run.log, run.best, run.step = Scores(), None, None, 0  # type: ignore[assignment]
    run.executor = type("Whole", (), {"whole": lambda self: None})()
    best = []
    for step in range(1, 5):
        run.step = step
        run.best = run._validate()
        assert run.best is not None
        best.append(run.best["step"])
    assert best == [1, 2, 2, 2]
