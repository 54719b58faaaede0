"""A log or a picture that cannot be written is a warning: the run goes on and ends with its model."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from test_changed_data import config_of, data  # noqa: F401 - the fixture

from crossearth_sar import load_model
from crossearth_sar.engine import run_log
from crossearth_sar.engine.distributed import Ranks
from crossearth_sar.engine.log import CsvLog, read_csv
from crossearth_sar.engine.make_run import make_run

BLOCKED = (
    "config.yaml", "train.csv", "validation.csv", "metrics.json", "report.md", "parameters.txt",
    "predictions-b.png",
)  # fmt: skip


def test_nothing_but_the_model_need_be_written(
    tmp_path: Path,
    data: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Folders stand where the files are to go, as what nobody can write over."""
    output = tmp_path / "run"
    for name in BLOCKED:
        (output / name / "in-the-way").mkdir(parents=True)
    (output / "tensorboard").write_text("a file where a folder is to be")
    run = make_run(config_of(output, data, pictures=1, steps=2), Ranks(0, 1, torch.device("cpu")))
    run.start()
    assert run.fit()
    metrics = run.finish()
    run.close()
    assert metrics["steps"] == 2
    assert load_model(output / "model").config.num_classes == 2
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000002"]
    told = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    for word in (*BLOCKED[:-1], "pictures of b", "TensorBoard"):
        assert any(word in line for line in told), word
    assert len(told) == len(BLOCKED) + 1, "each once"


def test_a_row_that_does_not_fit_leaves_the_rows_before_and_after_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CsvLog(tmp_path / "train.csv", resume_step=0)
    row = {"step": 0, "loss": 1.5}
    log.append(row)
    path_open = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, *how, **named: Full(path_open(path, *how, **named)))
        with pytest.raises(OSError, match="No space left"):
            log.append({**row, "step": 1})
    log.append({**row, "step": 2})
    assert [line["step"] for line in read_csv(tmp_path / "train.csv")] == ["0", "2"]
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 3


def test_tensorboard_that_fails_later_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    board = run_log.TensorBoard(tmp_path, resume_step=0)

    def full(*arguments: object) -> None:
        raise RuntimeError("the writing thread has ended: No space left on device")

    monkeypatch.setattr(board._writer, "add_scalar", full)
    for step in (3, 4):
        board.scalars("train", {"loss": 1.0}, step)
    board.close()
    assert caplog.text.count("is left out") == 1
    assert "step 3" in caplog.text
