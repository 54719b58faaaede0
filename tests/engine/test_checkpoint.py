"""Checkpoints: a resumed run is the uninterrupted one, and what is damaged, torn or foreign is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, begin, micro_run, shared_pool
from safetensors.torch import load_file

from crossearth_sar.engine import checkpoint as saving
from crossearth_sar.engine.checkpoint import SaveError, load_checkpoint
from crossearth_sar.engine.checkpoint_files import list_checkpoints, read_state
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.executors.deepspeed.optimizer_state import OptimizerState, gather_weights
from crossearth_sar.engine.log import read_csv
from crossearth_sar.engine.optim import MOMENTS
from crossearth_sar.errors import InputError
from crossearth_sar.model import load_model


@pytest.fixture
def two_ranks() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(2)


@pytest.fixture
def one_rank() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(1)


def fit(config: RunConfig, resume: str | None = None) -> dict[str, Any]:
    """The weights at the end, and the step this began with."""
    trainer = begin(config, resume)
    first = trainer.step
    trainer.fit()
    weights = gather_weights(trainer.executor.engine)
    return {
        "first": first,
        "weights": {name: value.detach().float().numpy().copy() for name, value in weights.items()},
    }


def losses(output: Path) -> list[tuple[str, str, str]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_csv(output / "train.csv")]


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, {"parallel.zero_stage": 0}),
        (1, {"parallel.zero_stage": 2, "precision": "bf16"}),
        (2, {"parallel.zero_stage": 0, "parallel.ep_size": 1}),
        (2, {"parallel.zero_stage": 1, "parallel.ep_size": 2}),
        (2, {"parallel.zero_stage": 2, "parallel.ep_size": 2, "accumulation": 2, "precision": "bf16"}),
        (2, {"parallel.zero_stage": 3, "parallel.offload_optimizer": "cpu"}),
    ],
    ids=[
        "1 rank",
        "1 rank, bf16",
        "2 ranks",
        "2 ranks, split experts",
        "2 ranks, bf16, accumulation",
        "ZeRO 3",
    ],
)
def test_a_resumed_run_repeats_the_uninterrupted_one(
    tmp_path: Path, ranks: int, changes: dict[str, Any]
) -> None:
    pytest.importorskip("deepspeed")
    pool, output = shared_pool(ranks), tmp_path / "run"
    config = micro_run(output, save_every=3, **changes)
    whole, whole_losses = pool(fit, config), losses(output)
    assert len(whole_losses) == 6
    shutil.rmtree(output / "checkpoints" / "step-000006")
    again = pool(fit, config, "auto")
    assert [a["first"] for a in again] == [3] * ranks
    assert losses(output) == whole_losses, "to the last bit"
    for before, after in zip(whole, again, strict=True):
        for name, value in before["weights"].items():
            assert (value == after["weights"][name]).all(), name
    names = [path.name for path in list_checkpoints(output / "checkpoints")]
    assert names == ["step-000003", "step-000006"]
    assert read_state(output / "checkpoints" / names[1])["best"]["step"] == 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on two ranks with split experts, with checkpoints of steps 2 and 4."""
    pytest.importorskip("deepspeed")
    output = tmp_path_factory.mktemp("finished") / "run"
    shared_pool(2)(fit, micro_run(output, steps=4, save_every=2, keep_checkpoints=3, **FIXED))
    return output


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


WEIGHTS = "model.safetensors"
FIRST, LAST = (f"optimizer-0000{n}-of-00002.safetensors" for n in (1, 2))
DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of the weights": lambda folder: flip(folder / WEIGHTS, -1000),
    "the weights' header": lambda folder: flip(folder / WEIGHTS, 20),
    "weights cut": lambda folder: cut(folder / WEIGHTS, 5000),
    "weights missing": lambda folder: (folder / WEIGHTS).unlink(),
    "a byte of the first optimizer file": lambda folder: flip(folder / FIRST, 100_000),
    "the last optimizer file cut": lambda folder: cut(folder / LAST, 50_000),
    "the last optimizer file empty": lambda folder: cut(folder / LAST, 0),
    "the last optimizer file missing": lambda folder: (folder / LAST).unlink(),
    "the config cut": lambda folder: cut(folder / "config.json", 40),
    "the state cut": lambda folder: cut(folder / "state.json", 100),
}


