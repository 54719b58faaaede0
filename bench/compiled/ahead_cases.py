"""What is compiled ahead of time: every kernel in every shipped configuration, as cases by kernel module."""

from __future__ import annotations

import triton

from bench.compiled.ahead import AheadCase
from crossearth_sar.kernels import grouped_wgrad, routing
from crossearth_sar.kernels.grouped_dgrad import (
    gate_grad_kernel,
    grouped_down_dgrad_kernel,
    grouped_up_dgrad_kernel,
)
from crossearth_sar.kernels.grouped_forward import grouped_constants, grouped_down_kernel, grouped_up_kernel
from crossearth_sar.kernels.grouped_wgrad import grouped_wgrad_kernel, sum_shares_kernel
from crossearth_sar.kernels.tiles import Tiles, candidates


def ahead_cases(arch: str) -> list[AheadCase]:
    """All of them for a row of tiles: "sm_80", "sm_86" or "sm_90"."""
    return [*dgrad_cases(arch), *forward_cases(arch), *wgrad_cases(arch), *routing_cases(arch)]


def dgrad_cases(arch: str) -> list[AheadCase]:
    """Every shipped configuration in bf16, with routing and gate and without; one in fp16; fp32."""
    cases = []
    for kernel in ("grouped_down_dgrad", "grouped_up_dgrad"):
        shipped = [c.tiles for c in candidates(kernel, "bf16", arch)]
        cases += [_dgrad_case(kernel, tiles, "bf16") for tiles in shipped]
        cases += [_dgrad_case(kernel, shipped[0], "fp16")]
        cases += [_dgrad_case(kernel, tiles, "bf16", bare=True) for tiles in shipped]
        cases += [_dgrad_case(kernel, c.tiles, "fp32") for c in candidates(kernel, "fp32", arch)]
    first = candidates("grouped_down_dgrad", "bf16", arch)[0].tiles
    cases += [_dgrad_case("grouped_down_dgrad", first, "bf16", activation=a) for a in ("gelu_tanh", "relu")]
    return [*cases, _gate_grad_case("bf16"), _gate_grad_case("fp32")]


def _dgrad_case(
    kernel_name: str, tiles: Tiles, dtype: str, *, bare: bool = False, activation: str = "gelu"
) -> AheadCase:
    """`bare`: no routing, no gate and no gate gradient, and a depth that the block does not divide."""
    constants = grouped_constants(tiles, 6, tiles.block_k if not bare else tiles.block_k + 16)
    operand = f"*{dtype}"
    signature = {
        "source_row_ptr": "*i32", "offsets_ptr": "*i32", "weight_ptr": operand, "dpre_ptr": operand,
        "row_tiles": "i32", "D": "i32", "F": "i32",
    }  # fmt: skip
    absent: tuple[str, ...] = ("source_row_ptr",)
    label = ""
    if kernel_name == "grouped_down_dgrad":
        kernel = grouped_down_dgrad_kernel
        signature |= dict.fromkeys(("dy_ptr", "pre_ptr", "act_ptr"), operand)
        signature |= {"gate_ptr": "*fp32", "share_ptr": "*fp32", "rows": "i32"}
        constants |= {"TOP_K": 1, "ACTIVATION": activation}
        label = f" {activation}"
        absent += ("gate_ptr", "share_ptr")
    else:
        kernel = grouped_up_dgrad_kernel
        signature |= {"dx_ptr": operand}
    for name in absent if bare else ():
        del signature[name]
        constants[name] = None
    return AheadCase(
        name=f"{kernel_name} {dtype} {tiles.label}{' bare' if bare else ''}{label}",
        kernel=kernel,
        signature=signature,
        constexprs=constants,
        tiles=tiles,
        dtype=dtype,
        divisible_by_16=("D", "F"),
        wants_mma=dtype != "fp32",
    )


