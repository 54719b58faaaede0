"""Every command of README and docs, as printed: run on small trees, with settings appended to make it short.

Placeholders of the documents (/data, FOLDER, BACKBONE, runs/…) are replaced by what document_places.py makes;
no other word is. A command that needs GPUs, several nodes or a scheduler is taken as far as its settings:
its recipe is read and its config built. What is neither run nor built is a target of make: CI itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from document_steps import SHORT, SIMULATED, TABLE, Built, Step
from documents import ROOT, Block, Command, blocks, commands
from ranks import slow

from crossearth_sar.cli.main import main

SHOWN = [(block, commands(block)) for block in blocks("") if commands(block)]


def test_every_command_is_claimed_and_no_other() -> None:
    printed = {command.printed: str(block) for block, found in SHOWN for command in found}
    unclaimed = {f"{where}: {command}" for command, where in printed.items() if command not in TABLE}
    assert not unclaimed, f"say in TABLE how these are run: {unclaimed}"
    assert not set(TABLE) - set(printed), f"no document prints {set(TABLE) - set(printed)}"
    assert len(printed) > 25


def test_commands_are_whole() -> None:
    for block, found in SHOWN:
        for command in found:
            assert "…" not in command.printed, f"{block}: nobody can run {command.printed}"


def test_blocks_are_read_as_a_shell_reads_them() -> None:
    text = (
        "for row in A B; do\n  python x --to $row \\\n     'a b'   # why\ndone\nother words\nmake test  # all"
    )
    first, second = commands(Block("x.md", 1, "", text))
    assert first == Command(
        "python x --to $row 'a b'", (("python", "x", "--to", "A", "a b"), ("python", "x", "--to", "B", "a b"))
    )
    assert second == Command("make test", (("make", "test"),))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run, with its checkpoint of step 1."""
    place = tmp_path_factory.mktemp("trained")
    words = ["-m", "crossearth_sar", "train", "--set", *SHORT.split(), *SIMULATED.split(), "output=runs/cpt"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place / "runs" / "cpt"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # commands that take a module put the folder there
    return tmp_path


@pytest.mark.parametrize(("block", "found"), SHOWN, ids=[str(block) for block, _ in SHOWN])
def test_the_commands_of_a_block(
    block: Block,
    found: list[Command],
    place: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in found:
        how = TABLE[command.printed]
        if isinstance(how, Built):
            build(how, command, capsys)
        elif isinstance(how, Step) and not how.is_slow:
            if any("checkpoints" in word or word == "runs/cpt-l" for word in command.words[0]):
                shutil.copytree(
                    request.getfixturevalue("trained"), place / "runs" / "cpt", dirs_exist_ok=True
                )
            carry_out(how, command, place, capsys)


@slow
@pytest.mark.parametrize("printed", [p for p, how in TABLE.items() if isinstance(how, Step) and how.is_slow])
def test_a_slow_command(printed: str, place: Path) -> None:
    how = TABLE[printed]
    assert isinstance(how, Step)
    (command,) = {c for _, found in SHOWN for c in found if c.printed == printed}
    (place / "train").symlink_to(ROOT / "train")
    if how.make is not None:
        how.make(place)
    words = [
        str(Path(sys.executable).with_name(command.words[0][0])),
        *command.words[0][1:],
        *how.add.split(),
    ]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    check_left(how, place)


def carry_out(how: Step, command: Command, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the command in this process, once for each turn of its loop."""
    if how.make is not None:
        how.make(place)
    for words in command.words:
        assert words[0] == "crossearth-sar", command.printed
        given = [replaced(word, how.replace) for word in words[1:]] + shlex.split(how.add)
        try:
            status = main(given)
        except SystemExit as end:  # --print_config and the like
            status = int(end.code or 0)
        said = capsys.readouterr()
        assert status == 0, f"{shlex.join(given)}\n{said.out}\n{said.err}"
    check_left(how, place)


def check_left(how: Step, place: Path) -> None:
    for path in how.leaves:
        found = list(place.glob(path))
        assert found, f"{path} is not there"
        assert all(file.stat().st_size > 0 for file in found)


def build(how: Built, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """The settings of a run that cannot run here, to the end."""
    (words,) = command.words
    script = next(i for i, word in enumerate(words) if re.fullmatch(r"train/\w+\.py", word))
    with pytest.raises(SystemExit) as end:
        main([how.command, *words[script + 1 :], "--print_config"])
    said = capsys.readouterr()
    assert not end.value.code, said.err
    assert "steps:" in said.out


def replaced(word: str, placeholders: dict[str, str]) -> str:
    for name, there in placeholders.items():
        word = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", there, word)
    return word


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
