"""The run's folder: seen by all ranks, and one job's at a time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from ranks import shared_pool

from crossearth_sar.engine import output_folder
from crossearth_sar.engine.distributed import Ranks, start_ranks
from crossearth_sar.errors import InputError


def claims(folders: list[Path]) -> list[str]:
    """What claiming says on this rank: first the folder that is rank's own, then that of rank 0."""
    output_folder.WAIT_FOR_TOKEN_S = 0.3
    ranks, said = start_ranks(), []
    for folder in (folders[ranks.rank], folders[0]):
        try:
            output_folder.claim(folder, ranks)
            said.append("")
        except InputError as error:
            said.append(str(error))
    return said


def test_a_folder_that_a_rank_does_not_see_is_refused_at_the_start(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    folders = [tmp_path / "node0" / "run", tmp_path / "node1" / "run"]
    folders[1].mkdir(parents=True)
    first, second = shared_pool(2)(claims, folders)
    assert first == second
    apart, together = first
    assert "rank 1 does not see rank 0's files" in apart
    assert str(folders[1]) in apart
    assert "--set output=" in apart
    assert together == ""
    assert [path.name for path in folders[0].iterdir()] == [output_folder.LOCK_FILE]


def test_a_second_job_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """The first ends as in a kill; its loader's worker, a fork, lives on for a moment."""
    reading, writing = os.pipe()
    first = os.fork()
    if not first:
        try:
            output_folder._take(tmp_path)
            worker = os.fork()
            os.write(writing, str(worker or "").encode())
            time.sleep(30)
        finally:
            os._exit(1)
    worker = int(os.read(reading, 20))
    with pytest.raises(InputError, match=r"is in use[\s\S]*--set output="):
        output_folder._take(tmp_path)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    output_folder._take(tmp_path)
    os.kill(worker, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(output_folder, "decided_by_main", lambda decide, ranks: decide())
    with pytest.raises(InputError, match="cannot be written"):
        output_folder.claim(tmp_path / "file" / "run", Ranks(0, 1, torch.device("cpu")))
