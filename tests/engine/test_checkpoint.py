"""Checkpoints: a resumed run is the uninterrupted one, and what is damaged, torn or foreign is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankPool, micro_run, shared_pool

from crossearth_sar.engine.checkpoint import list_checkpoints, load_checkpoint, read_state
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import first_error, start_ranks
from crossearth_sar.engine.log import read_csv
from crossearth_sar.engine.loop import Trainer
from crossearth_sar.errors import InputError
from crossearth_sar.model import load_model
from crossearth_sar.moe.expert_parallel import full_state_dict


@pytest.fixture
def two_ranks() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(2)


@pytest.fixture
def one_rank() -> RankPool:
    pytest.importorskip("deepspeed")
    return shared_pool(1)


def begin(config: RunConfig, resume: str | None = None) -> Trainer:
    ranks = start_ranks()
    torch.set_num_threads(1)
    trainer = Trainer(config, ranks)
    trainer.start(resume)
    return trainer


def fit(config: RunConfig, resume: str | None = None) -> dict[str, Any]:
    """The weights at the end, and the step this began with."""
    trainer = begin(config, resume)
    first = trainer.step
    trainer.fit()
    weights = full_state_dict(trainer.engine.module)
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
        (2, {"parallel.zero_stage": 2, "parallel.ep_size": 1, "accumulation": 2}),
    ],
    ids=["1 rank", "1 rank, bf16", "2 ranks", "2 ranks, split experts", "2 ranks, ZeRO 2, accumulation"],
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on two ranks with split experts, with checkpoints of steps 2 and 4."""
    pytest.importorskip("deepspeed")
    output = tmp_path_factory.mktemp("finished") / "run"
    shared_pool(2)(fit, micro_run(output, steps=4, save_every=2, keep_checkpoints=3))
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
DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte of the weights": lambda folder: flip(folder / WEIGHTS, -1000),
    "the weights' header": lambda folder: flip(folder / WEIGHTS, 20),
    "weights cut": lambda folder: cut(folder / WEIGHTS, 5000),
    "weights missing": lambda folder: (folder / WEIGHTS).unlink(),
    "a byte of the first rank's optimizer": lambda folder: flip(folder / "optimizer-rank0.pt", 100_000),
    "the last rank's optimizer cut": lambda folder: cut(folder / "optimizer-rank1.pt", 50_000),
    "the last rank's optimizer empty": lambda folder: cut(folder / "optimizer-rank1.pt", 0),
    "the last rank's optimizer missing": lambda folder: (folder / "optimizer-rank1.pt").unlink(),
    "the state cut": lambda folder: cut(folder / "state.json", 100),
}


def loading(output: Path, checkpoints: list[Path], changed_layout: dict[str, Any]) -> list[str | None]:
    """What loading each of the checkpoints into a fresh run of the same kind says, on all ranks."""
    trainer = begin(micro_run(output))
    layout = {**trainer._layout(), **changed_layout}
    said = []
    for checkpoint in checkpoints:
        error = None
        try:
            load_checkpoint(checkpoint, trainer.engine, trainer.ranks, layout)
        except InputError as caught:
            error = caught
        said.append(first_error(error))
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
    first, second = two_ranks(loading, tmp_path / "fresh", [good, *damaged], {})
    assert first == second
    assert first[0] is None, "an intact one loads"
    for name, path, message in zip(DAMAGE, damaged, first[1:], strict=True):
        assert message is not None, name
        assert str(path) in message, name
        if name != "the state cut":
            assert "is damaged" in message, name
            assert f"--resume {path.parent / 'step-000002'}" in message, name


def test_another_layout_is_refused_in_words(two_ranks: RankPool, finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-000002"
    for layout in ({"ep_size": 1}, {"zero_stage": 2}):
        (message,) = two_ranks(loading, tmp_path / "fresh", [checkpoint], layout)[0]
        assert message is not None
        assert "another layout of ranks" in message
        assert "'ep_size': 2, 'zero_stage': 1, 'ranks': 2" in message
        assert "load_model" in message


def test_another_number_of_ranks_is_refused(one_rank: RankPool, finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-000002"
    (message,) = one_rank(loading, tmp_path / "fresh", [checkpoint], {"ep_size": 2})[0]
    assert "'ranks': 2" in str(message)
    assert "'ranks': 1" in str(message)


def test_another_model_is_refused(one_rank: RankPool, tmp_path: Path) -> None:
    one_rank(fit, micro_run(tmp_path / "wide", steps=1, **{"model.vit.dim": 64}))
    checkpoint = tmp_path / "wide" / "checkpoints" / "step-000001"
    (message,) = one_rank(loading, tmp_path / "fresh", [checkpoint], {})[0]
    assert "does not fit this run" in str(message)
    assert "backbone" in str(message)


class Trap:
    """Pickled, it would make a folder as soon as it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_nothing_is_unpickled(one_rank: RankPool, tmp_path: Path) -> None:
    one_rank(fit, micro_run(tmp_path / "run", steps=1))
    checkpoint, trap = tmp_path / "run" / "checkpoints" / "step-000001", tmp_path / "sprung"
    file = checkpoint / "optimizer-rank0.pt"
    torch.save({**torch.load(file, weights_only=True), "extra": Trap(trap)}, file)
    state = json.loads((checkpoint / "state.json").read_text())
    state["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(state))
    (message,) = one_rank(loading, tmp_path / "fresh", [checkpoint], {})[0]
    assert message is not None
    assert not trap.exists()


def test_weights_load_without_ranks(run_copy: Path) -> None:
    """Experts of two ranks are joined on disk, in the layout of the plain model."""
    checkpoint = run_copy / "checkpoints" / "step-000004"
    model = load_model(checkpoint)
    assert model.backbone.blocks[0].mlp.experts.w1.shape[0] == 6
    assert model.predict(torch.rand(1, 1, 40, 50)).shape == (1, 40, 50)


def test_what_a_checkpoint_says_of_itself(run_copy: Path) -> None:
    checkpoint = run_copy / "checkpoints" / "step-000004"
    state = read_state(checkpoint)
    assert {key: state[key] for key in ("step", "ranks", "ep_size", "zero_stage")} == {
        "step": 4,
        "ranks": 2,
        "ep_size": 2,
        "zero_stage": 1,
    }
    assert state["run"]["preset"] == "crossearth_sar_tiny"
    files = {path.name for path in checkpoint.iterdir()} - {"state.json", "config.json"}
    assert set(state["sha256"]) == files == {WEIGHTS, "optimizer-rank0.pt", "optimizer-rank1.pt"}
    with pytest.raises(InputError, match=r"no checkpoint at [\s\S]*--resume"):
        read_state(run_copy / "checkpoints" / "step-000003")


def test_only_complete_folders_count(tmp_path: Path) -> None:
    for name in ("step-000020", "step-000003", "step-1000000", "step-999999", ".writing-step-000021"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "step-000030").mkdir()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-000003", "step-000020", "step-999999", "step-1000000"]
    assert list_checkpoints(tmp_path / "nowhere") == []


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


def test_auto_without_a_checkpoint_starts_anew(one_rank: RankPool, tmp_path: Path) -> None:
    (found,) = one_rank(fit, micro_run(tmp_path / "run", steps=1), "auto")
    assert found["first"] == 0
