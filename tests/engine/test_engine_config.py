"""What a run refuses before its first step, in words that name the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from ranks import micro_run

from crossearth_sar.config import from_mapping, read_yaml, to_mapping, write_yaml
from crossearth_sar.data.datasets.folder import FolderConfig
from crossearth_sar.data.domain import DomainConfig
from crossearth_sar.data.simulator.scenes import SimulatorConfig
from crossearth_sar.engine.config import OptimConfig, RunConfig, simulated_run
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.make_run import make_run
from crossearth_sar.engine.planning.layout import (
    check_machine,
    deepspeed_config,
    plan_layout,
    run_model_config,
)
from crossearth_sar.engine.run import Run
from crossearth_sar.errors import InputError


def built(config: RunConfig, ranks: int = 1) -> Run:
    return make_run(config, Ranks(0, ranks, torch.device("cpu")))


def trainer(tmp_path: Path, ranks: int = 1, **changes: Any) -> Run:
    return built(micro_run(tmp_path, **changes), ranks)


def test_the_default_run_survives_yaml_and_json(tmp_path: Path) -> None:
    config = simulated_run()
    write_yaml(config, tmp_path / "run.yaml")
    assert from_mapping(RunConfig, read_yaml(tmp_path / "run.yaml")) == config
    assert from_mapping(RunConfig, to_mapping(config)) == config


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulation", "save_every", "keep_checkpoints"])
def test_numbers_that_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} does not fit"):
        replace(simulated_run(), **{name: 0})


@pytest.mark.parametrize("name", ["pictures", "workers", "seed"])
def test_numbers_that_must_not_be_negative(name: str) -> None:
    replace(simulated_run(), **{name: 0})
    with pytest.raises(InputError, match=f"{name} does not fit"):
        replace(simulated_run(), **{name: -1})


@pytest.mark.parametrize("name", ["sensors", "sensors-heldout"])
def test_two_domains_of_one_name(name: str) -> None:
    unseen = DomainConfig(name=name, simulated=SimulatorConfig())
    with pytest.raises(InputError, match="distinct names"):
        replace(simulated_run(), unseen=(unseen,))


@pytest.mark.parametrize(
    ("batch", "ranks", "accumulation", "fix"),
    [(6, 4, 1, 4), (7, 2, 3, 6), (3, 4, 1, 4), (1, 1, 2, 2), (23, 4, 2, 16)],
)
def test_a_batch_that_does_not_divide(
    tmp_path: Path, batch: int, ranks: int, accumulation: int, fix: int
) -> None:
    with pytest.raises(InputError, match=f"batch_size={fix}$"):
        trainer(tmp_path, ranks, batch_size=batch, accumulation=accumulation)
    assert trainer(tmp_path, ranks, batch_size=fix, accumulation=accumulation).executor.micro_batch > 0


def test_sizes_of_a_run_that_fits(tmp_path: Path) -> None:
    run = trainer(tmp_path, 2, batch_size=12, accumulation=3)
    assert (run.executor.micro_batch, run.executor.ep_size) == (2, 2)
    model_config = run.objective.model_config
    assert model_config.num_classes == 7
    settings = deepspeed_config(run.config, run.executor.layout)
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["bf16"] == {"enabled": False}, "auto is fp32 on a CPU"
    on_gpu = plan_layout(run.config, model_config, ranks=2, on_gpu=True)
    assert deepspeed_config(run.config, on_gpu)["bf16"] == {"enabled": True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"parallel.zero_stage": 0, "parallel.ep_size": 1, "precision": "bf16"},
            "bf16 with parallel.zero_stage 0",
        ),
        (
            {"parallel.zero_stage": 0, "parallel.ep_size": 1, "parallel.offload_optimizer": "cpu"},
            "only ZeRO offloads",
        ),
        ({"parallel.zero_stage": 2, "parallel.offload_optimizer": "nvme"}, "only 3 has it"),
        ({"parallel.zero_stage": 2, "parallel.offload_parameters": "cpu"}, "only 3 has it"),
        ({"parallel.zero_stage": 3, "parallel.ep_size": 2}, "ZeRO 3 cannot split experts"),
        ({"parallel.timeout_minutes": 0}, "timeout_minutes"),
        ({"nonfinite": "ignore"}, "stop"),
    ],
)
def test_what_cannot_work_together(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        trainer(tmp_path, 2, **changes)


def test_zero_3_keeps_experts_whole(tmp_path: Path) -> None:
    run = trainer(tmp_path, 2, **{"parallel.zero_stage": 3, "parallel.offload_parameters": "cpu"})
    assert run.executor.ep_size == 1
    zero = deepspeed_config(run.config, run.executor.layout)["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": False}


def test_nvme_offload_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvme = {"parallel.zero_stage": 3, "parallel.offload_optimizer": "nvme"}
    with pytest.raises(InputError, match="nvme_path is no folder"):
        trainer(tmp_path, **nvme)
    op_builder = pytest.importorskip("deepspeed.ops.op_builder")
    works = False
    builder = SimpleNamespace(is_compatible=lambda verbose: works)
    monkeypatch.setattr(op_builder, "AsyncIOBuilder", lambda: builder)
    with pytest.raises(InputError, match="libaio is missing"):
        trainer(tmp_path, **nvme, **{"parallel.nvme_path": str(tmp_path)})
    works = True
    config = micro_run(tmp_path, **nvme, **{"parallel.nvme_path": str(tmp_path)})
    check_machine(config)
    layout = plan_layout(config, run_model_config(config, 7), ranks=1, on_gpu=True)
    offload = deepspeed_config(config, layout)["zero_optimization"]["offload_optimizer"]
    assert offload == {"device": "nvme", "pin_memory": True, "nvme_path": str(tmp_path)}


def test_crops_that_differ(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"crop_size 96, model.crop_size 64[\s\S]*crop_size=64"):
        trainer(tmp_path, **{"augment.crop_size": 96})


def test_num_classes_is_not_set_by_hand(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_classes is not set by hand"):
        trainer(tmp_path, **{"model.num_classes": 7})


def test_an_unknown_key_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="top_k"):
        trainer(tmp_path, **{"model.moe.topk": 2})


def test_experts_that_do_not_divide_among_ranks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a divisor of 6 experts and of 2 ranks"):
        trainer(tmp_path, 2, **{"parallel.ep_size": 3})


@pytest.mark.parametrize("ep_size", ["auto", 2])
def test_experts_are_not_split_without_zero(tmp_path: Path, ep_size: int | str) -> None:
    """DeepSpeed's norm for clipping is then a mean of the ranks' norms, each without the others' experts."""
    changes: dict[str, Any] = {"parallel.zero_stage": 0, "parallel.ep_size": ep_size}
    with pytest.raises(InputError, match=r"zero_stage=1"):
        trainer(tmp_path, 2, **changes)
    assert trainer(tmp_path, 1, **{**changes, "parallel.ep_size": "auto"}).executor.ep_size == 1
    assert trainer(tmp_path, 2, **{**changes, "parallel.ep_size": 1}).executor.ep_size == 1


def test_domains_of_other_classes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((64, 64), np.float32))
    tifffile.imwrite(tmp_path / "a_label.tif", np.ones((64, 64), np.uint8))
    folder = FolderConfig(
        root=str(tmp_path), values="amplitude", classes=("land", "sea"), images="a.tif", labels="a_label.tif"
    )
    config = replace(micro_run(tmp_path), unseen=(DomainConfig(name="other", folder=folder),))
    with pytest.raises(InputError, match=r"'other' has other classes[\s\S]*land"):
        built(config)


def test_warmup_longer_than_the_run_is_allowed(tmp_path: Path) -> None:
    config = replace(micro_run(tmp_path), optim=OptimConfig(warmup_steps=100))
    assert built(config).config.steps < 100
