"""The one chooser of backends: which are known, which work here, why, and what a request resolves to.

Resolved once, at construction. A backend asked for by name and missing is an error with the reason; "auto"
takes the best that works and logs once what it took.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

from crossearth_sar.errors import InputError, nearest
from crossearth_sar.kernels.probe import triton_status

logger = logging.getLogger("crossearth_sar")

MOE_BACKENDS = ("reference", "triton", "megablocks", "grouped_mm")
DESCRIPTOR_BACKENDS = ("reference",)


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend works here, and the reason, in words for the user."""

    name: str
    usable: bool
    reason: str


def moe_backend_status() -> list[BackendStatus]:
    """Every known MoE backend, best first."""
    triton_usable, triton_reason = triton_status()
    missing = "the grouped-GEMM form of this backend is not part of this version"
    return [
        BackendStatus("triton", False, missing + (f"; {triton_reason}" if not triton_usable else "")),
        BackendStatus("megablocks", False, missing),
        BackendStatus("grouped_mm", False, missing),
        BackendStatus("reference", True, "pure torch: sorted tokens, one GEMM pair per expert"),
    ]


def descriptor_backend_status() -> list[BackendStatus]:
    """Every known descriptor backend, best first."""
    return [BackendStatus("reference", True, "pure torch, about twenty passes over the image")]


def resolve_moe_backend(requested: str = "auto") -> str:
    """The MoE backend that `requested` means here.

    Raises:
        InputError: for an unknown name, or one asked for by name that does not work here.
    """
    return _resolve("MoE", requested, tuple(moe_backend_status()))


def resolve_descriptor_backend(requested: str = "auto") -> str:
    """The descriptor backend that `requested` means here; raises as `resolve_moe_backend`."""
    return _resolve("descriptor", requested, tuple(descriptor_backend_status()))


def _resolve(part: str, requested: str, statuses: tuple[BackendStatus, ...]) -> str:
    by_name = {status.name: status for status in statuses}
    if requested == "auto":
        best = next(status for status in statuses if status.usable)
        _log_choice_once(part, best.name, best.reason)
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
def _log_choice_once(part: str, name: str, reason: str) -> None:
    logger.info("%s backend: %s (%s)", part, name, reason)
