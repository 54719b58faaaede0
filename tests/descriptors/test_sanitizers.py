"""The CPU half under AddressSanitizer and UBSan, over random images."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "tests/native/fuzz_descriptors.cpp",
    ROOT / "csrc/descriptors_cpu.cpp",
    ROOT / "csrc/row_kernels.cpp",
    ROOT / "csrc/scale_free_cpu.cpp",
    ROOT / "csrc/scale_free_rows.cpp",
]
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-fopenmp"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_clean_over_random_images(tmp_path: Path) -> None:
    program = tmp_path / "fuzz"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *FLAGS, *sanitize, *map(str, SOURCES), "-o", str(program)], check=True)
    done = subprocess.run([program, "250"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "250 rounds\n"
