"""Registers, shared memory and spills of every CUDA kernel in the extension, as the compiler left them.

    python -m bench.compiled.kernel_resources [--out bench/reports/descriptors-cuda-resources]

Needs cuobjdump: the CUDA toolkit's, or the one that comes with triton. No GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from bench.speed.harness import write_report

ROW = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def find_cuobjdump() -> str:
    """The path of cuobjdump; SystemExit with what to do where there is none."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(bundled) if bundled.exists() else None
    if found is None:
        raise SystemExit("no cuobjdump: install the CUDA toolkit or triton")
    return found


def resources(binary: str) -> list[dict[str, object]]:
    """A row per kernel and architecture."""
    listing = subprocess.run(
        [find_cuobjdump(), "--dump-resource-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    rows: list[dict[str, object]] = []
    architecture = kernel = ""
    for line in listing.splitlines():
        if line.startswith("arch ="):
            architecture = line.split("=")[1].strip()
        elif "Function" in line:
            kernel = demangled(line.split("Function", 1)[1].strip().rstrip(":"))
        elif (match := ROW.search(line)) and kernel:
            registers, stack, shared, local = map(int, match.groups())
            rows.append({"kernel": kernel, "architecture": architecture, "registers": registers,
                         "static shared, B": shared, "stack, B": stack, "spilled, B": local})  # fmt: skip
            kernel = ""
    return sorted(rows, key=lambda row: (str(row["kernel"]), str(row["architecture"])))


def demangled(name: str) -> str:
    full = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"crossearth::|\(anonymous namespace\)::|^void |\(.*", "", full)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench/reports/descriptors-cuda-resources"))
    arguments = parser.parse_args()
    extension = importlib.util.find_spec("crossearth_sar._descriptors")
    if extension is None or extension.origin is None:
        raise SystemExit("the extension is not built: CROSSEARTH_BUILD=cuda pip install .")
    rows = resources(extension.origin)
    if not rows:
        raise SystemExit("the extension was built without CUDA: CROSSEARTH_BUILD=cuda pip install .")
    notes = ["Compiled ahead of time; no kernel has run on a GPU yet."]
    print(write_report(arguments.out, "Resources of the descriptors' CUDA kernels", rows, notes))


if __name__ == "__main__":
    main()
