"""What is installed is the whole package: a wheel of this checkout, imported from elsewhere."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
from pybind11 import setup_helpers

ROOT = Path(__file__).resolve().parents[1]


def build_wheel(folder: Path, choice: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(ROOT)],
        check=False, capture_output=True, text=True, env={**os.environ, "CROSSEARTH_BUILD": choice},
    )  # fmt: skip


def test_an_unknown_build_choice_is_named() -> None:
    done = build_wheel(ROOT, "fast")
    assert done.returncode != 0
    assert "CROSSEARTH_BUILD=fast: expected auto, cpu, cuda or none" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo \"nvcc fatal   : Unsupported gpu architecture 'compute_90'\" >&2; exit 1", "compute_90"),
        ("exit 0", "names no folder with libcudart_static.a"),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_an_nvcc_that_cannot_is_an_error_only_where_cuda_was_asked_for(
    choice: str,
    script: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CROSSEARTH_BUILD", choice)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    made = runpy.run_path("setup.py")
    built: list[str] = []
    monkeypatch.setattr(setup_helpers.build_ext, "build_extension", lambda _, ext: built.append(ext.name))
    command, extension = made["BuildExtension"](setuptools.Distribution()), made["extension"]
    command.build_temp = str(tmp_path)
    if choice == "cuda":
        with pytest.raises(SystemExit, match=f"CROSSEARTH_BUILD=cuda: .*{reason}.*CROSSEARTH_BUILD=cpu"):
            command.build_extension(extension)
        assert not built
    else:
        command.build_extension(extension)
        assert built == ["crossearth_sar._descriptors"]
        assert not extension.extra_objects
        assert re.search(f"CPU half only: .*{reason}", capsys.readouterr().err)


def test_a_wheel_holds_kernels_and_typing_mark_and_works_from_anywhere(tmp_path: Path) -> None:
    done = build_wheel(tmp_path, "cpu")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("crossearth_sar-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "crossearth_sar").rglob("*.py")}
    modules |= {f"crossearth_sar/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert modules <= names
    assert "crossearth_sar/py.typed" in names
    assert any(name.startswith("crossearth_sar/_descriptors.") for name in names)
    assert not any(name.startswith(("kernels/", "tests/", "train/")) for name in names)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import crossearth_sar, crossearth_sar._descriptors, crossearth_sar.kernels.probe as probe\n"
        f"assert crossearth_sar.__file__.startswith({str(tmp_path)!r}), crossearth_sar.__file__\n"
        f"assert probe.__file__.startswith({str(tmp_path)!r}), probe.__file__\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd=tmp_path)
