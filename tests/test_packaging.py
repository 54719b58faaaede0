"""What is installed is the whole package: a wheel of this checkout, imported from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

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
