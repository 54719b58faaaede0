"""Memory per rank, and which layout of ranks fits: `crossearth-sar plan --preset l --gpus 16 --memory 80GB`.

What is counted and what is left to the reserve says engine/planning/memory.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from crossearth_sar.engine.planning.memory import ParameterCount, count_parameters
from crossearth_sar.engine.planning.planner import (
    RESERVE_BYTES,
    RESERVE_SHARE,
    Plan,
    make_plans,
    parse_memory,
    recommend,
)
from crossearth_sar.errors import InputError
from crossearth_sar.presets import model_preset

PAPER_SIZES = {
    "crossearth_sar_s": ("90M", "20M"),
    "crossearth_sar_b": ("300M", "80M"),
    "crossearth_sar_l": ("1.3B", "300M"),
}
"""Total and active parameters as the paper prints them."""


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
    short = arguments.preset in ("tiny", "s", "b", "l")
    name = f"crossearth_sar_{arguments.preset}" if short else arguments.preset
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
