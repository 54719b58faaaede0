"""The shipped tile candidates of every grouped GEMM: {kernel: {(arch, "half" | "fp32"): candidates}}.

Every row compiles without spills within the shared memory of its architecture;
bench/compiled/kernels_ahead.py writes the evidence.
rate and fixed_depth are estimates (tiles.py says of what), not timings.
"""

from __future__ import annotations

from crossearth_sar.kernels.tiles import Candidate, Tiles


def _row(
    m: int,
    n: int,
    k: int,
    warps: int,
    stages: int,
    parts: int = 1,
    *,
    rate: float,
    fixed: int,
    per_sm: int = 1,
) -> Candidate:
    tiles = Tiles(
        block_m=m, block_n=n, block_k=k, num_warps=warps, num_stages=stages, epilogue_parts=parts
    )  # fmt: skip
    return Candidate(tiles=tiles, rate=rate, fixed_depth=fixed, programs_per_sm=per_sm)


INTERPRETER = (
    _row(64, 128, 128, 1, 1, rate=0.3, fixed=0),
    _row(64, 512, 512, 1, 1, rate=1.0, fixed=0),
)
"""The interpreter costs per operation before it costs per element: few programs."""

FP32 = (
    _row(128, 64, 16, 8, 3, rate=1.0, fixed=32, per_sm=2),
    _row(64, 64, 16, 4, 3, rate=0.9, fixed=32, per_sm=4),
    _row(32, 64, 32, 8, 3, rate=0.7, fixed=32, per_sm=3),
)
"""fp32 products stay IEEE (no TF32), so they run on FMA units: small tiles."""

SM_80 = (
    _row(128, 256, 32, 8, 4, 4, rate=1.0, fixed=250),
    _row(128, 128, 32, 8, 4, 4, rate=0.9, fixed=100, per_sm=2),
    _row(64, 128, 64, 4, 3, 2, rate=0.8, fixed=64, per_sm=3),
)

# On Hopper a 128x256 tile reads and writes shared memory for as long as it multiplies; a 128x128 tile for a
# quarter longer, but two of them share an SM, and one's epilogue runs under the other's products.
SM_90_UP = (
    _row(128, 256, 64, 8, 4, 4, rate=1.0, fixed=350),
    _row(128, 128, 64, 8, 3, 4, rate=0.85, fixed=100, per_sm=2),
    _row(128, 128, 64, 4, 3, 4, rate=0.84, fixed=100, per_sm=2),
    _row(64, 256, 64, 8, 3, 2, rate=0.75, fixed=300),
    _row(64, 128, 64, 4, 3, 2, rate=0.65, fixed=64, per_sm=3),
)
SM_90_DOWN = (
    _row(128, 256, 64, 8, 4, 2, rate=1.0, fixed=250),
    _row(128, 128, 64, 8, 3, 2, rate=0.85, fixed=100, per_sm=2),
    _row(128, 128, 64, 4, 3, 2, rate=0.84, fixed=100, per_sm=2),
    _row(64, 256, 64, 8, 3, 2, rate=0.75, fixed=250),
    _row(64, 128, 64, 4, 3, 2, rate=0.65, fixed=64, per_sm=3),
)

# Of the backward kernels. The epilogue of grouped_down_dgrad moves three values an element: in parts of 32
# columns a 128x128 tile leaves registers for two programs an SM on Hopper.
SM_80_DOWN_DGRAD = (
    _row(128, 128, 32, 8, 4, 4, rate=0.9, fixed=200),
    _row(64, 128, 64, 4, 3, 4, rate=0.8, fixed=150, per_sm=3),
)
SM_80_UP_DGRAD = (
    _row(128, 128, 32, 8, 4, 2, rate=0.9, fixed=100),
    _row(64, 128, 64, 4, 3, 2, rate=0.8, fixed=64, per_sm=3),
)
SM_80_WGRAD = (
    _row(128, 128, 32, 8, 4, rate=0.9, fixed=100),
    _row(64, 128, 32, 4, 4, rate=0.7, fixed=64, per_sm=2),
)
SM_90_DOWN_DGRAD = (
    _row(128, 256, 64, 8, 4, 8, rate=1.0, fixed=450),
    _row(128, 128, 64, 8, 3, 4, rate=0.85, fixed=200, per_sm=2),
    _row(64, 256, 64, 8, 3, 8, rate=0.75, fixed=400),
    _row(64, 128, 64, 4, 3, 4, rate=0.65, fixed=150, per_sm=3),
)
SM_90_UP_DGRAD = (
    _row(128, 256, 64, 8, 4, 4, rate=1.0, fixed=250),
    _row(128, 128, 64, 8, 3, 2, rate=0.85, fixed=100, per_sm=2),
    _row(64, 256, 64, 8, 3, 2, rate=0.75, fixed=250),
    _row(64, 128, 64, 4, 3, 2, rate=0.65, fixed=64, per_sm=3),
)
SM_90_WGRAD = (
    _row(128, 256, 64, 8, 4, rate=1.0, fixed=250),
    _row(256, 128, 64, 8, 4, rate=1.0, fixed=250),
    _row(128, 128, 64, 8, 3, rate=0.85, fixed=150, per_sm=2),
    _row(64, 128, 64, 4, 3, rate=0.6, fixed=100, per_sm=3),
)
FP32_BACKWARD = (
    _row(64, 64, 16, 4, 3, 2, rate=1.0, fixed=32, per_sm=2),
    _row(32, 64, 16, 4, 3, rate=0.8, fixed=32, per_sm=2),
)

FP32_WGRAD_SM_86 = (
    _row(64, 64, 16, 8, 3, 2, rate=0.9, fixed=32, per_sm=3),
    _row(32, 64, 16, 4, 3, rate=0.8, fixed=32, per_sm=2),
)
"""Compiled for 8.6 and 8.9 with four warps, the larger one spills 16 bytes a thread."""


def _table(
    sm_80: tuple[Candidate, ...], sm_90: tuple[Candidate, ...], fp32: tuple[Candidate, ...]
) -> dict[tuple[str, str], tuple[Candidate, ...]]:
    return {
        ("interpreter", "half"): INTERPRETER,
        ("interpreter", "fp32"): INTERPRETER,
        ("sm_80", "fp32"): fp32,
        ("sm_90", "fp32"): fp32,
        ("sm_80", "half"): sm_80,
        ("sm_90", "half"): sm_90,
    }


TABLE: dict[str, dict[tuple[str, str], tuple[Candidate, ...]]] = {
    "grouped_up": _table(SM_80, SM_90_UP, FP32),
    "grouped_down": _table(SM_80, SM_90_DOWN, FP32),
    "grouped_down_dgrad": _table(SM_80_DOWN_DGRAD, SM_90_DOWN_DGRAD, FP32_BACKWARD),
    "grouped_up_dgrad": _table(SM_80_UP_DGRAD, SM_90_UP_DGRAD, FP32_BACKWARD),
    "grouped_wgrad": {
        **_table(SM_80_WGRAD, SM_90_WGRAD, FP32_BACKWARD),
        ("sm_86", "fp32"): FP32_WGRAD_SM_86,
    },
}
