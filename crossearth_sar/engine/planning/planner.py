"""Which layout of ranks fits a model into a device's memory.

What is counted and what is left to the reserve says engine/planning/memory.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossearth_sar.engine.planning.memory import (
    StateBytes,
    activation_bytes,
    count_parameters,
    count_selfsup,
    state_bytes,
)
from crossearth_sar.errors import InputError
from crossearth_sar.presets import ModelConfig
from crossearth_sar.selfsup.config import DI3CLConfig

RESERVE_SHARE, RESERVE_BYTES = 0.1, 1e9
"""Of a device's memory, left for the CUDA context, temporaries, the loss and fragmentation."""

_UNITS = {"GB": 1e9, "GIB": 2**30, "MB": 1e6, "MIB": 2**20}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One layout and what it needs on each rank.

    images: crops per rank and pass that fit beside the states; 0 when the states alone do not fit.
    """

    zero_stage: int
    ep_size: int
    checkpointing: bool
    offload_optimizer: bool
    states: StateBytes
    activations_per_image: int
    images: int

    @property
    def settings(self) -> str:
        """As --set wants them."""
        words = [f"parallel.zero_stage={self.zero_stage}", f"parallel.ep_size={self.ep_size}"]
        if self.checkpointing:
            words.append("parallel.activation_checkpointing=true")
        if self.offload_optimizer:
            words.append("parallel.offload_optimizer=cpu")
        return " ".join(words)


def make_plans(
    config: ModelConfig, *, ranks: int, memory: float, bf16: bool, method: DI3CLConfig | None = None
) -> list[Plan]:
    """Every layout that engine/layout.py allows, the simplest first.

    Simple means little communication and no recomputation: expert parallelism, partitioned gradients,
    checkpointing, ZeRO 3 and offloading come in as they are needed.

    Args:
        method: of self-supervised training of a config without a decoder, in the layouts that it can have.
    """
    count, beside = (count_parameters(config), 0.0) if method is None else count_selfsup(config, method)
    experts = config.moe.num_experts if config.moe else 1
    ep_sizes = [size for size in range(1, experts + 1) if experts % size == 0 and ranks % size == 0]
    layouts = [(stage, ep, False) for stage in (1, 2) for ep in ep_sizes if method is None or ep == 1]
    layouts += [(3, 1, False)] * (method is None) + [(1, 1, True)] + [(3, 1, True)] * (method is None)
    activations = {flag: activation_bytes(config, bf16=bf16, checkpointing=flag) for flag in (False, True)}
    plans = []
    for checkpointing in (False, True):
        for stage, ep_size, offload in layouts:
            states = state_bytes(
                count,
                ranks=ranks,
                ep_size=ep_size,
                zero_stage=stage,
                bf16=bf16,
                offload_optimizer=offload,
            )
            states = replace(states, replica=states.replica + beside)
            free = memory * (1 - RESERVE_SHARE) - RESERVE_BYTES - states.device
            plans.append(
                Plan(
                    zero_stage=stage,
                    ep_size=ep_size,
                    checkpointing=checkpointing,
                    offload_optimizer=offload,
                    states=states,
                    activations_per_image=activations[checkpointing],
                    images=max(0, int(free // activations[checkpointing])),
                )
            )
    return plans


def recommend(plans: Sequence[Plan], images: int) -> Plan | None:
    """The first plan that takes `images` per rank: plans come the simplest first; None when none does."""
    return next((plan for plan in plans if plan.images >= images), None)


def parse_memory(text: str) -> float:
    """Bytes of "80GB", "24GiB", "16000MB".

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise InputError("memory not understood", got=repr(text), expected="a number and GB, GiB, MB or MiB")
    return float(match[1]) * _UNITS[match[2].upper()]
