"""A command in a folder that a live process has, or that is another command's, is refused and touches
nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import another_process, start
from small_commands import COMMANDS, carry_out, lay_out

from crossearth_sar.evaluation.maps.files import is_whole
from crossearth_sar.folder_lock import LOCK_FILE, FolderLock

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks
OWNERS = [command for command in COMMANDS if command != "export"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-folder")
    lay_out(folder)
    return folder


@pytest.fixture
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def live_job(tmp_path: Path) -> Iterator[Path]:
    """The folder that another process trains into."""
    with another_process(tmp_path / "run", "train"):
        (tmp_path / "run" / "failure-rank0.txt").write_text("rank 0 failed")
        yield tmp_path / "run"


def left(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("_there")
def test_the_folder_of_a_live_job(live_job: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left(live_job)
    for command in OWNERS:
        resumed = ["--resume"] * (command in ("train", "finetune", "selfsup"))
        assert carry_out(command, place, live_job, *resumed) == 2, command
        assert "is in use" in capsys.readouterr().err, command
    assert left(live_job) == before


@pytest.mark.usefixtures("_there")
def test_the_folder_of_another_command(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner in ("train", "evaluate"):
        folder = tmp_path / owner
        with FolderLock(folder, owner):
            (folder / "metrics.json").write_text("{}")
        before = left(folder)
        for command in OWNERS:
            if command != owner:
                assert carry_out(command, place, folder) == 2, command
                said = capsys.readouterr().err
                assert f"the folder of another command\n  got: crossearth-sar {owner}\n" in said, command
        assert left(folder) == before


@pytest.mark.usefixtures("_there")
def test_two_processes_predict_into_one_folder(place: Path, tmp_path: Path) -> None:
    """At once and with the same settings: they share the work, and every map is whole."""
    folder = tmp_path / "maps"
    children = [start(lambda: sys.exit(carry_out("predict", place, folder))) for _ in range(2)]
    status = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(status) <= {0, 1}, "1: a map was being made by the other process"
    assert carry_out("predict", place, folder) == 0
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == {LOCK_FILE}
    for name in ("0.tif", "1.tif"):
        assert is_whole(folder / name, (64, 64))
