"""Checkpoint folders: which count, how one takes another's place, what goes and what a kill leaves."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from ranks import micro_run

from crossearth_sar.engine import checkpoint_files as files
from crossearth_sar.engine.checkpoint_files import list_checkpoints
from crossearth_sar.engine.resume import find_checkpoint


def test_only_complete_folders_count(tmp_path: Path) -> None:
    strangers = ("step-000030.bak", "step-000031 (copy)", "step-31", "step-0000032", "step-", "step-x", "old")
    counting = ("step-000020", "step-000003", "step-1000000", "step-999999")
    for name in (*counting, ".writing-step-000021", *strangers):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "step-000030").mkdir()
    (tmp_path / "step-000040").touch()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-000003", "step-000020", "step-999999", "step-1000000"]
    assert list_checkpoints(tmp_path / "nowhere") == []
    files.tidy_up(tmp_path, tmp_path / "step-999999", 1, None)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step-999999", "step-000030", "step-000040", *strangers}, "strangers stay as they are"


def test_what_cannot_be_removed_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The save itself has succeeded by then."""
    for step in (1, 2):
        complete(tmp_path / f"step-00000{step}")

    def refusing(path: Path, **options: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(files.shutil, "rmtree", refusing)
    files.tidy_up(tmp_path, tmp_path / "step-000002", 1, None)
    assert "step-000002 is saved" in caplog.text
    assert "resource busy" in caplog.text
    assert list_checkpoints(tmp_path) == [tmp_path / "step-000002"]


def test_an_earlier_save_of_the_same_step_never_stands_half_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, temporary = tmp_path / "step-000002", tmp_path / ".writing-step-000002"
    complete(final)
    complete(temporary)
    (final / "old").touch()
    monkeypatch.setattr(files.shutil, "rmtree", lambda *a, **o: pytest.fail("removed in its place"))
    files.put_in_place(temporary, final)
    monkeypatch.undo()
    assert list_checkpoints(tmp_path) == [final]
    assert not (final / "old").exists()
    files.tidy_up(tmp_path, final, 1, None)
    assert list(tmp_path.iterdir()) == [final]


def complete(folder: Path) -> None:
    folder.mkdir()
    (folder / "state.json").write_text("{}")


def test_going_back_names_what_the_next_save_removes(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        complete(tmp_path / "checkpoints" / f"step-00000{step}")
    said: list[str] = []
    config = micro_run(tmp_path)
    find_checkpoint(config, str(tmp_path / "checkpoints" / "step-000003"), said.append)
    assert said == []
    find_checkpoint(config, str(tmp_path / "checkpoints" / "step-000001"), said.append)
    assert "step-000002, step-000003 are of later steps" in said[0]


def test_a_kill_between_two_renames_gives_the_old_checkpoint_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was to replace it has not got its name: the old one is all there is of that step."""
    final, temporary = tmp_path / "step-000002", tmp_path / ".writing-step-000002"
    complete(final)
    complete(temporary)
    (final / "old").touch()
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path == temporary:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        files.put_in_place(temporary, final)
    monkeypatch.undo()
    assert list_checkpoints(tmp_path) == []
    files.restore_interrupted(tmp_path)
    assert list_checkpoints(tmp_path) == [final]
    assert (final / "old").exists()


def test_one_whose_removal_was_interrupted_stays_removed(tmp_path: Path) -> None:
    complete(tmp_path / ".writing-over-step-000002")  # of it, this file may be all that is left
    files.restore_interrupted(tmp_path)
    assert list_checkpoints(tmp_path) == []
