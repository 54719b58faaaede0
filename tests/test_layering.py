"""Nothing imports upwards, nothing imports in a circle, and the core imports nothing it need not have."""

from __future__ import annotations

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import crossearth_sar

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "crossearth_sar"

FLOORS = [
    {"version", "errors", "spacing", "shipped", "native"},
    {"config_keys", "whole"},
    {"config", "folder_lock"},
    {"kernels", "decibels", "ground_scale"},
    {"backend", "device", "convolution", "batch_norm", "network_input", "input_contract", "state_files"}
    | {"provenance"},
    {"descriptors", "moe", "data"},
    {"vit", "resnet", "decoder", "peft"},
    {"presets", "hub", "model_output", "model_files", "weight_decay"},
    {"pretrained", "model_reading", "sliding"},
    {"model"},
    {"pseudo_labels", "selfsup"},
    {"evaluation"},
    {"engine"},
    {"cli"},
]
TOP = {"__init__", "__main__"}
"""The package's face and its report: they may name every room."""


def modules() -> dict[str, Path]:
    files = [p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts]
    return {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path for path in files}


def imports_of(path: Path) -> set[str]:
    """Dotted names below crossearth_sar that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return {name.removeprefix("crossearth_sar.") for name in found if name.startswith("crossearth_sar.")}


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_stands_on_a_floor() -> None:
    rooms = {name.split(".")[0] for name in modules()} - TOP
    known = set().union(*FLOORS)
    assert rooms <= known, f"name the floor of {rooms - known} in this test"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_downwards(name: str) -> None:
    room = name.split(".")[0]
    if room in TOP:
        return
    for imported in imports_of(modules()[name]):
        other = imported.split(".")[0]
        if other != room:
            lower = floor(other) < floor(room)
            assert lower, f"crossearth_sar.{name} imports crossearth_sar.{imported}, which stands above it"


def test_no_circle_among_modules() -> None:
    graph = {name.removesuffix(".__init__"): imports_of(path) for name, path in modules().items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join([*trail, name])}"
        if name in done or name not in graph:
            return
        for other in graph[name]:
            if other != name:
                visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_kernels_know_nothing_of_the_library() -> None:
    for path in (ROOT / "kernels").glob("*.py"):
        others = {name for name in imports_of(path) if name.split(".")[0] not in ("errors", "kernels")}
        assert not others, f"{path.name} may import torch, triton, each other and errors only"
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow a top-level package «kernels»"


def test_vit_does_not_know_the_moe() -> None:
    for name, path in modules().items():
        if name.startswith("vit."):
            assert not any(i.startswith("moe") for i in imports_of(path)), name


def test_core_import_is_quiet_and_needs_no_optional_package() -> None:
    program = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "for name in ('triton', 'deepspeed', 'megablocks', 'rasterio', 'h5py', 'sarkit', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"  # as if it were not installed: import fails, find_spec gives None
        "import crossearth_sar, torch\n"
        "model = crossearth_sar.build_model('crossearth_sar_tiny', 3)\n"
        "assert model.predict(torch.rand(1, 1, 64, 64)).shape == (1, 64, 64)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", f"import or use wrote to stderr: {done.stderr}"


def loaded_after(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after a statement."""
    program = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import crossearth_sar; crossearth_sar.InputError",
            {"torch", "transformers", "safetensors", "scipy", "huggingface_hub", "PIL", "matplotlib"},
        ),
        ("import crossearth_sar.data.sample", {"transformers", "scipy", "PIL"}),
        ("import crossearth_sar.data.domain", {"transformers", "safetensors", "matplotlib"}),
        ("import crossearth_sar.moe, crossearth_sar.descriptors", {"transformers", "safetensors", "scipy"}),
        ("from crossearth_sar import PhysicsGuidedMoE, sar_descriptors", {"transformers", "safetensors"}),
    ],
)
def test_a_room_loads_only_what_it_needs(statement: str, absent: set[str]) -> None:
    loaded = loaded_after(statement)
    assert "crossearth_sar" in loaded
    assert not loaded & absent


def test_names_are_handed_out_lazily_and_completely() -> None:
    lists = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for_checkers = {
        alias.name
        for node in ast.walk(lists)
        if isinstance(node, ast.If)
        for line in node.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    handed_out = {name for names in crossearth_sar._HOMES.values() for name in names}
    assert handed_out == for_checkers
    assert handed_out | {"InputError", "__version__"} == set(crossearth_sar.__all__)
    assert set(crossearth_sar.__all__) <= set(dir(crossearth_sar))
    for home, names in crossearth_sar._HOMES.items():
        module = importlib.import_module(f"crossearth_sar.{home}")
        assert all(getattr(crossearth_sar, name) is getattr(module, name) for name in names)
    layer = crossearth_sar.PhysicsGuidedMoE
    assert pickle.loads(pickle.dumps(layer)) is layer
    with pytest.raises(AttributeError, match="has no attribute 'PhysicsGuidedMOE'"):
        crossearth_sar.PhysicsGuidedMOE  # noqa: B018
    with pytest.raises(ImportError, match="PhysicsGuidedMOE"):
        exec("from crossearth_sar import PhysicsGuidedMOE")
