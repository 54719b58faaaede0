"""Installs the package as its users do, into empty environments, and writes what that gave.

python -m bench.experiments.installing --pythons python3.11 python3.12 python3.13
    builds the source distribution, and of it a wheel for each interpreter; installs the wheel with all it
    depends on, and again without a compiler; then asks the environment what it has. Gigabytes are downloaded.

Wants `uv` on PATH. A row an environment: the wheel's size, whether one torch is there and everything fits
(`uv pip check`), which form of the descriptors runs, what warnings the first call gives, and the seconds that
`import torch` and then `import crossearth_sar` take: the least of five processes each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.speed.harness import write_report

ROOT = Path(__file__).resolve().parents[2]
ASK_TIME = """
import json, sys, time
start = time.perf_counter(); import torch
middle = time.perf_counter(); import crossearth_sar
end = time.perf_counter(); print(json.dumps([middle - start, end - middle]))
"""
ASK_WORK = """
import json, logging, torch
words = []
class Keep(logging.Handler):
    def emit(self, record): words.append(record.getMessage())
logging.getLogger("crossearth_sar").addHandler(Keep(level=logging.WARNING))
from crossearth_sar import PhysicsGuidedMoE, load_model, sar_descriptors
from crossearth_sar.backend import extension_status
image = torch.rand(2, 1, 64, 64)
for _ in range(2):
    physics = sar_descriptors(image)
close = torch.allclose(physics, sar_descriptors(image, backend="reference"), rtol=1e-4)
tokens, _ = PhysicsGuidedMoE(8)(torch.randn(2, 5, 8), physics)
classes = load_model("tiny").predict(image)
print(json.dumps({"fused": extension_status().usable, "right": close and tokens.shape == (2, 5, 8)
                  and classes.shape == (2, 64, 64), "words": words, "torch": torch.__version__}))
"""


def run(*words: str | Path, cwd: Path | None = None, changes: Mapping[str, str] | None = None) -> str:
    """What a command prints, in an environment with these changes; its words end this program if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, cwd=cwd,
        env={**environment, **(changes or {})},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words[:6]))}:\n{done.stderr[-3000:]}")
    return done.stdout


def import_seconds(python: Path, place: Path) -> tuple[float, float]:
    """Of torch, and of the package after it."""
    times = [json.loads(run(python, "-c", ASK_TIME, cwd=place)) for _ in range(5)]
    return min(t for t, _ in times), min(t for _, t in times)


def asked(python: Path, place: Path, how: str, wheel: Path) -> dict[str, object]:
    """The row of an environment."""
    work = json.loads(run(python, "-c", ASK_WORK, cwd=place))
    torch_s, package_s = import_seconds(python, place)
    listed = run("uv", "pip", "list", "--python", python, "--format", "freeze").lower().split()
    run("uv", "pip", "check", "--python", python)
    return {
        "python": run(python, "-c", "import platform; print(platform.python_version())").strip(),
        "installed": how,
        "wheel MB": round(wheel.stat().st_size / 1e6, 2),
        "torch": work["torch"],
        "torches": sum(line.startswith("torch==") for line in listed),
        "descriptors": "fused" if work["fused"] else "reference",
        "results right": work["right"],
        "warnings of the first calls": "; ".join(work["words"]) or "none",
        "import torch s": round(torch_s, 2),
        "import crossearth_sar s": round(package_s, 3),
    }


def installed(interpreter: str, sdist: Path, place: Path) -> list[dict[str, object]]:
    """Two rows of an interpreter: with a compiler, and without one on PATH."""
    environment, rows = place / "environment", []
    run("uv", "venv", "--python", interpreter, environment)
    python = environment / "bin" / "python"
    bare = f"{environment / 'bin'}:{uv_folder()}"
    for how, changes in {
        "with a compiler": {"CROSSEARTH_BUILD": "cpu"}, "without a compiler": {"PATH": bare},
    }.items():  # fmt: skip
        wheels = place / how.replace(" ", "-")
        run("uv", "build", "--wheel", "--python", interpreter, "-o", wheels, sdist, changes=changes)
        (wheel,) = wheels.glob("*.whl")
        run("uv", "pip", "install", "--python", python, "--reinstall-package", "crossearth-sar", wheel)
        rows.append(asked(python, place, how, wheel))
    return rows


def uv_folder() -> str:
    return str(Path(run("sh", "-c", "command -v uv").strip()).parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], help="interpreters, names or paths")
    parser.add_argument("--out", type=Path, default=Path("runs/installing"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run("uv", "build", "--sdist", "-o", folder, ROOT)
        (sdist,) = Path(folder).glob("*.tar.gz")
        notes = [
            f"The source distribution is {sdist.stat().st_size / 1e6:.2f} MB.",
            "Each environment was empty; the wheel was built of the source distribution.",
            "With a compiler: CROSSEARTH_BUILD=cpu. Without: none on PATH while the wheel was built.",
        ]
        for number, interpreter in enumerate(options.pythons):
            place = Path(folder) / str(number)
            place.mkdir()
            rows += installed(interpreter, sdist, place)
            text = write_report(options.out, "The package, installed", rows, notes)  # so far
        print(text)


if __name__ == "__main__":
    main()