def loading(output: Path, checkpoints: list[Path]) -> list[str | None]:
    """What loading each of the checkpoints into a fresh run of the same kind says, on this rank."""
    trainer = begin(micro_run(output, **FIXED))
    said: list[str | None] = []
    for checkpoint in checkpoints:
        try:
            load_checkpoint(checkpoint, trainer.executor, trainer.objective)
        except InputError as error:
            said.append(str(error))
        else:
            said.append(None)
    return said


def test_damage_is_found_and_a_good_checkpoint_named(
    two_ranks: RankPool, finished: Path, tmp_path: Path
) -> None:
    damaged = []
    for number, damage in enumerate(DAMAGE.values()):
        copy = shutil.copytree(finished / "checkpoints", tmp_path / str(number))
        damage(copy / "step-000004")
        damaged.append(copy / "step-000004")
    good = finished / "checkpoints" / "step-000004"
    first, second = two_ranks(loading, tmp_path / "fresh", [good, *damaged])
    assert first == second
    assert first[0] is None, "an intact one loads"
    for name, path, message in zip(DAMAGE, damaged, first[1:], strict=True):
        assert message is not None, name
        assert f"{path} is damaged" in message, name
        assert f"--resume {path.parent / 'step-000002'}" in message, name


def test_auto_refuses_a_damaged_newest(two_ranks: RankPool, run_copy: Path) -> None:
    flip(run_copy / "checkpoints" / "step-000004" / FIRST, 100_000)
    for message in two_ranks(refusal, micro_run(run_copy, **FIXED), "auto"):
        assert "step-000004 is damaged" in message
        assert f"--resume {run_copy / 'checkpoints' / 'step-000002'}" in message


def refusal(config: RunConfig, resume: str) -> str:
    try:
        begin(config, resume)
    except InputError as error:
        return str(error)
    return "accepted"


def restored(config: RunConfig, checkpoint: Path) -> dict[str, Any]:
    """What a run holds right after it went on from a checkpoint, and the losses it goes on with."""
    trainer = begin(config, str(checkpoint))
    optimizer = OptimizerState(trainer.executor.engine)
    wrong = []
    on_disk = load_file(checkpoint / WEIGHTS)
    for path in checkpoint.glob("optimizer-*"):
        on_disk.update(load_file(path))
    for name, value in gather_weights(trainer.executor.engine).items():
        if not torch.equal(value.detach(), on_disk.pop(name)):
            wrong.append(name)
    for name in optimizer.names:
        for moment in MOMENTS["adamw"]:
            if not torch.equal(optimizer.gather(name, moment), on_disk.pop(f"{moment}/{name}")):
                wrong.append(f"{moment}/{name}")
    steps = optimizer.adam_step
    trainer.fit()
    return {
        "wrong": [*wrong, *on_disk],
        "adam_step": (steps, OptimizerState(trainer.executor.engine).adam_step),
    }


ELSEWHERE: list[tuple[int, dict[str, Any]]] = [
    (1, {"parallel.zero_stage": 0, "accumulation": 2}),
    (1, {"parallel.zero_stage": 3, "accumulation": 2}),
    (2, {"parallel.zero_stage": 2, "parallel.ep_size": 1}),
    (2, {"parallel.zero_stage": 3}),
    (4, {"parallel.zero_stage": 1, "parallel.ep_size": 1}),
    (4, {"parallel.zero_stage": 2, "parallel.ep_size": 2, "parallel.offload_optimizer": "cpu"}),
]
FIXED = {"model.moe.standardize": "false"}
"""Running statistics see the images of a pass together, so that they depend on accumulation."""


@pytest.mark.parametrize(("ranks", "changes"), ELSEWHERE)
def test_training_goes_on_at_another_layout(
    finished: Path, tmp_path: Path, ranks: int, changes: dict[str, Any]
) -> None:
    """Saved by two ranks with split experts; masters, moments and step are those on disk, to the last bit."""
    checkpoint = finished / "checkpoints" / "step-000002"
    output = tmp_path / "run"
    config = micro_run(output, steps=4, **FIXED, **changes)
    for found in shared_pool(ranks)(restored, config, checkpoint):
        assert found["wrong"] == []
        assert found["adam_step"] == (2, 4)
    went_on = losses(output)
    assert [step for step, _, _ in went_on] == ["2", "3"]
    if ranks * changes.get("accumulation", 1) == 2:  # the same parts of a batch, so the same random points
        for (_, loss, norm), (_, other_loss, other_norm) in zip(losses(finished)[2:], went_on, strict=True):
            assert float(other_loss) == pytest.approx(float(loss), rel=1e-4)
            assert float(other_norm) == pytest.approx(float(norm), rel=1e-3)
    model, original = load_model(output / "checkpoints" / "step-000004"), load_model(checkpoint)
    image = torch.rand(1, 1, 64, 64)
    assert not torch.equal(model(image).decoder.class_logits, original(image).decoder.class_logits)


