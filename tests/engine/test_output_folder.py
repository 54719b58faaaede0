"""The run's folder: seen by all ranks, and one job's at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import shared_pool

from crossearth_sar.engine import output_folder
from crossearth_sar.engine.distributed import Ranks, start_ranks
from crossearth_sar.errors import InputError
from crossearth_sar.folder_lock import LOCK_FILE


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
    assert [path.name for path in folders[0].iterdir()] == [LOCK_FILE]


def test_a_claimed_folder_is_free_again_once_released(tmp_path: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    held = output_folder.claim(tmp_path, ranks)
    with pytest.raises(InputError, match="is in use"):
        output_folder.claim(tmp_path, ranks)
    held.release()
    output_folder.claim(tmp_path, ranks).release()
