"""The run's log: continued without a seam, whatever byte a kill stopped at; TensorBoard only where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from crossearth_sar.engine.log import CsvLog, Row, TensorBoard, read_csv


def row(step: int) -> Row:
    return {"step": step, "loss": 20.125 + step, "images_per_second": 12.375}


def text(step: int) -> dict[str, str]:
    return {key: str(value) for key, value in row(step).items()}


def write(path: Path, steps: range) -> None:
    log = CsvLog(path, resume_step=0)
    for step in steps:
        log.append(row(step))


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", range(3))
    assert read_csv(tmp_path / "train.csv") == [text(step) for step in range(3)]


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    for steps in (range(5), range(2)):
        write(tmp_path / "train.csv", steps)
    assert read_csv(tmp_path / "train.csv") == [text(0), text(1)]


@pytest.mark.parametrize("resume_step", [1, 3, 5, 9])
def test_resume_drops_the_steps_that_are_repeated(tmp_path: Path, resume_step: int) -> None:
    path = tmp_path / "train.csv"
    write(path, range(5))
    log = CsvLog(path, resume_step=resume_step)
    kept = min(resume_step, 5)
    assert read_csv(path) == [text(step) for step in range(kept)]
    for step in range(kept, kept + 2):
        log.append(row(step))
    assert read_csv(path) == [text(step) for step in range(kept + 2)]
    assert path.read_text().count("step") == 1, "one header"
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]


def test_resume_with_nothing_left_or_no_file(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    write(path, range(4, 6))
    for resume_step in (2, 3):
        log = CsvLog(path, resume_step=resume_step)
        log.append(row(7))
        assert read_csv(path) == [text(7)]
        path.unlink()


def test_a_last_row_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    write(path, range(3))
    whole = path.read_bytes()
    start = whole.rstrip().rfind(b"\n") + 1
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        assert read_csv(path) == [text(0), text(1)], f"cut at byte {length}"
        log = CsvLog(path, resume_step=3)
        log.append(row(2))
        assert path.read_bytes() == whole, f"cut at byte {length}"


def test_a_header_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    write(path, range(1))
    whole = path.read_bytes()
    for length in range(whole.find(b"\n") + 1):
        path.write_bytes(whole[:length])
        assert read_csv(path) == []
        CsvLog(path, resume_step=1).append(row(0))
        assert path.read_bytes() == whole


def test_a_new_column_is_empty_in_the_rows_before(tmp_path: Path) -> None:
    """As when a run goes on on a device whose peak is known, and then on one where it is not."""
    path = tmp_path / "train.csv"
    write(path, range(3))
    log = CsvLog(path, resume_step=2)
    log.append({**row(2), "mfu": 0.5})
    log = CsvLog(path, resume_step=3)
    log.append(row(3))
    assert [r["mfu"] for r in read_csv(path)] == ["", "", "0.5", ""]
    assert [{k: v for k, v in r.items() if k != "mfu"} for r in read_csv(path)] == [text(s) for s in range(4)]
    assert path.read_text().count("step") == 1, "one header"
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]


def test_a_kill_while_dropping_rows_leaves_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.csv"
    write(path, range(4))
    before, append = path.read_bytes(), CsvLog.append

    def stop(self: CsvLog, row: Row) -> None:
        append(self, row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CsvLog, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            CsvLog(path, resume_step=3)
    assert path.read_bytes() == before
    CsvLog(path, resume_step=3)
    assert read_csv(path) == [text(step) for step in range(3)]


def test_without_tensorboard_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = TensorBoard(tmp_path / "board", resume_step=0)
    assert board.note is not None
    assert "pip install tensorboard" in board.note
    board.scalars("train", row(0), 0)
    board.close()
    assert not (tmp_path / "board").exists()


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, resume_step=0)
    for step in range(3):
        board.scalars("train", {**row(step), "note": "text"}, step)
    board.close()
    assert board.note is None
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/images_per_second", "train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(s, 20.125 + s) for s in range(3)]