def _gate_grad_case(dtype: str) -> AheadCase:
    operand = f"*{dtype}"
    return AheadCase(
        name=f"gate_grad {dtype}",
        kernel=gate_grad_kernel,
        signature={
            "dy_ptr": operand, "source_row_ptr": "*i32", "offsets_ptr": "*i32", "bias_ptr": operand,
            "share_ptr": "*fp32", "dgate_ptr": "*fp32", "rows": "i32", "parts": "i32", "D": "i32",
        },
        constexprs={"TOP_K": 1, "E": 6, "E_POW2": 8, "BLOCK_M": 32, "BLOCK_D": 128, "BLOCK_PARTS": 32},
        tiles=Tiles(block_m=32, block_n=128, block_k=32, num_warps=4, num_stages=3),
        dtype=dtype,
        divisible_by_16=("D",),
        wants_mma=False,
    )  # fmt: skip


def forward_cases(arch: str) -> list[AheadCase]:
    """Every shipped configuration in bf16, the first also in fp16 and with masked depth, and all of fp32."""
    cases = []
    for kernel in ("grouped_up", "grouped_down"):
        shipped = [c.tiles for c in candidates(kernel, "bf16", arch)]
        cases += [_forward_case(kernel, tiles, "bf16") for tiles in shipped]
        cases += [_forward_case(kernel, shipped[0], "fp16")]
        cases += [_forward_case(kernel, tiles, "bf16", bare=True) for tiles in shipped]
        cases += [_forward_case(kernel, c.tiles, "fp32") for c in candidates(kernel, "fp32", arch)]
    return cases


def _forward_case(kernel_name: str, tiles: Tiles, dtype: str, *, bare: bool = False) -> AheadCase:
    """`bare`: no routing, no gate, nothing saved, and a depth that the block does not divide."""
    constants = grouped_constants(tiles, 6, tiles.block_k if not bare else tiles.block_k + 16)
    operand = f"*{dtype}"
    signature = {
        "source_row_ptr": "*i32",
        "offsets_ptr": "*i32",
        "weight_ptr": operand,
        "bias_ptr": operand,
        "row_tiles": "i32",
        "D": "i32",
        "F": "i32",
    }
    if kernel_name == "grouped_up":
        kernel = grouped_up_kernel
        signature |= {"x_ptr": operand, "act_ptr": operand, "pre_ptr": operand}
        constants |= {"TOP_K": 1, "ACTIVATION": "gelu"}
        absent = ("source_row_ptr", "pre_ptr")
    else:
        kernel = grouped_down_kernel
        signature |= {"act_ptr": operand, "y_ptr": operand, "gate_ptr": "*fp32"}
        absent = ("source_row_ptr", "gate_ptr")
    for name in absent if bare else ():
        del signature[name]
        constants[name] = None
    return AheadCase(
        name=f"{kernel_name} {dtype} {tiles.label}{' bare' if bare else ''}",
        kernel=kernel,
        signature=signature,
        constexprs=constants,
        tiles=tiles,
        dtype=dtype,
        divisible_by_16=("D", "F"),
        wants_mma=dtype != "fp32",
    )


def wgrad_cases(arch: str) -> list[AheadCase]:
    """Every shipped configuration in bf16 as dw1 and as dw2 with gate and shares; the first in fp16; fp32."""
    shipped = [c.tiles for c in candidates("grouped_wgrad", "bf16", arch)]
    cases = [_wgrad_case(tiles, "bf16", gather="right", is_gated=False) for tiles in shipped]
    cases += [_wgrad_case(tiles, "bf16", gather="left", is_gated=True) for tiles in shipped]
    cases += [_wgrad_case(tiles, "bf16", gather=None, is_gated=False) for tiles in shipped]
    cases += [_wgrad_case(shipped[0], "fp16", gather="right", is_gated=False)]
    single = [c.tiles for c in candidates("grouped_wgrad", "fp32", arch)]
    cases += [_wgrad_case(tiles, "fp32", gather="left", is_gated=True) for tiles in single]
    return [*cases, _sum_case("bf16"), _sum_case("fp32")]


