"""`python -m crossearth_sar plan --preset l --gpus 16 --memory 80GB`: which layout of ranks fits.

What is counted and what is left to the reserve says engine/memory.py.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

from crossearth_sar.engine.memory import (
    ParameterCount,
    StateBytes,
    activation_bytes,
    count_parameters,
    state_bytes,
)
from crossearth_sar.errors import InputError
from crossearth_sar.presets import ModelConfig, model_preset

RESERVE_SHARE, RESERVE_BYTES = 0.1, 1e9
"""Of a device's memory, left for the CUDA context, temporaries, the loss and fragmentation."""

PAPER_SIZES = {
    "crossearth_sar_s": ("90M", "20M"),
    "crossearth_sar_b": ("300M", "80M"),
    "crossearth_sar_l": ("1.3B", "300M"),
}
"""Total and active parameters as the paper prints them."""

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


def make_plans(config: ModelConfig, *, ranks: int, memory: float, bf16: bool) -> list[Plan]:
    """Every layout that engine/layout.py allows, the simplest first.

    Simple means little communication and no recomputation: expert parallelism, partitioned gradients,
    checkpointing, ZeRO 3 and offloading come in as they are needed.
    """
    count = count_parameters(config)
    experts = config.moe.num_experts if config.moe else 1
    ep_sizes = [size for size in range(1, experts + 1) if experts % size == 0 and ranks % size == 0]
    layouts = [(stage, ep, False) for stage in (1, 2) for ep in ep_sizes]
    layouts += [(3, 1, False), (1, 1, True), (3, 1, True)]
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    parser.add_argument("--preset", required=True, help="tiny, s, b or l, or a preset's full name")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="ranks, over all nodes")
    parser.add_argument("--memory", required=True, metavar="80GB", help="of each device")
    parser.add_argument("--images", type=int, default=1, metavar="N", help="crops per rank and pass wanted")
    parser.add_argument("--classes", type=int, default=7, metavar="N")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan; 1 when nothing fits."""
    if arguments.gpus < 1 or arguments.images < 1:
        raise InputError(
            "numbers of ranks and images start at 1",
            got=f"--gpus {arguments.gpus} --images {arguments.images}",
        )
    name = arguments.preset if "_" in arguments.preset else f"crossearth_sar_{arguments.preset}"
    config, memory = model_preset(name, arguments.classes), parse_memory(arguments.memory)
    plans = make_plans(config, ranks=arguments.gpus, memory=memory, bf16=arguments.precision == "bf16")
    best = recommend(plans, arguments.images)
    print("\n".join([*_count_lines(name, count_parameters(config)), "", *_table(plans, best), ""]))
    reserve = (memory * RESERVE_SHARE + RESERVE_BYTES) / 1e9
    print(
        f"GB a rank, {arguments.precision}, {arguments.gpus} ranks, crops of {config.crop_size} pixels; "
        f"{reserve:.1f} GB of {memory / 1e9:.1f} left for context, temporaries, loss and fragmentation."
    )
    if best is None:
        print(f"Nothing takes {arguments.images} crops a rank: more ranks, more memory, or fewer crops.")
        return 1
    print(f"Take --set {best.settings}, up to {best.images} crops a rank and pass.")
    return 0


def _count_lines(name: str, count: ParameterCount) -> list[str]:
    total, active = PAPER_SIZES.get(name, ("-", "-"))
    return [
        f"{name}: {count.total / 1e6:.1f}M parameters",
        f"  backbone          {count.backbone / 1e6:8.1f}M   paper {total}",
        f"    active a token  {count.active_backbone / 1e6:8.1f}M   paper {active}",
        f"    experts         {count.experts / 1e6:8.1f}M",
        f"  decoder           {count.decoder / 1e6:8.1f}M",
    ]


def _table(plans: Sequence[Plan], best: Plan | None) -> list[str]:
    lines = [
        "  ZeRO  ep  recompute  offload    weights  gradients  optimizer  buckets  replica  states  per image"
        "  images  host"
    ]
    for plan in plans:
        states = plan.states
        figures = (
            (states.weights, 9),
            (states.gradients, 9),
            (states.optimizer, 9),
            (states.buckets, 7),
            (states.replica, 7),
            (states.device, 6),
            (plan.activations_per_image, 9),
        )
        numbers = "  ".join(f"{value / 1e9:{width}.2f}" for value, width in figures)
        mark = "*" if plan is best else " "
        lines.append(
            f"{mark} {plan.zero_stage:4}  {plan.ep_size:2}  {'yes' if plan.checkpointing else 'no':>9}  "
            f"{'cpu' if plan.offload_optimizer else 'no':>7}  {numbers}"
            f"  {plan.images:6}  {states.host / 1e9:.2f}"
        )
    return lines
