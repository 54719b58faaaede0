"""A run with an objective from outside, under both executors: trains, stops, resumes, keeps its best."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mean_image import LearnTheMeanImage
from ranks import shared_pool
from safetensors.torch import load_file
from torch import Tensor

from crossearth_sar.engine.checkpoint_files import list_checkpoints, read_state
from crossearth_sar.engine.config import OptimConfig, RunConfig
from crossearth_sar.engine.distributed import Ranks, start_ranks
from crossearth_sar.engine.executors.choose import executor_name, make_executor
from crossearth_sar.engine.log import read_csv
from crossearth_sar.engine.objectives.base import Batch, Forward, Losses
from crossearth_sar.engine.run import Run
from crossearth_sar.errors import InputError

STEPS = 9


def settings(output: Path, executor: str, **changes: Any) -> RunConfig:
    return RunConfig(
        output=str(output), executor=executor, steps=STEPS, batch_size=4, validate_every=4, save_every=3,
        optim=OptimConfig(lr=0.3, warmup_steps=1, weight_decay=0.0), **changes,
    )  # fmt: skip


def learn(
    config: RunConfig,
    resume: str | None = None,
    stop_in: int | None = None,
    objective: LearnTheMeanImage | None = None,
) -> dict[str, Any]:
    """A run of this process, one of its pool's ranks perhaps; in step `stop_in` a signal comes."""
    ranks = start_ranks(deepspeed=executor_name(config) == "deepspeed")
    torch.set_num_threads(1)
    run = Run(config, ranks, objective or LearnTheMeanImage(), make_executor(config, ranks))
    try:
        run.start(resume)
        if stop_in is not None:
            train_step = run._train_step

            def interrupted(batch: Any) -> dict[str, float]:
                if run.step == stop_in and ranks.is_main:
                    os.kill(os.getpid(), signal.SIGTERM)
                return train_step(batch)

            run._train_step = interrupted  # type: ignore[method-assign]
        done = run.fit()
        if done:
            run.finish()
        return {"done": done, "step": run.step, "best": run.best}
    finally:
        run.close()


def on(executor: str, ranks: int, *arguments: Any) -> list[dict[str, Any]]:
    """DeepSpeed keeps a process group, so that its runs are in processes of their own."""
    if executor == "deepspeed":
        pytest.importorskip("deepspeed")
    if executor == "local" and ranks == 1:
        return [learn(*arguments)]
    return shared_pool(ranks)(learn, *arguments)


