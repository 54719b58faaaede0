"""What a rank says when it fails, and what the others then say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from crossearth_sar.engine import failures
from crossearth_sar.engine.failures import Peer, explain, remove_old_words

LOST = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2")


def here(rank: int, pid: int) -> Peer:
    return Peer(rank, socket.gethostname(), pid)


def test_the_others_learn_the_reason(tmp_path: Path) -> None:
    peers = [here(rank, os.getpid()) for rank in range(3)]
    own = explain(KeyError("band"), tmp_path / "run", 1, peers, 7).words
    assert own == "rank 1 failed at step 7: KeyError: 'band'"
    assert "KeyError" in (tmp_path / "run" / "failure-rank1.txt").read_text(encoding="utf-8")
    heard = explain(LOST, tmp_path / "run", 0, peers, 7).words
    assert heard == "rank 0 lost its peers at step 7: rank 1 failed at step 7: KeyError: 'band'"
    assert not (tmp_path / "run" / "failure-rank0.txt").exists(), "an echo is no reason"
    remove_old_words(tmp_path / "run", "train")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    peers = [here(0, os.getpid()), here(1, process.pid)]
    process.kill()
    heard = explain(LOST, tmp_path, 0, peers, 3).words  # a zombie until it is waited for
    assert f"rank 1 (process {process.pid} on {socket.gethostname()}) is gone without a word" in heard
    process.wait()
    assert "rank 1" in explain(LOST, tmp_path, 0, peers, 3).words


def test_without_a_reason_the_connection_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "WAIT_FOR_WORDS_S", 0.3)
    started = time.monotonic()
    heard = explain(LOST, tmp_path, 0, [here(0, os.getpid()), Peer(1, "elsewhere", 1)], 3).words
    assert "Connection closed by peer" in heard
    assert time.monotonic() - started < 5


def test_an_error_of_ones_own_in_a_collective_call_is_told_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL's first line says nothing; the reason is the last."""
    monkeypatch.setattr(failures, "WAIT_FOR_WORDS_S", 0.1)
    error = dist.DistBackendError(
        "NCCL error in: NCCLUtils.hpp:317\nLast error:\nCuda failure 'out of memory'"
    )
    heard = explain(error, tmp_path, 0, [here(0, os.getpid())], 3).words
    assert "out of memory" in heard
    left = (tmp_path / "failure-rank0.txt").read_text(encoding="utf-8")
    assert left.startswith("rank 0 failed at step 3: DistBackendError: NCCL error")
    assert "out of memory" in left


def test_a_reason_that_cannot_be_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    own = explain(ValueError("x"), tmp_path / "file", 0, [], 1).words
    assert own.startswith("rank 0 failed at step 1: ValueError: x (and the reason could not be left")
