"""The experts' forward pass as two grouped GEMMs whose rows are gathered on load and scattered on store.

    grouped_up      act_NF = act(x[source_row // K] w1_e^T + b1_e)         gather, bias, activation
    grouped_down    y_TD   = sum_k gate * (act w2_e^T + b2_e)              bias, gate, scatter

T tokens, K top-k, N = T K routed rows, A = N assignments in token order, E experts, E1 = E + 1, D dim,
F hidden, M rows of an expert, R rows of either order, I and J widths in and out of a product. Row n of the
grouped order belongs to the expert e with offsets[e] <= n < offsets[e + 1] and is assignment source_row[n] =
token * K + k. Products accumulate in fp32; nothing is atomic, so the same input gives the same bits. The host
never learns a length: see ragged.py.

Each launcher has a torch reference of the same signature, which loops over the experts on the host.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.kernels.activations import ACTIVATIONS, activate
from crossearth_sar.kernels.ragged import locate_row_tile, max_row_tiles
from crossearth_sar.kernels.tiles import DTYPES, Tiles, choose_tiles, current_arch

MAX_EXPERTS = 64

# row_tiles is not specialised anywhere: it follows the batch, and would compile a kernel anew at 1 and at
# multiples of 16.


@triton.jit
def place_in_order(program, row_tiles, column_tiles, GROUP_M: tl.constexpr):
    """(row tile, column tile): GROUP_M row tiles share a column of weights before the next column begins."""
    group = program // (GROUP_M * column_tiles)
    within = program - group * (GROUP_M * column_tiles)
    height = tl.minimum(row_tiles - group * GROUP_M, GROUP_M)
    return group * GROUP_M + within % height, within // height


@triton.jit
def tile_product(
    a_ptr, row, b_ptr, first_column, columns, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN_DEPTH: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) fp32: rows `row` of a (., depth) times rows from first_column of b (columns, depth).

    Both operands are contiguous along depth. EVEN_DEPTH promises that BLOCK_K divides it: no masks then.
    """
    step = tl.arange(0, BLOCK_K)
    column = first_column + tl.arange(0, BLOCK_N)
    a = a_ptr + row.to(tl.int64)[:, None] * depth + step[None, :]
    b = b_ptr + tl.where(column < columns, column, 0).to(tl.int64)[:, None] * depth + step[None, :]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, depth, BLOCK_K):
        if EVEN_DEPTH:
            left = tl.load(a)
            right = tl.load(b)
        else:
            left = tl.load(a, mask=step[None, :] < depth - done, other=0.0)
            right = tl.load(b, mask=step[None, :] < depth - done, other=0.0)
        product = tl.dot(left, tl.trans(right), product, input_precision="ieee")
        a += BLOCK_K
        b += BLOCK_K
    return product