def test_another_model_is_refused(one_rank: RankPool, tmp_path: Path) -> None:
    one_rank(fit, micro_run(tmp_path / "wide", steps=1, **FIXED, **{"model.vit.dim": 64}))
    checkpoint = tmp_path / "wide" / "checkpoints" / "step-000001"
    (message,) = one_rank(loading, tmp_path / "fresh", [checkpoint])[0]
    assert "does not fit this run" in str(message)
    assert "backbone" in str(message)


def test_everything_is_json_or_safetensors(run_copy: Path) -> None:
    checkpoint = run_copy / "checkpoints" / "step-000004"
    for path in checkpoint.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            assert path.suffix == ".safetensors"
            assert load_file(path)


def test_another_format_is_refused(one_rank: RankPool, run_copy: Path) -> None:
    state = run_copy / "checkpoints" / "step-000004" / "state.json"
    content = json.loads(state.read_text(encoding="utf-8"))
    del content["format"]
    state.write_text(json.dumps(content), encoding="utf-8")
    (message,) = one_rank(refusal, micro_run(run_copy, **FIXED), str(state.parent))
    assert "format 1" in message
    assert "start a new run" in message


def test_weights_load_without_ranks(run_copy: Path) -> None:
    """Experts of two ranks are joined on disk, in the layout of the plain model."""
    checkpoint = run_copy / "checkpoints" / "step-000004"
    model = load_model(checkpoint)
    assert model.backbone.blocks[0].mlp.experts.w1.shape[0] == 6
    assert model.predict(torch.rand(1, 1, 40, 50)).shape == (1, 40, 50)


def test_what_a_checkpoint_says_of_itself(run_copy: Path) -> None:
    checkpoint = run_copy / "checkpoints" / "step-000004"
    state = read_state(checkpoint)
    says = {key: state[key] for key in ("format", "step", "adam_step", "ranks", "ep_size", "zero_stage")}
    assert says == {"format": 4, "step": 4, "adam_step": 4, "ranks": 2, "ep_size": 2, "zero_stage": 1}
    assert state["run"]["preset"] == "crossearth_sar_tiny"
    files = {path.name for path in checkpoint.iterdir()} - {"state.json"}
    assert set(state["sha256"]) == files == {WEIGHTS, "config.json", FIRST, LAST}
    sizes = [(checkpoint / name).stat().st_size for name in (FIRST, LAST)]
    assert max(sizes) < 1.2 * min(sizes), "ranks write equally much"
    with pytest.raises(InputError, match=r"no checkpoint at [\s\S]*--resume"):
        read_state(run_copy / "checkpoints" / "step-000003")


def validated(config: RunConfig, scores: list[float]) -> list[str]:
    """The checkpoints of a run whose validations give these mIoU; this one's word against the metric."""
    trainer = begin(config)
    validate = trainer._validate

    def scored() -> Any:
        validate()
        miou = scores[trainer.step - 1]
        return (
            {"step": trainer.step, "miou": miou}
            if miou > (trainer.best or {"miou": -1})["miou"]
            else trainer.best
        )

    trainer._validate = scored
    trainer.fit()
    return [path.name for path in list_checkpoints(trainer.checkpoints)]


def test_the_best_is_kept_beside_the_newest(one_rank: RankPool, tmp_path: Path) -> None:
    often = {"steps": 5, "validate_every": 1, "save_every": 5, "keep_checkpoints": 1}
    config = micro_run(tmp_path / "run", **often)
    assert one_rank(validated, config, [0.1, 0.5, 0.4, 0.3, 0.2]) == [["step-000002", "step-000005"]]
    state = read_state(tmp_path / "run" / "checkpoints" / "step-000005")
    assert state["best"] == {"step": 2, "miou": 0.5}


