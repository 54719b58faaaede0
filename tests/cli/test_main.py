"""One word for each command, the same as console script, as `python -m` and as a file of train/."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from crossearth_sar.cli import info
from crossearth_sar.cli.main import COMMANDS, main
from crossearth_sar.cli.process import find_own_tools
from crossearth_sar.version import __version__

ROOT = Path(__file__).resolve().parents[2]
SAME = ("finetune", "evaluate", "probe", "predict", "label", "agreement")
FILES = {"cpt": "train", **{name: name for name in SAME}}
"""train/FILE.py -> the command it is."""


def said_by_help(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    return capsys.readouterr().out


def options_of(help_text: str) -> list[str]:
    return re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_text, flags=re.MULTILINE)


def test_help_without_a_command_names_all_and_needs_no_activation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\b", said, flags=re.MULTILINE) for name in COMMANDS)
    assert "No environment need be activated" in said
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_takes_plugins(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by_help(name, capsys)
    assert f"usage: crossearth-sar {name} " in said  # behind what DeepSpeed prints when it is imported
    assert "--plugin" in options_of(said)


@pytest.mark.parametrize("file", FILES)
def test_files_of_train_take_the_same_options(
    file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = options_of(said_by_help(FILES[file], capsys))
    monkeypatch.setattr(sys, "argv", [f"{file}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "train" / f"{file}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert options_of(said) == expected
    assert f"usage: {file}.py " in said


def test_every_file_of_train_is_a_command() -> None:
    assert {path.stem for path in (ROOT / "train").glob("*.py")} == set(FILES)


def test_python_m_without_a_command_says_what_is_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["crossearth_sar"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("crossearth_sar", run_name="__main__")
    assert capsys.readouterr().out.startswith(f"crossearth-sar {__version__}, Python ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"crossearth-sar {__version__}\n"


@pytest.mark.parametrize(
    ("word", "meant"), [("trian", "train"), ("finetun", "finetune"), ("pseudo-label", "label")]
)
def test_a_mistyped_command_names_the_nearest(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "--config", "x"]) == 2
    assert f"no command '{word}' (did you mean '{meant}'?)" in capsys.readouterr().err


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--verison", "info"])
    assert "unrecognized arguments: --verison" in capsys.readouterr().err


def test_a_plugin_is_imported_before_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(info, "report", info.report)  # put back at the end
    text = "from crossearth_sar.cli import info\ninfo.report = lambda: 'mine'\n"
    (tmp_path / "a_plugin_of_mine.py").write_text(text, encoding="utf-8")
    assert main(["info", "--plugin", "a_plugin_of_mine"]) == 0
    assert capsys.readouterr().out == "mine\n"


def test_a_plugin_that_is_not_there_is_wrong_input_and_one_that_breaks_shows_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["info", "--plugin", "no_plugin.at_all"]) == 2
    assert "no module 'no_plugin' for --plugin" in capsys.readouterr().err
    (tmp_path / "a_broken_plugin.py").write_text("import not_installed_anywhere\n", encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        main(["info", "--plugin", "a_broken_plugin"])


def test_tools_beside_the_interpreter_are_found_without_activating(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", "/somewhere")
    find_own_tools()
    find_own_tools()
    assert os.environ["PATH"] == os.pathsep.join([own, "/somewhere"])
