"""What is installed, which backend each part would use, and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform

import torch

from crossearth_sar.backend import (
    AUTO_DTYPES,
    CPU_ACTIVATION,
    KERNEL_EXPERTS,
    BackendStatus,
    descriptor_backend_status,
    moe_backend_on_cpu,
    moe_backend_status,
)
from crossearth_sar.version import __version__

OPTIONAL = {
    "triton": "kernels: pip install 'crossearth-sar[triton]'",
    "deepspeed": "training on many ranks, ZeRO, split experts: pip install 'crossearth-sar[train]'",
    "tensorboard": "training curves: pip install 'crossearth-sar[train]'",
    "rasterio": "VRT, ENVI, products, addresses; georeferenced maps: pip install 'crossearth-sar[geo]'",
    "h5py": "HDF5 and NetCDF-4 images: pip install 'crossearth-sar[hdf]'",
    "sarkit": "SICD and SIDD images: pip install 'crossearth-sar[sicd]'",
    "megablocks": "peer and backend: pip install --no-deps megablocks, on a CUDA machine",
}


def report() -> str:
    """The whole report as text; asks the driver which GPU there is, and allocates nothing on it."""
    lines = [
        f"crossearth-sar {__version__}, Python {platform.python_version()}, {platform.machine()}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_gpu()}",
        "",
        "required packages",
        *(_package_line(name, "") for name in ("transformers", "safetensors", "numpy", "scipy")),
        "optional packages",
        *(_package_line(name, purpose) for name, purpose in OPTIONAL.items()),
        "",
        *_moe_lines(moe_backend_status()),
        *_backend_lines("SAR descriptors, images on a CPU", descriptor_backend_status()),
    ]
    if torch.cuda.is_available():
        lines += _backend_lines("SAR descriptors, images on a GPU", descriptor_backend_status("cuda"))
    return "\n".join(lines)


def _gpu() -> str:
    count = torch.cuda.device_count()
    return f"{count} CUDA device(s)" if count else "no CUDA device"


def _package_line(name: str, purpose: str) -> str:
    if importlib.util.find_spec(name) is None:
        return f"  {name:<14} not installed; {purpose}"
    try:
        return f"  {name:<14} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"  {name:<14} present, version unknown"


def _moe_lines(statuses: list[BackendStatus]) -> list[str]:
    if not torch.cuda.is_available():
        return _backend_lines("MoE layer", statuses)
    title, *rest = _backend_lines("MoE layer, tokens on a GPU", statuses)
    dtypes = AUTO_DTYPES.get(_chosen(statuses))
    if dtypes is not None:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        title += f" in {names}, else 'reference'"
    on_cpu = moe_backend_on_cpu(16, 16, KERNEL_EXPERTS, CPU_ACTIVATION)
    return [title, *rest, f"  tokens on a CPU: 'auto' is {on_cpu!r} in float32, else 'reference'"]


def _chosen(statuses: list[BackendStatus]) -> str:
    return next(status.name for status in statuses if status.usable)


def _backend_lines(part: str, statuses: list[BackendStatus]) -> list[str]:
    chosen = _chosen(statuses)
    lines = [f"{part}: backend 'auto' is {chosen!r}"]
    for status in statuses:
        lines.append(
            f"  {'*' if status.name == chosen else ' '} {status.name:<12} "
            f"{'works' if status.usable else 'no'}: {status.reason}"
        )
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(arguments: argparse.Namespace) -> int:
    print(report())
    return 0
