"""Running a kernel needs no ahead-of-time machinery."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_launchers_do_not_import_what_compiles_them_ahead_of_time() -> None:
    names = sorted(path.stem for path in (ROOT / "kernels").glob("*.py"))
    assert {"grouped_forward", "grouped_dgrad", "grouped_wgrad", "routing"} <= set(names)
    program = (
        "import importlib, sys\n"
        "importlib.import_module('crossearth_sar.moe')\n"
        f"for name in {names}: importlib.import_module(f'crossearth_sar.kernels.{{name}}')\n"
        "print(*(m for m in sys.modules if m.split('.')[0] == 'bench' or 'ahead' in m.split('.')[-1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
