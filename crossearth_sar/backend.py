"""The one chooser of backends: which are known, which work here, why, and what a request resolves to.

Resolved once, at construction. A backend asked for by name and missing is an error with the reason; "auto"
takes the best that works and logs once what it took; where a call then runs on something slower, it warns.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from crossearth_sar.errors import InputError, nearest
from crossearth_sar.kernels.probe import triton_status
from crossearth_sar.native import native_extension

logger = logging.getLogger("crossearth_sar")

MOE_BACKENDS = ("reference", "cpu", "triton", "megablocks", "grouped_mm")
DESCRIPTOR_BACKENDS = ("fused", "reference")


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend works here, and the reason, in words for the user."""

    name: str
    usable: bool
    reason: str


class ExtensionStatus(NamedTuple):
    """Whether the C++ extension can be used, the reason in words, whether it has its CUDA half, and the
    instruction sets that its experts can use here, best first."""

    usable: bool
    reason: str
    has_cuda: bool
    instruction_sets: tuple[str, ...] = ()


TRITON_MEASURED = False
"""Whether `make gpu-check` has passed on a GPU, with its report under bench/reports/. Until then the Triton
kernels are proven by the interpreter and ahead-of-time compilation only, and "auto" does not choose them."""

FUSED_MEASURED_ON_GPU = False
"""The same of the descriptors' CUDA half."""

AUTO_DTYPES = {
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "grouped_mm": (torch.bfloat16,),
}
"""What "auto" gives the backends that are not for everything; other calls go to the reference."""


KERNEL_EXPERTS = "ffn"
"""The one expert type that the Triton kernels and the experts in C++ know."""


CPU_ACTIVATION = "gelu"
"""The one activation that the experts in C++ know."""


CPU_WIDEST_AUTO = 384
"""So wide are tokens, at most, where "auto" takes the experts in C++: there they are the faster
(bench/reports/moe-layer-cpu); at 768 and 1024 it hangs on the threads who is (bench/reports/LOG.md)."""


KERNEL_MAX_EXPERTS = 64
"""So many experts the Triton kernels route among, at most."""


def moe_backend_status(
    dim: int = 16,
    hidden_dim: int = 16,
    expert_kind: str = KERNEL_EXPERTS,
    num_experts: int = 1,
    activation: str | None = CPU_ACTIVATION,
) -> list[BackendStatus]:
    """Every known MoE backend for so many experts of these widths, type and activation, best first."""
    triton_usable, triton_reason = triton_status()
    if expert_kind != KERNEL_EXPERTS:
        triton_usable, triton_reason = (
            False,
            f"its kernels are for experts of type 'ffn', not {expert_kind!r}",
        )
    elif num_experts > KERNEL_MAX_EXPERTS:
        triton_usable, triton_reason = (
            False,
            f"routes among at most {KERNEL_MAX_EXPERTS} experts, not {num_experts}",
        )
    elif dim % 16 or hidden_dim % 16:
        triton_usable, triton_reason = False, f"needs widths that 16 divides, not {dim} and {hidden_dim}"
    triton = BackendStatus("triton", triton_usable, triton_reason)
    grouped_mm = BackendStatus("grouped_mm", *_grouped_mm_status(dim, hidden_dim))
    megablocks = BackendStatus("megablocks", *_megablocks_status())
    reference = BackendStatus("reference", True, "pure torch: sorted tokens, a few GEMMs per expert")
    cpu = BackendStatus("cpu", *_cpu_status(dim, hidden_dim, expert_kind, activation))
    if not torch.cuda.is_available():
        first = [cpu, reference] if dim <= CPU_WIDEST_AUTO else [reference, cpu]
        return [*first, grouped_mm, triton, megablocks]
    plain = [grouped_mm, reference] if _has_grouped_gemm() else [reference, grouped_mm]
    best = [triton, *plain] if TRITON_MEASURED else [*plain, triton]
    return [*best, megablocks, cpu]


def _cpu_status(dim: int, hidden_dim: int, expert_kind: str, activation: str | None) -> tuple[bool, str]:
    if expert_kind != KERNEL_EXPERTS:
        return False, f"its experts in C++ are of type 'ffn', not {expert_kind!r}"
    if activation not in (CPU_ACTIVATION, None):  # None is a type's default
        return False, f"its experts in C++ have the activation 'gelu', not {activation!r}"
    extension = extension_status()
    if not extension.usable:
        return False, extension.reason
    if not extension.instruction_sets:
        return False, "its experts in C++ need AVX2 or AVX-512, and an extension that GCC built"
    if dim % 16 or hidden_dim % 16:
        return False, f"needs widths that 16 divides, not {dim} and {hidden_dim}"
    what = f"C++, {extension.instruction_sets[0]}: products and GELU in one pass"
    return True, f"{what}; float32 on a CPU, by itself up to C = {CPU_WIDEST_AUTO}"


