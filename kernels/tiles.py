"""Which tiles a grouped GEMM runs with: a table of candidates per kernel, and an estimate to choose by.

`choose_tiles` takes the candidate with the least estimated time: the programs of the busiest SM, times a
program's area times (depth + fixed_depth) over its rate. rate is the main loop's throughput relative to the
best tiles, with `programs_per_sm` of them sharing an SM; fixed_depth is what the prologue and the epilogue
leave uncovered, as the depth it is worth. The shipped figures (tile_table.py) are arithmetic on shared memory
bandwidth and on instructions per element; what was timed on a machine goes above them.

Rows are counted per expert and rounded up to 2^n or 3 * 2^(n - 1), so that neighbouring batches share tiles
and nothing is compiled anew for each.

CROSSEARTH_AUTOTUNE=1 times every candidate at the first use in each bucket (it waits for the device, and is
put off while a CUDA graph is captured) and keeps the fastest in the JSON file named by CROSSEARTH_TILE_TABLE,
by default crossearth_tiles.json in the working directory. CROSSEARTH_TILE_TABLE=<that file>, without
CROSSEARTH_AUTOTUNE, uses what was found; buckets it lacks follow the rule above.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

from crossearth_sar.errors import InputError

SHARED_LIMIT = {"sm_80": 166_912, "sm_86": 101_376, "sm_90": 232_448}
"""Bytes of shared memory one program may use; sm_86 is 8.6, 8.7, 8.9 and consumer Blackwell, 12.x."""

SMS = {"sm_80": 108, "sm_86": 84, "sm_90": 132, "interpreter": 1}
"""Multiprocessors counted on: A100, RTX 3090 class, H100 and H200."""

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """One program's output tile, its step in depth, and how it is compiled and ordered.

    group_m row tiles share each column of weights before the next column begins (L2 reuse). split_k programs
    share one output tile of a ragged reduction (grouped_wgrad only). The epilogue works on epilogue_parts
    column parts of the tile in turn, which saves registers. num_warps and num_stages are Triton's.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 8
    split_k: int = 1
    epilogue_parts: int = 1

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise InputError(f"Tiles.{name}", got=size, expected="a power of two, at least 16")
        for name in ("num_warps", "num_stages", "group_m", "split_k", "epilogue_parts"):
            if getattr(self, name) < 1:
                raise InputError(f"Tiles.{name}", got=getattr(self, name), expected="at least 1")

    @property
    def label(self) -> str:
        """Such as 128x256x64 w8 s3, for tables."""
        parts = f" p{self.epilogue_parts}" if self.epilogue_parts > 1 else ""
        split = f" k{self.split_k}" if self.split_k > 1 else ""
        blocks = f"{self.block_m}x{self.block_n}x{self.block_k}"
        return f"{blocks} w{self.num_warps} s{self.num_stages}{parts}{split}"

    def operand_bytes(self, itemsize: int) -> int:
        """Shared memory of the pipelined operand blocks; what an epilogue needs is less."""
        return (self.block_m + self.block_n) * self.block_k * itemsize * self.num_stages


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Tiles with the estimate they are chosen by; see the module docstring."""

    tiles: Tiles
    rate: float
    fixed_depth: int
    programs_per_sm: int


def current_arch() -> str:
    """ "interpreter", or the row of SHARED_LIMIT whose tiles fit the current GPU.

    Raises:
        InputError: where no kernel could run.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    if not torch.cuda.is_available():
        raise InputError("no CUDA device", fix="TRITON_INTERPRET=1 runs the kernels slowly on a CPU")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise InputError("the GPU is too old", got=f"compute capability {major}.{minor}", expected=">= 8.0")
    if (major, minor) == (8, 0):
        return "sm_80"
    return "sm_90" if 9 <= major < 12 else "sm_86"


