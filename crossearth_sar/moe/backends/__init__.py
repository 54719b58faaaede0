"""One object for each way of running a MoE layer. Which works here and is taken, backend.py says by name."""

from crossearth_sar.moe.backends.base import Backend
from crossearth_sar.moe.backends.cpu import Cpu
from crossearth_sar.moe.backends.grouped_mm import GroupedMM
from crossearth_sar.moe.backends.megablocks import MegaBlocks
from crossearth_sar.moe.backends.reference import Reference
from crossearth_sar.moe.backends.triton import Triton

REFERENCE = Reference()
BACKENDS: dict[str, Backend] = {b.name: b for b in (REFERENCE, Cpu(), Triton(), GroupedMM(), MegaBlocks())}

__all__ = ["BACKENDS", "REFERENCE", "Backend"]
