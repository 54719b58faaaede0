"""A run whose model works at a ground spacing of its own: domains are measured and crops cut there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import micro_run

from crossearth_sar.data.domain import open_domain
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.objectives.segmentation import Segmentation


@pytest.mark.parametrize("changes", [{}, {"augment": "null"}])
def test_domains_and_batches_at_the_spacing_of_the_model(changes: dict[str, Any], tmp_path: Path) -> None:
    config = micro_run(tmp_path, **{"model.pixel_m": 6.0, **changes})  # of scenes of 3 m
    objective = Segmentation(config, Ranks(0, 1, torch.device("cpu")))
    assert config.train is not None
    expected = open_domain(config.train, pixel_m=6.0)[0]["db_std"]
    assert torch.equal(objective.domains.train[0]["db_std"], expected)
    assert not torch.equal(open_domain(config.train)[0]["db_std"], expected)
    assert objective.domains.validation.pixel_m == 6.0

    def load(stream: Any, join: Any, **_: Any) -> list[Any]:
        return [join([stream[draw] for draw in range(4)])]

    (batch,) = objective.batches(load)
    assert set(batch) == {"image", "mask", "name", "db_mean", "db_std"}
    assert batch["image"].shape == (4, 1, 64, 64)
    seen = (batch["mask"] != 255).flatten(1).sum(1)
    if changes:
        assert seen.tolist() == [40 * 40] * 4, "80 pixels of 3 m are 40 of 6 m"
    model = objective.build(from_start=True)
    assert model.config.pixel_m == 6.0