def moe_backend_on_cpu(dim: int, hidden_dim: int, expert_kind: str, activation: str | None) -> str:
    """What "auto" takes for tokens on a CPU in float32: "cpu" where it works and is the faster."""
    usable, _ = _cpu_status(dim, hidden_dim, expert_kind, activation)
    return "cpu" if usable and dim <= CPU_WIDEST_AUTO else "reference"


def _grouped_mm_status(dim: int, hidden_dim: int) -> tuple[bool, str]:
    if dim % 8 or hidden_dim % 8:  # torch wants strides that are multiples of 16 bytes, in bfloat16
        return False, f"needs widths that 8 divides, not {dim} and {hidden_dim}"
    what = "torch.nn.functional.grouped_mm between torch's own steps"
    if _has_grouped_gemm():
        return True, f"{what}; one grouped GEMM in bfloat16, otherwise a loop that waits for the device"
    return True, f"{what}, here a loop over experts inside torch"


def _has_grouped_gemm() -> bool:
    """Whether torch has a grouped GEMM of its own for this GPU, of which bfloat16 is the only type."""
    if torch.version.hip is not None or not torch.cuda.is_available():  # an MI300 calls itself 9.4
        return False
    return torch.cuda.get_device_capability()[0] in (9, 10)


def _megablocks_status() -> tuple[bool, str]:
    missing = [n for n in ("megablocks", "grouped_gemm") if importlib.util.find_spec(n) is None]
    if missing:
        return False, f"not installed: {' '.join(missing)} (pip install --no-deps megablocks grouped_gemm)"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return True, "the grouped GEMM of MegaBlocks; waits for the device once a call, bfloat16 only"


def descriptor_backend_status(device_type: str = "cpu") -> list[BackendStatus]:
    """Every known descriptor backend for images on "cpu" or "cuda", best first."""
    reference = BackendStatus("reference", True, "pure torch, about twenty passes over the image")
    usable, reason, has_cuda, _ = extension_status()
    if device_type == "cpu" or not usable:
        return [BackendStatus("fused", usable, reason), reference]
    if not has_cuda:
        without = "the extension was built without CUDA (CROSSEARTH_BUILD=cuda needs nvcc)"
        return [BackendStatus("fused", False, without), reference]
    if FUSED_MEASURED_ON_GPU:
        return [BackendStatus("fused", True, reason), reference]
    return [
        reference,
        BackendStatus("fused", True, "its CUDA half has run on no GPU yet; ask for it by name"),
    ]


@cache
def extension_status() -> ExtensionStatus:
    """Of the C++ extension, built from csrc/ at install."""
    try:
        extension = native_extension()
    except ImportError as error:
        reason = f"the C++ extension is not built ({error}): pip install . where a C++17 compiler is"
        return ExtensionStatus(False, reason, False)
    built = "C++ and CUDA" if extension.has_cuda else "C++, built without CUDA"
    sets = tuple(extension.ffn_instruction_sets())
    return ExtensionStatus(True, f"one pass over the image; {built}", bool(extension.has_cuda), sets)


def resolve_moe_backend(
    requested: str = "auto",
    dim: int = 16,
    hidden_dim: int = 16,
    expert_kind: str = KERNEL_EXPERTS,
    num_experts: int = 1,
    activation: str | None = CPU_ACTIVATION,
) -> str:
    """The MoE backend that `requested` means here, for so many experts of these widths, type and activation.

    Raises:
        InputError: for an unknown name, or one asked for by name that does not work here.
    """
    statuses = moe_backend_status(dim, hidden_dim, expert_kind, num_experts, activation)
    return _resolve("MoE", requested, tuple(statuses))


def auto_moe_backend_for_call(
    resolved: str, device_type: str, dtype: torch.dtype, on_cpu: str = "reference"
) -> str:
    """What runs a call of a layer whose "auto" is `resolved`, by where its tokens are and their dtype.

    on_cpu: what `moe_backend_on_cpu` says of the layer.
    """
    if device_type == "cpu":
        return on_cpu if dtype == torch.float32 else "reference"
    if device_type != "cuda" or resolved == "cpu":
        return "reference"
    if dtype in AUTO_DTYPES.get(resolved, (dtype,)):
        return resolved
    if not torch.compiler.is_compiling():  # a graph of torch.compile has no place for words
        log_once(f"MoE backend: reference for {dtype}, {resolved} for bfloat16", logging.WARNING)
    return "reference"


@torch.compiler.assume_constant_result  # what is installed: to a compiled graph a constant
def resolve_descriptor_backend(requested: str = "auto") -> str:
    """The descriptor backend that `requested` means here; raises as `resolve_moe_backend`.

    "auto" without the extension warns once: what is slow is said, though nothing is wrong.
    """
    if requested == "auto" and not extension_status().usable:
        log_once(f"descriptors by the slower reference form: {extension_status().reason}", logging.WARNING)
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


@torch.compiler.assume_constant_result  # said once while a model is compiled, like any other first time
@cache
def log_once(message: str, level: int = logging.INFO) -> None:
    """Tells the user, the first time; a warning is seen without any set-up of logging."""
    logger.log(level, message)