def test_the_newest_are_kept_and_a_run_that_went_back_drops_its_old_future(
    one_rank: RankPool, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    config = micro_run(tmp_path / "run", steps=4, save_every=1, keep_checkpoints=3)
    one_rank(fit, config)
    assert [path.name for path in list_checkpoints(folder)] == ["step-000002", "step-000003", "step-000004"]
    (again,) = one_rank(
        fit,
        micro_run(tmp_path / "run", steps=3, save_every=1, keep_checkpoints=3),
        str(folder / "step-000002"),
    )
    assert again["first"] == 2
    assert [path.name for path in list_checkpoints(folder)] == ["step-000002", "step-000003"]
    assert [row["step"] for row in read_csv(tmp_path / "run" / "train.csv")] == ["0", "1", "2"]


@contextlib.contextmanager
def killed_before_renaming() -> Iterator[None]:
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == ".writing-step-000004":
            raise KeyboardInterrupt
        return rename(self, target)

    Path.rename = killed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Path.rename = rename  # type: ignore[method-assign]


def fit_and_die(config: RunConfig) -> bool:
    with killed_before_renaming():
        try:
            fit(config)
        except KeyboardInterrupt:
            return True
    return False


def test_a_kill_while_saving_leaves_the_one_before(one_rank: RankPool, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    config = micro_run(tmp_path / "run", save_every=2, keep_checkpoints=9)
    assert one_rank(fit_and_die, config) == [True]
    assert [path.name for path in list_checkpoints(folder)] == ["step-000002"]
    assert (folder / ".writing-step-000004" / "state.json").is_file(), "it was all but done"
    (again,) = one_rank(fit, config, "auto")
    assert again["first"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004", "step-000006"]


class FullDisk:
    """Files below a folder cannot grow beyond some bytes, as on a full disk."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __enter__(self) -> None:
        self.save_file = saving.save_file

        def failing(tensors: Any, path: Path) -> None:
            if self.part in str(path):
                path.write_bytes(b"half of i")
                raise OSError(errno.ENOSPC, "No space left on device")
            self.save_file(tensors, path)

        saving.save_file = failing

    def __exit__(self, *reason: object) -> None:
        saving.save_file = self.save_file


def fit_on_a_full_disk(config: RunConfig, part: str) -> str:
    with FullDisk(part):
        try:
            fit(config)
        except SaveError as error:
            return str(error)
    return "saved"


def test_a_full_disk_loses_nothing(two_ranks: RankPool, tmp_path: Path) -> None:
    """A rank cannot write its part of step 4: the run goes on; it fails in words when the last save does."""
    output, often = tmp_path / "run", {"steps": 6, "save_every": 2, "keep_checkpoints": 1}
    part = "step-000004/optimizer-00002"
    assert two_ranks(fit_on_a_full_disk, micro_run(output, **often), part) == ["saved"] * 2
    names = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert names == ["step-000006"], "neither a half nor a lost one"
    shutil.rmtree(output)
    for said in two_ranks(fit_on_a_full_disk, micro_run(output, **often), "step-000006/optimizer-00002"):
        assert "step-000006 could not be written" in said
        assert "No space left on device" in said
        assert "--resume auto goes on from step-000004" in said
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000004"]
    assert [again["first"] for again in two_ranks(fit, micro_run(output, **often), "auto")] == [4, 4]


def fit_and_listen(config: RunConfig, part: str) -> tuple[str, int]:
    trainer = begin(config)
    with FullDisk(part):
        try:
            trainer.fit()
        except SaveError as error:
            return str(error), trainer.step
    return "saved", trainer.step


def test_three_failed_saves_in_a_row_end_the_run(one_rank: RankPool, tmp_path: Path) -> None:
    config = micro_run(tmp_path / "run", steps=5, save_every=1)
    ((said, step),) = one_rank(fit_and_listen, config, "step-00000")
    assert step == 3
    assert "step-000003 could not be written" in said
    assert "3 failed in a row" in said


def test_auto_without_a_checkpoint_starts_anew(one_rank: RankPool, tmp_path: Path) -> None:
    (found,) = one_rank(fit, micro_run(tmp_path / "run", steps=1), "auto")
    assert found["first"] == 0
