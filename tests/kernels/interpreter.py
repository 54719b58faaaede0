"""Runs a test file's kernel cases in one subprocess under Triton's interpreter.

TRITON_INTERPRET must be set before a kernel is imported, and would change every other test of the process: so
a test file keeps its cases as plain functions named `interpreted_*`, and one test hands the file over:

    def interpreted_one_token() -> None:
        assert ...

    def test_in_the_interpreter() -> None:
        run_interpreted(__file__)

One subprocess pays the start-up for all cases. In it, uninitialised floating memory holds NaN, as
tests/conftest.py has it. bf16 is wrong in the interpreter: fp32 and fp16 only.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_interpreted(file: str, prefix: str = "interpreted_", *, timeout_s: float = 580) -> str:
    """Runs every function of `file` whose name begins with `prefix`; returns what they printed.

    Raises:
        AssertionError: with the traceback of every case that failed, or if there was none.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("CROSSEARTH_AUTOTUNE", None)
    environment.pop("CROSSEARTH_TILE_TABLE", None)
    done = subprocess.run(
        [sys.executable, __file__, file, prefix], cwd=ROOT, env=environment, check=False,
        capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def poison_empty(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Makes uninitialised floating memory NaN on every device; `replace` may be a monkeypatch's setattr."""
    import torch

    for name in ("empty", "empty_like"):
        original = getattr(torch, name)

        def poisoned(*args: Any, _original: Any = original, **kwargs: Any) -> torch.Tensor:
            tensor = _original(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        replace(torch, name, poisoned)


def main() -> int:
    """In the subprocess: 0 if every case passed."""
    import torch

    file, prefix = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    poison_empty()
    sys.path[:0] = [str(file.parent), str(ROOT)]  # bench/ is a namespace package of the checkout
    module = importlib.import_module(file.stem)
    cases = {name: case for name, case in vars(module).items() if name.startswith(prefix)}
    failed = 0
    for name, case in cases.items():
        torch.manual_seed(0)
        started = time.process_time()
        try:
            case()
        except Exception:  # noqa: BLE001 - every failure is reported, and counted
            failed += 1
            print(f"--- {name}\n{traceback.format_exc()}")
        print(f"{name}: {time.process_time() - started:.1f} s of CPU", flush=True)
    print(f"{len(cases)} cases, {failed} failed")
    return 0 if cases and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
