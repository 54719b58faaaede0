"""What is installed is the whole package: a wheel of this checkout, used from elsewhere; and the sdist."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import setuptools
import yaml
from pybind11 import setup_helpers

from crossearth_sar.cli.config_arguments import recipe_names
from crossearth_sar.cli.main import COMMANDS
from crossearth_sar.model import build_model, save_model
from crossearth_sar.version import __version__

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "patch_size": 16, "depth": 4},
    "decoder": {"channels": 32, "num_queries": 8, "pixel_layers": 1, "query_layers": 1},
    "crop_size": 64,
    "crop_stride": 40,
}


def build_wheel(source: Path, folder: Path, choice: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(source)],
        check=False, capture_output=True, text=True, env={**os.environ, "CROSSEARTH_BUILD": choice},
    )  # fmt: skip


def package_files() -> set[str]:
    """What belongs into the package: modules, kernels, tables, recipes, weights and the mark of its types."""
    found = {"crossearth_sar/py.typed"}
    for suffix in ("py", "csv", "yaml"):
        found |= {str(path.relative_to(ROOT)) for path in (ROOT / "crossearth_sar").rglob(f"*.{suffix}")}
    found |= {str(path.relative_to(ROOT)) for path in (ROOT / "crossearth_sar" / "weights").glob("*/*")}
    return found | {f"crossearth_sar/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}


def names_in(wheel: Path) -> set[str]:
    """The files in a wheel, but for its metadata and the extension."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = f"crossearth_sar-{__version__}.dist-info/"
    return {n for n in names if not n.startswith((metadata, "crossearth_sar/_descriptors."))}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without what earlier builds left in it."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    strangers = shutil.ignore_patterns(
        ".*", "build", "runs", "shared", "*.egg-info", "__pycache__", "*.so", "*.pyc"
    )
    shutil.copytree(ROOT, folder, symlinks=True, ignore=strangers)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout with the CPU half of the extension."""
    folder = tmp_path_factory.mktemp("wheel")
    done = build_wheel(source, folder, "cpu")
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment with the wheel alone installed into it.

    What the package depends on is read from the environment of the tests, so that nothing is downloaded;
    an editable install there is not: the wheel's folder comes first, and a .pth in a .pth is not read.
    """
    place = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return place / "bin"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert "arXiv:2603.12008" in str(citation["references"])


def test_an_unknown_build_choice_is_named(source: Path) -> None:
    done = build_wheel(source, source, "fast")
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


@pytest.mark.parametrize("choice", ["auto", "cpu"])
def test_without_a_compiler_nothing_is_built_unless_it_was_asked_for(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CROSSEARTH_BUILD", choice)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    made = runpy.run_path("setup.py")
    built: list[str] = []
    monkeypatch.setattr(setup_helpers.build_ext, "build_extension", lambda _, ext: built.append(ext.name))
    made["BuildExtension"](setuptools.Distribution()).build_extension(made["extension"])
    assert built == (["crossearth_sar._descriptors"] if choice == "cpu" else []), (
        "cpu: the compiler's own error"
    )
    assert bool(made["extension"].optional) == (choice == "auto")
    said = "nothing, for there is no" if choice == "auto" else "the CPU half"
    assert said in capsys.readouterr().err


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.startswith(f"crossearth_sar-{__version__}-")
    assert names_in(wheel) == package_files()
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.startswith("crossearth_sar/_descriptors.") for name in archive.namelist())
        archive.extractall(tmp_path / "site")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import crossearth_sar, crossearth_sar._descriptors, crossearth_sar.kernels.probe as probe\n"
        f"assert crossearth_sar.__file__.startswith({str(tmp_path)!r}), crossearth_sar.__file__\n"
        f"assert probe.__file__.startswith({str(tmp_path)!r}), probe.__file__\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], check=True, cwd=tmp_path)


