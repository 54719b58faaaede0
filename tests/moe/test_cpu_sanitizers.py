"""The experts in C++ under AddressSanitizer and UBSan, over random sizes, against a loop in float64."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("avx2", "avx512", "forward", "backward")
SOURCES = [ROOT / "tests/native/fuzz_ffn.cpp", *(ROOT / f"csrc/ffn_{part}.cpp" for part in PARTS)]
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fopenmp"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_clean_over_random_sizes(tmp_path: Path) -> None:
    program = tmp_path / "fuzz"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *FLAGS, *sanitize, *map(str, SOURCES), "-o", str(program)], check=True)
    done = subprocess.run([program, "20"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "20 rounds\n"
