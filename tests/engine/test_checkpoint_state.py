"""state.json vouches for itself: whatever bit or field of it changes, the checkpoint is called damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_save_kills import run_of

from crossearth_sar.engine.checkpoint_files import list_checkpoints, read_state
from crossearth_sar.engine.checkpoint_state import STATE_FILE, sealed
from crossearth_sar.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of the last two saves."""
    output = tmp_path_factory.mktemp("state") / "run"
    run = run_of(output)
    run.fit()
    run.close()
    return output


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    (found,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    return found


def test_a_flipped_bit_anywhere_is_noticed(checkpoint: Path) -> None:
    path = checkpoint / STATE_FILE
    content = path.read_bytes()
    assert read_state(checkpoint)["step"] == 6
    taken = []
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read_state(checkpoint)
        except InputError:
            continue
        taken.append(content[max(0, position - 20) : position + 20])
    assert not taken


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1), ("step", "6"), ("step", 6.0), ("step", True), ("step", 5), ("adam_step", None),
        ("best", 3), ("best", {}), ("best", {"step": "x"}), ("run", []), ("sha256", None),
        ("sha256", {"../secret": "0"}), ("sha256", {"model.safetensors": 0}),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_named_even_under_a_right_hash(
    checkpoint: Path, key: str, value: Any
) -> None:
    state = read_state(checkpoint)
    (checkpoint / STATE_FILE).write_text(sealed({**state, key: value}), encoding="utf-8")
    with pytest.raises(InputError, match=rf"(?s)is damaged.*{STATE_FILE}: .*(?:{key}|of step)"):
        read_state(checkpoint)


def test_a_checkpoint_may_be_copied_under_another_name(checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(checkpoint, tmp_path / "the best so far")
    assert read_state(elsewhere)["step"] == 6
    renamed = checkpoint.rename(checkpoint.with_name("step-000007"))
    with pytest.raises(InputError, match="of step 6, in a folder called step-000007"):
        read_state(renamed)


def test_states_of_older_formats_are_read_without_a_hash(checkpoint: Path) -> None:
    state = read_state(checkpoint)
    (checkpoint / STATE_FILE).write_text(json.dumps({**state, "format": 3}), encoding="utf-8")
    assert read_state(checkpoint)["step"] == 6


def test_a_checkpoint_without_its_state_is_told(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / STATE_FILE).unlink()
    run = run_of(checkpoint.parents[1], "auto")
    run.close()
    assert f"note: {checkpoint} has no {STATE_FILE}" in capsys.readouterr().err


def test_files_that_are_not_listed_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "optimizer-00009-of-00009.safetensors").write_bytes(b"not safetensors")
    run = run_of(checkpoint.parents[1], "auto")
    run.close()
    assert run.step == 6