def test_a_source_distribution_builds_the_same_wheel(source: Path, tmp_path: Path) -> None:
    """It holds what builds the package, each kernel once, and neither tests nor benchmarks nor train/."""
    program = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    env = {**os.environ, "CROSSEARTH_BUILD": "none"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=source, env=env, capture_output=True)
    with tarfile.open(tmp_path / f"crossearth_sar-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"crossearth_sar-{__version__}"
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("crossearth_sar/")} == package_files()
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").iterdir() if path.is_file()}
    assert {name for name in names if name.startswith("csrc/")} == native
    beside = {name for name in names if not name.startswith(("crossearth_sar/", "csrc/"))}
    assert {name for name in beside if not name.startswith("crossearth_sar.egg-info/")} == {
        *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"),
        *("constraints.txt", "pyproject.toml", "setup.cfg", "setup.py"),
    }
    done = build_wheel(unpacked, tmp_path, "none")
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("*.whl")
    assert names_in(found) == package_files()


def test_requirements_with_checksums_are_those_that_were_tested() -> None:
    """Each of them with a checksum; but for torch, whose builds of one version are other files."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    hashed = (ROOT / ".ci" / "requirements-hashed.txt").read_text(encoding="utf-8")

    def pins(text: str) -> set[str]:
        return {
            re.sub("[_.]", "-", name.lower()) + at for name, at in re.findall(r"(?m)^([\w.-]+)(==\S+)", text)
        }

    assert pins(hashed) == {pin for pin in pins(pinned) if not pin.startswith("torch==")}
    entries = re.split(r"\n(?=[a-z])", hashed)[1:]
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def run_installed(installed: Path, place: Path, program: str, *arguments: str) -> str:
    """What a program of the fresh environment, which is not activated, prints in a folder of its own."""
    done = subprocess.run(
        [str(installed / program), *arguments],
        capture_output=True, text=True, check=False, cwd=place, timeout=500,
        env={"HOME": str(place), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_installed_commands_work_without_repository_and_activation(
    installed: Path, tmp_path: Path
) -> None:
    said = run_installed(installed, tmp_path, "crossearth-sar", "--help")
    assert all(f"    {name}" in said for name in COMMANDS)
    said = run_installed(installed, tmp_path, "python", "-m", "crossearth_sar", "info")
    assert f"crossearth-sar {__version__}" in said
    assert "* fused" in said, "the wheel's own extension is found"
    size = ["--preset", "tiny", "--gpus", "2", "--memory", "4GB"]
    said = run_installed(installed, tmp_path, "crossearth-sar", "plan", *size)
    assert "Take --set parallel.zero_stage=" in said


@pytest.mark.slow
def test_the_installed_package_is_the_wheels_and_has_its_recipes(installed: Path, tmp_path: Path) -> None:
    program = (
        "import crossearth_sar\n"
        "from crossearth_sar.cli.config_arguments import read_config, recipe_names\n"
        "print(crossearth_sar.__file__, *(n for n in recipe_names() if read_config(n)['output']))\n"
    )
    file, *names = run_installed(installed, tmp_path, "python", "-c", program).split()
    assert Path(file).is_relative_to(installed.parent)
    assert names == recipe_names()


@pytest.mark.slow
def test_the_installed_package_predicts(installed: Path, tmp_path: Path) -> None:
    save_model(build_model("crossearth_sar_tiny", 3, changes=SMALL), tmp_path / "model")
    np.save(tmp_path / "scene.npy", np.random.default_rng(0).rayleigh(size=(64, 80)).astype(np.float32))
    flags = ["--model", "model", "--images", "scene.npy", "--values", "amplitude", "--output", "maps"]
    assert "1 of 1 maps in maps" in run_installed(installed, tmp_path, "crossearth-sar", "predict", *flags)
    assert (tmp_path / "maps" / "scene.png").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CROSSEARTH_SLOW"), reason="slow: CROSSEARTH_SLOW=1 runs it")
def test_the_installed_package_trains(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    small = ["steps=3", "batch_size=2", "output=out", "pictures=1", "save_every=3", "unseen=[]"]
    small += ["train.simulated.length=8", "validation.simulated.length=2"]
    run_installed(installed, tmp_path, "crossearth-sar", "train", "--set", *small)
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
