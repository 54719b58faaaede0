"""The one chooser of backends: which are known, which work here, why, and what a request resolves to.

Resolved once, at construction. A backend asked for by name and missing is an error with the reason; "auto"
takes the best that works and logs once what it took.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from functools import cache

import torch

from crossearth_sar.errors import InputError, nearest
from crossearth_sar.kernels.probe import triton_status

logger = logging.getLogger("crossearth_sar")

MOE_BACKENDS = ("reference", "triton", "megablocks", "grouped_mm")
DESCRIPTOR_BACKENDS = ("fused", "reference")


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend works here, and the reason, in words for the user."""

    name: str
    usable: bool
    reason: str


TRITON_MEASURED = False
"""Whether `make gpu-check` has passed on a GPU, with its report under bench/reports/. Until then the Triton
kernels are proven by the interpreter and ahead-of-time compilation only, and "auto" does not choose them."""


def moe_backend_status(dim: int = 16, hidden_dim: int = 16) -> list[BackendStatus]:
    """Every known MoE backend for experts of these widths, best first."""
    triton_usable, triton_reason = triton_status()
    if dim % 16 or hidden_dim % 16:
        triton_usable, triton_reason = False, f"needs widths that 16 divides, not {dim} and {hidden_dim}"
    triton = BackendStatus("triton", triton_usable, triton_reason)
    grouped_mm = BackendStatus("grouped_mm", True, "torch.nn.functional.grouped_mm between torch's own steps")
    megablocks = BackendStatus("megablocks", *_megablocks_status())
    reference = BackendStatus("reference", True, "pure torch: sorted tokens, a few GEMMs per expert")
    if not torch.cuda.is_available():
        return [reference, grouped_mm, triton, megablocks]
    if TRITON_MEASURED:
        return [triton, grouped_mm, reference, megablocks]
    return [grouped_mm, reference, triton, megablocks]


def _megablocks_status() -> tuple[bool, str]:
    missing = [n for n in ("megablocks", "grouped_gemm") if importlib.util.find_spec(n) is None]
    if missing:
        return False, f"not installed: {' '.join(missing)} (pip install --no-deps megablocks grouped_gemm)"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, "the grouped GEMM of MegaBlocks; waits for the device once a call, bfloat16 only"


def descriptor_backend_status() -> list[BackendStatus]:
    """Every known descriptor backend, best first."""
    return [
        BackendStatus("fused", *extension_status()),
        BackendStatus("reference", True, "pure torch, about twenty passes over the image"),
    ]


@cache
def extension_status() -> tuple[bool, str]:
    """(usable, reason) of the C++ extension, built from csrc/ at install."""
    try:
        extension = importlib.import_module("crossearth_sar._descriptors")
    except ImportError as error:
        return False, f"the C++ extension is not built ({error}): pip install . where a C++17 compiler is"
    return (
        True,
        f"one pass over the image; {'C++ and CUDA' if extension.has_cuda else 'C++, built without CUDA'}",
    )


def resolve_moe_backend(requested: str = "auto", dim: int = 16, hidden_dim: int = 16) -> str:
    """The MoE backend that `requested` means here, for experts of these widths.

    Raises:
        InputError: for an unknown name, or one asked for by name that does not work here.
    """
    return _resolve("MoE", requested, tuple(moe_backend_status(dim, hidden_dim)))


def resolve_descriptor_backend(requested: str = "auto") -> str:
    """The descriptor backend that `requested` means here; raises as `resolve_moe_backend`."""
    return _resolve("descriptor", requested, tuple(descriptor_backend_status()))


def _resolve(part: str, requested: str, statuses: tuple[BackendStatus, ...]) -> str:
    by_name = {status.name: status for status in statuses}
    if requested == "auto":
        best = next(status for status in statuses if status.usable)
        log_once(f"{part} backend: {best.name} ({best.reason})")
        return best.name
    if requested not in by_name:
        raise InputError(
            f"unknown {part} backend{nearest(requested, by_name)}",
            got=repr(requested),
            expected=" | ".join(["auto", *by_name]),
        )
    if not by_name[requested].usable:
        raise InputError(
            f"the {part} backend {requested!r} does not work here",
            got=by_name[requested].reason,
            fix="backend='auto' takes the best that works",
        )
    return requested


@cache
def log_once(message: str) -> None:
    """Tells the user, the first time."""
    logger.info(message)
