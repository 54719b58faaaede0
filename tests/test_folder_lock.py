"""Two processes on one folder: refused in words, or shared; and the name of whose it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from forks import another_process, in_a_child

from crossearth_sar import folder_lock
from crossearth_sar.errors import InputError
from crossearth_sar.folder_lock import LOCK_FILE, FolderLock
from crossearth_sar.whole import aside, one_writer

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks


def within_a_second() -> None:
    """Else the process ends by SIGALRM, which pytest's limit of time has a handler for."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(1)


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
def test_a_folder_in_use_is_refused_until_its_process_is_gone(
    first: bool, second: bool, tmp_path: Path
) -> None:
    with (
        another_process(tmp_path, "train", shared=first),
        pytest.raises(InputError, match=r"is in use[\s\S]*crossearth-sar train"),
    ):
        FolderLock(tmp_path, "train", shared=second)
    FolderLock(tmp_path, "train", shared=second).release()


def test_a_loaders_worker_that_lives_on_does_not_keep_the_folder(tmp_path: Path) -> None:
    """The process ends as in a kill; a fork of it is there for a moment still."""
    reading, writing = os.pipe()

    def job() -> None:
        FolderLock(tmp_path, "train")
        worker = os.fork()
        if not worker:
            signal.pause()
        os.write(writing, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(job) == -signal.SIGKILL
    worker = int(os.read(reading, 20))
    try:
        FolderLock(tmp_path, "train").release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_processes_of_a_command_that_shares_are_together_but_for_one_block(tmp_path: Path) -> None:
    def beside() -> None:
        folder_lock._held.clear()  # a fork knows what its parent holds, and holds nothing
        within_a_second()
        with FolderLock(tmp_path, "predict", shared=True) as lock, lock.alone():
            (tmp_path / "second").touch()

    with another_process(tmp_path, "predict", shared=True):
        own = FolderLock(tmp_path, "predict", shared=True)
        assert in_a_child(beside) == 0
        (tmp_path / "second").unlink()
        with own.alone():
            assert in_a_child(beside) == -signal.SIGALRM, "it waits for the block to end"
        assert not (tmp_path / "second").exists()
        own.release()


def test_a_folder_belongs_to_the_command_that_left_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    (tmp_path / LOCK_FILE).touch()  # as version 0.3 left it
    FolderLock(tmp_path, "train").release()
    assert (tmp_path / LOCK_FILE).read_text() == "train\n"
    with pytest.raises(InputError, match=r"another command[\s\S]*got: crossearth-sar train"):
        FolderLock(tmp_path, "evaluate")
    FolderLock(tmp_path, "train").release()


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    FolderLock(tmp_path / "new", "train").release()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    FolderLock(tmp_path / "old", "train").release()
    assert list((tmp_path / "old").iterdir()) == []
    with another_process(tmp_path / "shared", "predict", shared=True):
        FolderLock(tmp_path / "shared", "predict", shared=True).release()
        with pytest.raises(InputError, match="is in use"):  # the other's lock is still the one that counts
            FolderLock(tmp_path / "shared", "predict")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        FolderLock(tmp_path / "file" / "run", "train")


def test_one_writer_of_a_folder_waits_for_the_other(tmp_path: Path) -> None:
    def second() -> None:
        within_a_second()
        with one_writer(tmp_path):
            pass

    with one_writer(tmp_path):
        assert in_a_child(second) == -signal.SIGALRM
    assert in_a_child(second) == 0
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"

    def killed() -> None:
        with aside(target) as part:
            part.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(killed) == -signal.SIGKILL
    assert len(list(target.parent.iterdir())) == 1
    with aside(target.with_name("b.txt")) as part:
        part.touch()
        FolderLock(tmp_path, "predict", shared=True).release()
        assert len(list(target.parent.iterdir())) == 1, "that of a live process stays"
    assert [path.name for path in target.parent.iterdir()] == ["b.txt"]
