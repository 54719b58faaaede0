"""Pre-training starts from given weights, every rank with its slice of them; a resumed run has its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import begin, micro_run, shared_pool
from torch import Tensor

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.executors.deepspeed.optimizer_state import gather_weights
from crossearth_sar.engine.make_run import make_run
from crossearth_sar.engine.run import Run
from crossearth_sar.errors import InputError
from crossearth_sar.model import build_model, load_model, save_model
from crossearth_sar.moe import upcycle_state_dict


def with_dense_weights(tmp_path: Path, **changes: Any) -> RunConfig:
    changes |= {"weights": str(tmp_path / "dense"), "validation.simulated.length": 1}
    config = micro_run(tmp_path / "run", steps=1, **changes)
    save_model(build_model(config.preset, 3, changes=config.model, sparse=False), tmp_path / "dense")
    return config


def weights_of(trainer: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in gather_weights(trainer.executor.engine).items()}


def start_and_go_on(config: RunConfig) -> dict[str, Any]:
    trainer = begin(config)
    expected = upcycle_state_dict(
        load_model(str(config.weights)).backbone.state_dict(),
        6,
        expert_noise=config.expert_noise,
        seed=config.seed,
    )
    found = weights_of(trainer)
    wrong = [key for key, value in expected.items() if not torch.equal(found[f"backbone.{key}"], value)]
    trainer.fit()
    trained = weights_of(trainer)
    resumed = begin(replace(config, weights="gone.pth"), "auto")
    again = weights_of(resumed)
    experts = found["backbone.blocks.0.mlp.experts.w1"]
    return {
        "ep_size": trainer.executor.ep_size,
        "wrong": wrong,
        "experts differ": not torch.equal(experts[0], experts[5]),
        "moved": not torch.equal(trained["backbone.cls_token"], found["backbone.cls_token"]),
        "same after resume": all(torch.equal(again[key], value) for key, value in trained.items()),
    }


def test_split_experts_are_slices_of_the_upcycled_ones(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    for found in shared_pool(2)(start_and_go_on, with_dense_weights(tmp_path, expert_noise=0.1)):
        assert found == {
            "ep_size": 2,
            "wrong": [],
            "experts differ": True,
            "moved": True,
            "same after resume": True,
        }


@pytest.mark.parametrize("weights", ["nowhere.pth", "empty", "weights.bin"])
def test_a_wrong_path_is_found_before_data_are_opened(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").touch()
    config = micro_run(tmp_path / "run", weights=weights)
    monkeypatch.setattr(
        "crossearth_sar.engine.objectives.domains.open_domain",
        lambda *_: pytest.fail("data were opened"),
    )
    with pytest.raises(InputError, match=rf"weights (at )?{weights}"):
        make_run(config, Ranks(0, 1, torch.device("cpu")))
