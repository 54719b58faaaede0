"""NVMe offload: the same losses as in memory, and a resumed run repeats them. Any file system serves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ranks import begin, micro_run, shared_pool, slow

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.log import read_csv

CHANGES: dict[str, Any] = {
    "steps": 4,
    "save_every": 2,
    "parallel.zero_stage": 3,
    "model.vit.dim": 64,  # a partition below 1 MiB is never swapped
}


def async_io() -> bool:
    try:
        from deepspeed.ops.op_builder import AsyncIOBuilder
    except ImportError:
        return False
    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def fit(config: RunConfig, resume: str | None = None) -> tuple[int, list[bool]]:
    """The step this began with, and which partitions of the optimizer are swapped."""
    trainer = begin(config, resume)
    zero, first = trainer.executor.engine.optimizer, trainer.step
    swapped = [zero._swappable_optimizer_subgroup(i) for i in range(len(zero.fp16_groups))]
    trainer.fit()
    return first, swapped


def losses(output: Path) -> list[tuple[float, float]]:
    return [(float(row["loss"]), float(row["grad_norm"])) for row in read_csv(output / "train.csv")]


@slow
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_on_nvme_is_the_run_in_memory(tmp_path: Path, ranks: int) -> None:
    pytest.importorskip("deepspeed")
    if not async_io():
        pytest.skip("DeepSpeed's async_io cannot be built here: libaio is missing")
    pool, output = shared_pool(ranks), tmp_path / "nvme"
    pool(fit, micro_run(tmp_path / "memory", **CHANGES))
    (tmp_path / "disk").mkdir()
    nvme = {
        "parallel.offload_optimizer": "nvme",
        "parallel.offload_parameters": "nvme",
        "parallel.nvme_path": tmp_path / "disk",
    }
    config = micro_run(output, **CHANGES, **nvme)
    began = pool(fit, config, timeout=580)  # the first start compiles async_io
    assert all(first == 0 and any(swapped) for first, swapped in began)
    assert list((tmp_path / "disk").rglob("*.swp")), "nothing was swapped"
    whole = losses(output)
    assert len(whole) == 4
    for (loss, norm), (in_memory, its_norm) in zip(whole, losses(tmp_path / "memory"), strict=True):
        assert loss == pytest.approx(in_memory, rel=1e-4)
        assert norm == pytest.approx(its_norm, rel=1e-3)
    shutil.rmtree(output / "checkpoints" / "step-000004")
    assert [first for first, _ in pool(fit, config, "auto")] == [2] * ranks
    assert losses(output) == whole, "to the last bit"