def left(output: Path) -> tuple[list[tuple[str, str]], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, the model, and the newest checkpoint's optimizer."""
    newest = list_checkpoints(output / "checkpoints")[-1]
    losses = [(row["step"], row["loss"]) for row in read_csv(output / "train.csv")]
    moments: dict[str, Tensor] = {}
    for path in sorted(newest.glob("optimizer-*")):
        moments |= load_file(path)
    return losses, load_file(output / "model" / "model.safetensors"), moments


@pytest.mark.parametrize(
    ("executor", "ranks"), [("local", 1), ("local", 2), ("deepspeed", 1), ("deepspeed", 2)]
)
def test_it_learns_stops_and_resumes_to_the_last_bit(executor: str, ranks: int, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert all(found["done"] for found in on(executor, ranks, settings(whole, executor)))
    (stopped, *_) = on(executor, ranks, settings(halves, executor), None, 4)
    assert (stopped["done"], stopped["step"]) == (False, 5)
    (resumed, *_) = on(executor, ranks, settings(halves, executor), "auto")
    assert (resumed["done"], resumed["step"]) == (True, STEPS)
    for one, other in zip(left(whole), left(halves), strict=True):
        if isinstance(one, dict):
            assert one.keys() == other.keys()
            assert all(torch.equal(value, other[name]) for name, value in one.items())
        else:
            assert one == other
    scores = [float(row["closeness"]) for row in read_csv(whole / "validation.csv")]
    assert len(scores) == 3
    assert scores == sorted(scores), "it comes nearer to the mean image"
    assert scores[-1] > -0.9, "from 2.5 away"


def test_executors_read_each_others_checkpoints_and_take_the_same_steps(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    on("local", 1, settings(tmp_path / "whole", "local"))
    on("deepspeed", 1, settings(tmp_path / "mixed", "deepspeed"), None, 4)
    on("local", 1, settings(tmp_path / "mixed", "local"), "auto")
    whole, mixed = left(tmp_path / "whole")[0], left(tmp_path / "mixed")[0]
    assert [step for step, _ in mixed] == [step for step, _ in whole]
    for (_, one), (_, other) in zip(whole, mixed, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-6)


class Declining(LearnTheMeanImage):
    """Each validation is worse than the first."""

    def __init__(self) -> None:
        self.validations = 0

    def score(self, model: torch.nn.Module) -> dict[str, float]:
        self.validations += 1
        return {"closeness": -float(self.validations)}


def declining(output: Path, **changes: Any) -> Run:
    config = settings(output, "local", **changes)
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = Run(config, ranks, Declining(), make_executor(config, ranks))
    run.start()
    return run


def test_the_best_model_is_the_result_and_its_checkpoint_stays(tmp_path: Path) -> None:
    run = declining(tmp_path, keep_checkpoints=1)
    assert run.fit()
    run.finish()
    run.close()
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step-000004", "step-000009"]
    assert run.best == {"step": 4, "closeness": -1.0}
    best, last, result = (
        load_file(path / "model.safetensors")["image"]
        for path in (*list_checkpoints(tmp_path / "checkpoints"), tmp_path / "model")
    )
    assert torch.equal(result, best)
    assert not torch.equal(result, last)


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    run = declining(tmp_path, patience=1)
    assert run.fit(), "done, not stopped"
    assert run.step == 8, "the validation after the first was no better"
    assert read_state(list_checkpoints(tmp_path / "checkpoints")[-1])["step"] == 8
    run.close()


def test_one_run_to_a_folder_also_within_a_process(tmp_path: Path) -> None:
    first = declining(tmp_path)
    with pytest.raises(InputError, match="is in use"):
        declining(tmp_path)
    first.close()
    declining(tmp_path).close()


@pytest.mark.parametrize("stranger", ["step-000003.bak", "step-3", "step-000003 (2)", "step-x", "notes.txt"])
def test_strangers_beside_checkpoints_disturb_nobody(stranger: str, tmp_path: Path) -> None:
    learn(settings(tmp_path, "local"), None, 4)
    beside = tmp_path / "checkpoints" / stranger
    if stranger.endswith(".txt"):
        beside.touch()
    else:
        beside.mkdir()
        (beside / "state.json").write_text("{}", encoding="utf-8")
    assert learn(settings(tmp_path, "local"), "auto")["step"] == STEPS
    assert beside.exists(), "and are left alone"


@pytest.mark.parametrize(
    "parallel", [{"zero_stage": 2}, {"ep_size": 2}, {"offload_optimizer": "cpu"}], ids=lambda p: next(iter(p))
)
def test_what_only_deepspeed_does_is_refused(parallel: dict[str, Any], tmp_path: Path) -> None:
    config = settings(tmp_path, "local")
    config = replace(config, parallel=replace(config.parallel, **parallel))
    with pytest.raises(InputError, match="executor=deepspeed"):
        make_executor(config, Ranks(0, 1, torch.device("cpu")))


def test_bf16_is_autocast_over_float32_masters(tmp_path: Path) -> None:
    learn(settings(tmp_path / "half", "local", precision="bf16"))
    learn(settings(tmp_path / "full", "local"))
    half, full = left(tmp_path / "half"), left(tmp_path / "full")
    assert half[1]["image"].dtype == torch.float32
    assert float(half[0][-1][1]) == pytest.approx(float(full[0][-1][1]), rel=0.05)


def test_a_tracker_gets_every_row_and_never_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from accelerate import tracking

    seen: list[tuple[str, Any]] = []

    class Notebook(tracking.GeneralTracker):
        name, requires_logging_directory = "notebook", False

        def __init__(self, run_name: str) -> None:
            self.run_name = run_name

        def start(self) -> None:
            seen.append(("start", self.run_name))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            seen.append(("settings", values["optim.lr"]))

        def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            if step == 6 and "train/loss" in values:
                raise ConnectionError("no network")
            seen.append((f"step {step}", sorted(values)))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    assert learn(settings(tmp_path, "local", trackers=("notebook",)))["step"] == STEPS
    assert seen[:2] == [("start", "crossearth-sar"), ("settings", 0.3)]
    assert [name for name, _ in seen[2:]] == [
        "step 0",
        "step 1",
        "step 2",
        "step 3",
        "step 4",
        "step 4",
        "step 5",
    ]
    assert ("step 4", ["validation/closeness"]) in seen
    assert "notebook failed at step 6 and is left out: no network" in caplog.text
    with pytest.raises(InputError, match="did you mean 'notebook'"):
        learn(settings(tmp_path / "other", "local", trackers=("notebok",)))


def test_state_of_the_objective_is_in_the_checkpoint(tmp_path: Path) -> None:
    class Averaging(LearnTheMeanImage):
        average = torch.zeros(1, 8, 8)

        def after_step(self, executor: Any) -> None:
            self.average = 0.9 * self.average + 0.1 * executor.module.image.detach()

        def state(self) -> dict[str, Tensor]:
            return {"average": self.average}

        def load_state(self, state: Any) -> None:
            self.average = state["average"]

    whole, parts, resumed = Averaging(), Averaging(), Averaging()
    learn(settings(tmp_path / "whole", "local"), objective=whole)
    learn(settings(tmp_path / "parts", "local"), stop_in=4, objective=parts)
    learn(settings(tmp_path / "parts", "local"), "auto", objective=resumed)
    assert torch.equal(whole.average, resumed.average)
    assert not torch.equal(whole.average, parts.average)
    checkpoint = list_checkpoints(tmp_path / "whole" / "checkpoints")[-1]
    assert "objective.safetensors" in read_state(checkpoint)["sha256"]


class Failing(LearnTheMeanImage):
    def losses(self, forward: Forward, model: torch.nn.Module, part: Batch) -> Losses:
        raise RuntimeError("Connection closed by peer")


def test_a_failed_run_outlives_its_launcher_until_it_has_said_why(tmp_path: Path) -> None:
    """DeepSpeed's launcher sends SIGTERM to the ranks that are left, perhaps before they have explained."""
    before = signal.getsignal(signal.SIGTERM)
    config, ranks = settings(tmp_path, "local"), Ranks(0, 1, torch.device("cpu"))
    run = Run(config, ranks, Failing(), make_executor(config, ranks))
    run.start()
    with pytest.raises(RuntimeError, match="closed by peer"):
        run.fit()
    os.kill(os.getpid(), signal.SIGTERM)  # would end this process
    run.close()
    assert signal.getsignal(signal.SIGTERM) is before


class Recording(LearnTheMeanImage):
    def __init__(self) -> None:
        self.drawn: list[float] = []

    def losses(self, forward: Forward, model: torch.nn.Module, part: Batch) -> Losses:
        self.drawn.append(float(torch.rand(())))
        return super().losses(forward, model, part)


def test_every_step_and_part_draws_numbers_of_its_own(tmp_path: Path) -> None:
    config = settings(tmp_path, "local", accumulation=2)
    objective = Recording()
    learn(config, objective=objective)
    assert len(set(objective.drawn)) == 2 * STEPS