@triton.jit
def split_columns(block, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Left and right half of a (BLOCK_M, BLOCK_N) block, each thread keeping what it holds."""
    return block.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()


@triton.jit
def store_up(
    product, row, end, column, expert, bias_ptr, act_ptr, pre_ptr, F, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Bias, activation and stores of a block, in PARTS column parts: less of it is in registers at a time."""
    if PARTS > 1:
        left, right = split_columns(product, BLOCK_M, BLOCK_N)
        store_up(
            left, row, end, column, expert, bias_ptr, act_ptr, pre_ptr, F, ACTIVATION,
            BLOCK_M, BLOCK_N // 2, PARTS // 2,
        )  # fmt: skip
        store_up(
            right, row, end, column + BLOCK_N // 2, expert, bias_ptr, act_ptr, pre_ptr, F, ACTIVATION,
            BLOCK_M, BLOCK_N // 2, PARTS // 2,
        )  # fmt: skip
    else:
        columns = column + tl.arange(0, BLOCK_N)
        bias = tl.load(bias_ptr + expert * F + columns, mask=columns < F, other=0.0).to(tl.float32)
        pre = product + bias[None, :]
        place = row.to(tl.int64)[:, None] * F + columns[None, :]
        inside = (row < end)[:, None] & (columns < F)[None, :]
        if pre_ptr is not None:
            tl.store(pre_ptr + place, pre.to(pre_ptr.dtype.element_ty), mask=inside)
        act = activate(pre, ACTIVATION, act_ptr.dtype.element_ty == tl.float32)
        tl.store(act_ptr + place, act.to(act_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["row_tiles"])
def grouped_up_kernel(
    x_ptr, source_row_ptr, offsets_ptr, weight_ptr, bias_ptr, act_ptr, pre_ptr, row_tiles, D, F,
    TOP_K: tl.constexpr, ACTIVATION: tl.constexpr, E: tl.constexpr, E_POW2: tl.constexpr,
    EVEN_DEPTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M, BLOCK_N) tile of act_NF, and of pre_NF where pre_ptr is given.

    x (T, D), weight (E, F, D), bias (E, F). Grid: row_tiles * cdiv(F, BLOCK_N).
    """
    tile, column_tile = place_in_order(tl.program_id(0), row_tiles, tl.cdiv(F, BLOCK_N), GROUP_M)
    expert, first, end = locate_row_tile(offsets_ptr, tile, E, E_POW2, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    # Rows past the end read row 0, and columns past the end column 0: always there, never stored.
    if source_row_ptr is None:
        token = tl.where(row < end, row, 0)
    else:
        token = tl.load(source_row_ptr + row, mask=row < end, other=0) // TOP_K
    column = column_tile * BLOCK_N
    weight_ptr += expert.to(tl.int64) * F * D
    product = tile_product(x_ptr, token, weight_ptr, column, F, D, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_DEPTH)
    store_up(
        product, row, end, column, expert, bias_ptr, act_ptr, pre_ptr, F, ACTIVATION, BLOCK_M, BLOCK_N, PARTS
    )


@triton.jit
def store_down(
    product, row, assignment, end, gate, column, expert, bias_ptr, y_ptr, D, HAS_GATE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Bias, gate and scatter of a block, in PARTS column parts."""
    if PARTS > 1:
        left, right = split_columns(product, BLOCK_M, BLOCK_N)
        store_down(
            left, row, assignment, end, gate, column, expert, bias_ptr, y_ptr, D, HAS_GATE,
            BLOCK_M, BLOCK_N // 2, PARTS // 2,
        )  # fmt: skip
        store_down(
            right, row, assignment, end, gate, column + BLOCK_N // 2, expert, bias_ptr, y_ptr, D, HAS_GATE,
            BLOCK_M, BLOCK_N // 2, PARTS // 2,
        )  # fmt: skip
    else:
        columns = column + tl.arange(0, BLOCK_N)
        bias = tl.load(bias_ptr + expert * D + columns, mask=columns < D, other=0.0).to(tl.float32)
        y = product + bias[None, :]
        if HAS_GATE:
            y *= gate[:, None]
        place = assignment.to(tl.int64)[:, None] * D + columns[None, :]
        inside = (row < end)[:, None] & (columns < D)[None, :]
        tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["row_tiles"])
def grouped_down_kernel(
    act_ptr, source_row_ptr, offsets_ptr, weight_ptr, bias_ptr, gate_ptr, y_ptr, row_tiles, F, D,
    E: tl.constexpr, E_POW2: tl.constexpr, EVEN_DEPTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M, BLOCK_N) tile of y_AD, written to the rows source_row.

    act (N, F), weight (E, D, F), bias (E, D), gate (A,) or None. Grid: row_tiles * cdiv(D, BLOCK_N).
    """
    tile, column_tile = place_in_order(tl.program_id(0), row_tiles, tl.cdiv(D, BLOCK_N), GROUP_M)
    expert, first, end = locate_row_tile(offsets_ptr, tile, E, E_POW2, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N
    weight_ptr += expert.to(tl.int64) * F * D
    product = tile_product(
        act_ptr, tl.where(row < end, row, 0), weight_ptr, column, D, F, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_DEPTH
    )
    assignment = row if source_row_ptr is None else tl.load(source_row_ptr + row, mask=row < end, other=0)
    if gate_ptr is None:
        gate = assignment
    else:
        gate = tl.load(gate_ptr + assignment, mask=row < end, other=0.0).to(tl.float32)
    store_down(
        product, row, assignment, end, gate, column, expert, bias_ptr, y_ptr, D, gate_ptr is not None,
        BLOCK_M, BLOCK_N, PARTS,
    )  # fmt: skip


def grouped_up(
    x_TD: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    *,
    top_k: int,
    activation: str,
    save_pre: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(act_NF, pre_NF or None): the first GEMM over the rows of each expert, in grouped order.

    Args:
        x_TD: (T, D) tokens, fp32, bf16 or fp16; where source_row is None, (N, D) rows already grouped.
        source_row_N: (N,) int32, or None (then top_k is 1).
        offsets_E1: (E + 1,) int32 on the device.
        w1_EFD, b1_EF: of x's dtype.
        save_pre: whether the values before the activation are wanted (for the backward pass).

    Raises:
        InputError: for shapes, types or devices that do not fit.
    """
    rows, experts, columns, depth = check_grouped(
        x_TD, source_row_N, offsets_E1, w1_EFD, b1_EF, top_k=top_k, rows=None, names=("x", "w1", "b1")
    )
    _check_activation(activation)
    act_NF = torch.empty((rows, columns), dtype=x_TD.dtype, device=x_TD.device)
    pre_NF = torch.empty_like(act_NF) if save_pre else None
    if rows == 0:
        return act_NF, pre_NF

    def launch(tiles: Tiles) -> None:
        row_tiles = max_row_tiles(rows, experts, tiles.block_m)
        grouped_up_kernel[(row_tiles * triton.cdiv(columns, tiles.block_n),)](
            x_TD, source_row_N, offsets_E1, w1_EFD, b1_EF, act_NF, pre_NF, row_tiles, depth, columns,
            TOP_K=top_k, ACTIVATION=activation, **grouped_constants(tiles, experts, depth),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    with on_device_of(x_TD):
        launch(
            tiles
            or choose_tiles(
                "grouped_up", rows=rows, num_experts=experts, columns=columns, depth=depth,
                dtype=x_TD.dtype, arch=current_arch(), trial=launch,
            )
        )  # fmt: skip
    return act_NF, pre_NF


def grouped_up_reference(
    x_TD: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    b1_EF: Tensor,
    *,
    top_k: int,
    activation: str,
    save_pre: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`grouped_up` in plain torch; waits for the device, and ignores `tiles`."""
    check_grouped(
        x_TD, source_row_N, offsets_E1, w1_EFD, b1_EF, top_k=top_k, rows=None, names=("x", "w1", "b1")
    )
    _check_activation(activation)
    rows_ND = x_TD if source_row_N is None else x_TD[source_row_N.long() // top_k]
    pre_NF = _linear_by_expert(rows_ND, offsets_E1, w1_EFD, b1_EF)
    return ACTIVATIONS[activation](pre_NF), pre_NF if save_pre else None


def grouped_down(
    act_NF: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    gate_A: Tensor | None,
    *,
    top_k: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """y_TD: the second GEMM, gated, back in token order and summed over k.

    Args:
        act_NF: (N, F) rows in grouped order.
        source_row_N: (N,) int32, or None (then top_k is 1 and y keeps the grouped order).
        offsets_E1: (E + 1,) int32 on the device.
        w2_EDF, b2_ED: of act's dtype.
        gate_A: (A,) by assignment, any of the three dtypes; None for all ones.

    Raises:
        InputError: for shapes, types or devices that do not fit.
    """
    rows, experts, columns, depth = check_grouped(
        act_NF,
        source_row_N,
        offsets_E1,
        w2_EDF,
        b2_ED,
        top_k=top_k,
        rows=act_NF.shape[0],
        names=("act", "w2", "b2"),
    )
    check_gate(gate_A, rows, act_NF)
    y_AD = torch.empty((rows, columns), dtype=act_NF.dtype, device=act_NF.device)

    def launch(tiles: Tiles) -> None:
        row_tiles = max_row_tiles(rows, experts, tiles.block_m)
        grouped_down_kernel[(row_tiles * triton.cdiv(columns, tiles.block_n),)](
            act_NF, source_row_N, offsets_E1, w2_EDF, b2_ED, gate_A, y_AD, row_tiles, depth, columns,
            **grouped_constants(tiles, experts, depth),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    if rows > 0:
        with on_device_of(act_NF):
            launch(
                tiles
                or choose_tiles(
                    "grouped_down", rows=rows, num_experts=experts, columns=columns, depth=depth,
                    dtype=act_NF.dtype, arch=current_arch(), trial=launch,
                )
            )  # fmt: skip
    return sum_over_k(y_AD, top_k)


def grouped_down_reference(
    act_NF: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    gate_A: Tensor | None,
    *,
    top_k: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """`grouped_down` in plain torch; waits for the device, and ignores `tiles`."""
    rows = act_NF.shape[0]
    check_grouped(
        act_NF, source_row_N, offsets_E1, w2_EDF, b2_ED, top_k=top_k, rows=rows, names=("act", "w2", "b2")
    )
    check_gate(gate_A, rows, act_NF)
    y_ND = _linear_by_expert(act_NF, offsets_E1, w2_EDF, b2_ED)
    y_AD = y_ND if source_row_N is None else torch.zeros_like(y_ND).index_copy(0, source_row_N.long(), y_ND)
    if gate_A is not None:
        y_AD = (y_AD * gate_A[:, None]).to(y_ND.dtype)
    return sum_over_k(y_AD, top_k)


def sum_over_k(rows_AD: Tensor, top_k: int) -> Tensor:
    """(T K, D) rows by assignment -> (T, D): each token's K rows added in the order of k."""
    return rows_AD if top_k == 1 else rows_AD.unflatten(0, (-1, top_k)).sum(1)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def check_grouped(
    rows_RI: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    weight_EJI: Tensor,
    bias_EJ: Tensor,
    *,
    top_k: int,
    rows: int | None,
    names: tuple[str, str, str],
) -> tuple[int, int, int, int]:
    """(N, E, columns, depth) of a product of `rows_RI` (., depth) with `weight_EJI` (E, columns, depth).

    `rows` is N where rows_RI is in grouped order already, else None: N follows from source_row_N. Reads no
    value from the device.

    Raises:
        InputError: for the first thing that does not fit.
    """
    name, weight_name, bias_name = names
    if rows_RI.dtype not in DTYPES:
        raise InputError(f"{name}'s dtype", got=rows_RI.dtype, expected=" | ".join(map(str, DTYPES)))
    if weight_EJI.dim() != 3 or weight_EJI.shape[0] > MAX_EXPERTS or weight_EJI.shape[0] == 0:
        raise InputError(
            f"{weight_name}'s shape", got=tuple(weight_EJI.shape), expected="(1 .. 64 experts, out, in)"
        )
    experts, columns, depth = weight_EJI.shape
    if columns % 16 or depth % 16 or columns == 0 or depth == 0:
        raise InputError(
            f"{weight_name}'s shape", got=tuple(weight_EJI.shape), expected="multiples of 16 in both dims"
        )
    if not 1 <= top_k <= 4 or (source_row_N is None and top_k != 1):
        raise InputError("top_k", got=top_k, expected="1 .. 4, and 1 where source_row is None")
    tokens = rows_RI.shape[0]
    total = rows if rows is not None else tokens * top_k
    expected = {
        name: (rows_RI, (tokens, depth), rows_RI.dtype),
        weight_name: (weight_EJI, (experts, columns, depth), rows_RI.dtype),
        bias_name: (bias_EJ, (experts, columns), rows_RI.dtype),
        "offsets": (offsets_E1, (experts + 1,), torch.int32),
        "source_row": (source_row_N, (total,), torch.int32),
    }
    for label, (tensor, shape, dtype) in expected.items():
        if tensor is not None:
            _check_tensor(label, tensor, shape, dtype, rows_RI.device)
    if total % top_k:
        raise InputError("rows", got=total, expected=f"a multiple of top_k = {top_k}")
    return total, experts, columns, depth


def check_gate(gate_A: Tensor | None, rows: int, like: Tensor) -> None:
    """Raises InputError unless `gate_A` is None or (rows,) of a known dtype on like's device."""
    if gate_A is not None:
        if gate_A.dtype not in DTYPES:
            raise InputError("gate's dtype", got=gate_A.dtype, expected=" | ".join(map(str, DTYPES)))
        _check_tensor("gate", gate_A, (rows,), gate_A.dtype, like.device)


def _check_tensor(
    label: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    got = (tuple(tensor.shape), tensor.dtype, tensor.device)
    if got != (shape, dtype, device):
        raise InputError(
            f"{label} does not fit", got="{}, {}, {}".format(*got), expected=f"{shape}, {dtype}, {device}"
        )
    if not tensor.is_contiguous():
        raise InputError(f"{label} is not contiguous", got=f"strides {tensor.stride()}", fix=".contiguous()")


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise InputError("activation", got=repr(activation), expected=" | ".join(ACTIVATIONS))


def _linear_by_expert(rows_NI: Tensor, offsets_E1: Tensor, weight_EJI: Tensor, bias_EJ: Tensor) -> Tensor:
    counts = offsets_E1.diff().tolist()
    parts = zip(rows_NI.split(counts), weight_EJI.unbind(0), bias_EJ.unbind(0), strict=True)
    return torch.cat([F.linear(rows_MI, weight_JI, bias_J) for rows_MI, weight_JI, bias_J in parts])


def grouped_constants(tiles: Tiles, experts: int, depth: int) -> dict[str, object]:
    """The compile-time arguments that all grouped GEMMs share."""
    return {
        "E": experts,
        "E_POW2": triton.next_power_of_2(experts),
        "EVEN_DEPTH": depth % tiles.block_k == 0,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
        "GROUP_M": tiles.group_m,
        "PARTS": tiles.epilogue_parts,
    }
