"""NaN and infinity in training: which layer made the first one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossearth_sar.engine.distributed import of_all_ranks


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity and was told to stop. The same on all ranks."""


def first_nonfinite_layer(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """The name of the module whose output is the first with a NaN or infinity in `forward()`.

    Of modules that call each other the innermost is named, since its output comes first; a module whose
    own parameters hold one is named with them. None when all outputs are finite.
    """
    found: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all_finite(output):
                bad = [n for n, p in module.named_parameters(recurse=False) if not all_finite(p.detach())]
                found.append(
                    f"{name} ({type(module).__name__})" + (f", its {', '.join(bad)} too" if bad else "")
                )

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def gather_findings(finding: str | None) -> str:
    """What each rank found, in words; a collective call."""
    findings = of_all_ranks(finding)
    named = [f"{text} on rank {rank}" for rank, text in enumerate(findings) if text]
    if named:
        return "first in " + "; ".join(named)
    return "no layer's output in a second forward pass: the loss itself or a gradient overflowed"


def all_finite(value: Any) -> bool:
    """Whether every floating tensor in a nest of containers and dataclasses is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