def _wgrad_case(tiles: Tiles, dtype: str, *, gather: str | None, is_gated: bool) -> AheadCase:
    """Gated cases take shares, the others whole experts."""
    operand = f"*{dtype}"
    signature = {
        "left_ptr": operand, "right_ptr": operand, "source_row_ptr": "*i32", "offsets_ptr": "*i32",
        "gate_ptr": "*fp32", "dw_ptr": operand, "db_ptr": operand, "dw_share_ptr": "*fp32",
        "db_share_ptr": "*fp32", "rows_per_share": "i32", "height": "i32", "width": "i32",
    }  # fmt: skip
    constants: dict[str, object] = {
        "GATHER": gather, "TOP_K": 1, "E": 6, "E_POW2": 8, "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n, "BLOCK_K": tiles.block_k,
    }  # fmt: skip
    absent = [] if is_gated else ["gate_ptr", "dw_share_ptr", "db_share_ptr"]
    for name in [*absent, *(["source_row_ptr"] if gather is None else [])]:
        del signature[name]
        constants[name] = None
    return AheadCase(
        name=f"grouped_wgrad {dtype} {tiles.label} gather {gather}{', gate and shares' if is_gated else ''}",
        kernel=grouped_wgrad_kernel,
        signature=signature,
        constexprs=constants,
        tiles=tiles,
        dtype=dtype,
        divisible_by_16=("height", "width"),
        wants_mma=dtype != "fp32",
        options={"num_stages": grouped_wgrad.pipeline_stages(tiles, gather is not None)},
    )


def _sum_case(dtype: str) -> AheadCase:
    return AheadCase(
        name=f"sum_shares {dtype}",
        kernel=sum_shares_kernel,
        signature={
            "share_ptr": "*fp32", "offsets_ptr": "*i32", "out_ptr": f"*{dtype}", "rows_per_share": "i32",
            "size": "i32",
        },
        constexprs={"E": 6, "E_POW2": 8, "BLOCK": 4096},
        tiles=Tiles(block_m=16, block_n=16, block_k=16, num_warps=8, num_stages=1),
        dtype=dtype,
        divisible_by_16=("size",),
        wants_mma=False,
    )  # fmt: skip


def routing_cases(arch: str) -> list[AheadCase]:
    """Every configuration that runs on `arch` by default, for 6 and 64 experts."""
    sort = [case for experts in (6, 64) for case in _sort_cases(experts, arch)]
    types = [("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32"), ("fp32", "fp32")]
    return sort + [_router_case(experts, *pair, arch) for experts in (6, 64) for pair in types]


def _sort_cases(num_experts: int, arch: str) -> list[AheadCase]:
    tiles = routing._sort_tiles(num_experts, arch)
    constexprs = {"E": num_experts, "E_POW2": triton.next_power_of_2(num_experts), "STEP": tiles.block_m}
    counted = {"expert_ptr": "*i64", "counts_ptr": "*i32", "A": "i32", "per_program": "i32"}
    rows = {"source_row_ptr": "*i32", "offsets_ptr": "*i32", "programs": "i32"}
    kernels = [(routing._count_by_expert, counted), (routing._place_by_expert, counted | rows)]
    return [
        AheadCase(
            name=f"{kernel.__name__.removeprefix('_')} E={num_experts}",
            kernel=kernel,
            signature=signature,
            constexprs=constexprs,
            tiles=tiles,
            dtype="fp32",
            wants_mma=False,
        )
        for kernel, signature in kernels
    ]


def _router_case(num_experts: int, x: str, weight: str, arch: str) -> AheadCase:
    in_float32 = "fp32" in (x, weight)
    tiles = routing._router_tiles(num_experts, in_float32, arch)
    return AheadCase(
        name=f"router_probability {x} with {weight} E={num_experts}",
        kernel=routing._router_probability,
        signature={
            "x_ptr": f"*{x}",
            "weight_ptr": f"*{weight}",
            "bias_ptr": "*fp32",
            "probability_ptr": "*fp32",
            "T": "i32",
            "D": "i32",
            "tokens_per_image": "i32",
        },
        constexprs={
            "E": num_experts,
            "E_PAD": routing._padded(num_experts),
            "IN_FLOAT32": in_float32,
            "BLOCK_M": tiles.block_m,
            "BLOCK_K": tiles.block_k,
        },
        tiles=tiles,
        dtype=x,
        divisible_by_16=("D",),
        wants_mma=not in_float32,
    )