def rows_bucket(rows: int, num_experts: int) -> int:
    """Rows per expert, rounded up to 2^n or 3 * 2^(n - 1)."""
    per_expert = max(1, -(-rows // num_experts))
    power = 1 << (per_expert - 1).bit_length()
    three_quarters = power * 3 // 4
    return three_quarters if power >= 4 and per_expert <= three_quarters else power


def choose_tiles(
    kernel_name: str,
    *,
    rows: int,
    num_experts: int,
    columns: int,
    depth: int,
    dtype: torch.dtype,
    arch: str,
    trial: Callable[[Tiles], object] | None = None,
) -> Tiles:
    """The tiles to run `kernel_name` with.

    Args:
        rows: routed rows N, all experts together.
        columns: width of the output. For grouped_wgrad, of an expert's (I, J) output: J.
        depth: length of the reduction. For grouped_wgrad, where that is the rows: I.
        arch: as `current_arch` gives it.
        trial: launches the kernel with given tiles; timed only where CROSSEARTH_AUTOTUNE=1.

    Raises:
        InputError: for a kernel, dtype or architecture the table does not know.
    """
    if dtype not in DTYPES:
        raise InputError("dtype", got=dtype, expected=" | ".join(map(str, DTYPES)))
    bucket = rows_bucket(rows, num_experts)
    shape = (kernel_name, bucket, num_experts, columns, depth, DTYPES[dtype], arch)
    file = os.environ.get("CROSSEARTH_TILE_TABLE")
    tuning = os.environ.get("CROSSEARTH_AUTOTUNE") == "1" and trial is not None and arch != "interpreter"
    if file is not None or tuning:
        found = _tuned_tiles(Path(file or "crossearth_tiles.json"), shape, trial if tuning else None)
        if found is not None:
            return found
    return _estimated_best(*shape)


def candidates(kernel_name: str, dtype_name: str, arch: str) -> tuple[Candidate, ...]:
    """The shipped candidates of a kernel, those that fit the architecture's shared memory.

    Raises:
        InputError: for what the table does not know.
    """
    from crossearth_sar.kernels.tile_table import TABLE

    precision = "fp32" if dtype_name == "fp32" else "half"
    key = (arch, precision)
    if arch == "sm_86" and key not in TABLE.get(kernel_name, {}):
        key = ("sm_80", precision)
    if kernel_name not in TABLE or key not in TABLE[kernel_name]:
        known = ", ".join(f"{name} {arch}" for name, rows in TABLE.items() for arch, _ in rows)
        raise InputError("no tiles for this kernel", got=f"{kernel_name} {arch}", expected=known)
    itemsize = 4 if precision == "fp32" else 2
    limit = SHARED_LIMIT.get(arch, 1 << 62)
    return tuple(c for c in TABLE[kernel_name][key] if c.tiles.operand_bytes(itemsize) <= limit)


@lru_cache(maxsize=4096)
def _estimated_best(
    kernel_name: str, bucket: int, num_experts: int, columns: int, depth: int, dtype_name: str, arch: str
) -> Tiles:
    pool = candidates(kernel_name, dtype_name, arch)
    if kernel_name == "grouped_wgrad":
        pool = tuple(_with_split(c, bucket, num_experts, columns, depth, arch) for c in pool)

    def cost(candidate: Candidate) -> float:
        return estimated_cost(
            candidate,
            kernel_name=kernel_name,
            bucket=bucket,
            num_experts=num_experts,
            columns=columns,
            depth=depth,
            arch=arch,
        )

    return min(pool, key=cost).tiles


def estimated_cost(
    candidate: Candidate,
    *,
    kernel_name: str,
    bucket: int,
    num_experts: int,
    columns: int,
    depth: int,
    arch: str,
) -> float:
    """Relative time by the rule in the module docstring; only ratios for one shape mean anything."""
    tiles = candidate.tiles
    column_tiles = -(-columns // tiles.block_n)
    if kernel_name == "grouped_wgrad":
        programs: float = num_experts * -(-depth // tiles.block_m) * column_tiles * tiles.split_k
        reduction = -(-bucket // tiles.split_k)
    else:
        # A last tile half full on average; one expert with a full bucket would be the exception.
        programs = num_experts * max(1.0, bucket / tiles.block_m + 0.5) * column_tiles
        reduction = depth
    turns = math.ceil(programs / SMS[arch])
    return turns * tiles.block_m * tiles.block_n * (reduction + candidate.fixed_depth) / candidate.rate


def _with_split(
    candidate: Candidate, bucket: int, num_experts: int, columns: int, depth: int, arch: str
) -> Candidate:
    """Splits the ragged reduction while slots stay empty and every share keeps 512 rows."""
    tiles = candidate.tiles
    outputs = num_experts * -(-depth // tiles.block_m) * -(-columns // tiles.block_n)
    slots = SMS[arch] * candidate.programs_per_sm
    split = 1
    while arch != "interpreter" and split < 16 and outputs * split < slots and bucket // (2 * split) >= 512:
        split *= 2
    changed = Tiles(**{**asdict(tiles), "split_k": split})
    return Candidate(**{**vars(candidate), "tiles": changed})


def time_trial(launch: Callable[[], object]) -> float:
    """Median milliseconds of a launch on the current device."""
    from triton.testing import do_bench

    return float(do_bench(launch, warmup=10, rep=40, return_mode="median"))


def _tuned_tiles(
    file: Path, shape: tuple[str, int, int, int, int, str, str], trial: Callable[[Tiles], object] | None
) -> Tiles | None:
    """What `file` holds for the bucket; if nothing and a trial is given, the fastest candidate, then kept."""
    kernel_name, bucket, num_experts, columns, depth, dtype_name, arch = shape
    key = f"{kernel_name} {arch} {dtype_name} rows<={bucket} E{num_experts} {columns}x{depth}"
    table = read_tile_table(file, must_exist=trial is None)
    if key in table:
        return table[key]
    if trial is None or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return None
    pool = candidates(kernel_name, dtype_name, arch)
    if kernel_name == "grouped_wgrad":
        pool = tuple(_with_split(c, bucket, num_experts, columns, depth, arch) for c in pool)
    milliseconds = {c.tiles: time_trial(lambda t=c.tiles: trial(t)) for c in pool}  # type: ignore[misc]
    best = min(milliseconds, key=lambda t: milliseconds[t])
    write_tile_table(file, {**read_tile_table(file), key: best})
    return best


@lru_cache(maxsize=8)
def _parsed_table(file: Path, modified_ns: int, size: int) -> dict[str, Tiles]:
    del modified_ns, size  # they only tell a rewritten file from the one already read
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return {key: Tiles(**fields) for key, fields in raw.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the tile table {file} cannot be read",
            got=str(error),
            expected="a file that CROSSEARTH_AUTOTUNE=1 wrote",
        ) from error


def read_tile_table(file: Path, *, must_exist: bool = False) -> dict[str, Tiles]:
    """The tuned tiles in `file` by bucket; empty where there is no file yet.

    Raises:
        InputError: for a file that is not such a table, or none where one must exist.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        if must_exist:
            raise InputError(
                "CROSSEARTH_TILE_TABLE names no file", got=str(file), fix="write one: CROSSEARTH_AUTOTUNE=1"
            ) from None
        return {}
    return _parsed_table(file, status.st_mtime_ns, status.st_size)


def write_tile_table(file: Path, table: dict[str, Tiles]) -> None:
    """Replaces `file` in one step, so that a reader never sees half of it."""
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    rows = {key: asdict(tiles) for key, tiles in sorted(table.items())}
    draft.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)
