"""Commands on a full disk and killed at their writes, a few of each: tests/faults.py tries them all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from faults import events_of, full_disk, kill, sizes_of, trial
from ranks import slow
from small_commands import COMMANDS, lay_out
from torch import Tensor

from crossearth_sar.engine import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    lay_out(folder)
    return folder


def test_a_kill_within_a_save_of_what_a_self_supervised_run_keeps(place: Path) -> None:
    """The queue and the key network, half written: the run goes on from the checkpoint before."""

    def make(output: Path) -> Callable[[], None]:
        def fault() -> None:
            write, calls = checkpoint.save_file, list[str]()

            def half(tensors: Mapping[str, Tensor], path: Path) -> None:
                calls.append(path.name)
                write(tensors, path)
                if calls.count("objective.safetensors") == 2:
                    os.truncate(path, path.stat().st_size // 2)
                    assert (output / "checkpoints" / "step-000002").is_dir()
                    os.kill(os.getpid(), signal.SIGKILL)

            checkpoint.save_file = half

        return fault

    found = trial("selfsup", place, "killed in the second save", make)
    assert found.status == -signal.SIGKILL, found.words
    assert not found.wrong, found.wrong


@pytest.mark.parametrize(("command", "event"), [("export", 6), ("label", 9)])
def test_a_kill_leaves_nothing_that_stays(command: str, event: int, place: Path) -> None:
    found = kill(command, place, event)
    assert found.status == -signal.SIGKILL
    assert not found.wrong, found.wrong


@pytest.mark.parametrize(("command", "size"), [("export", 0), ("export", 3000), ("label", 0), ("label", 5)])
def test_a_full_disk_is_said_and_leaves_nothing(command: str, size: int, place: Path) -> None:
    found = full_disk(command, place, size)
    assert found.status in (1, 2), found.words  # 2: not even the folder's lock
    assert "cannot be written" in found.words
    assert not found.wrong, found.wrong


@slow
@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(command: str, place: Path) -> None:
    """Kills and full disks spread over its run."""
    trials = [full_disk(command, place, size) for size in sizes_of(command, place)[::3]]
    trials += [kill(command, place, event) for event in range(1, events_of(command, place) + 1, 9)]
    assert not [(one.fault, one.wrong) for one in trials if one.wrong]
