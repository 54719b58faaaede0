"""The experts' backward pass with respect to their inputs, as two grouped GEMMs.

    grouped_down_dgrad   dA = dy[source_row // K] w2_e                     gather
                         dpre = gate * dA * act'(pre), act = act(pre)      both written by the epilogue
                         dgate[source_row] = sum_f dA act + dy . b2_e
    grouped_up_dgrad     dx = sum_k dpre w1_e                              scatter

T tokens, K top-k, N = T K routed rows, A = N assignments in token order, E experts, E1 = E + 1, D dim,
F hidden, M rows of an expert, S column parts, I any width; plan and grids as in grouped_forward.py.
The weights are read as they lie: contiguous along the columns of these products, where the forward pass has
them contiguous along the depth.

A gate gradient is a sum over F, so over many tiles: each writes its share to a buffer, and a second kernel
adds the shares in a fixed order. Nothing is atomic, so the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossearth_sar.kernels.activations import ACTIVATIONS, activate_with_derivative
from crossearth_sar.kernels.grouped_forward import (
    grouped_constants,
    on_device_of,
    place_in_order,
    split_columns,
    sum_over_k,
)
from crossearth_sar.kernels.ragged import locate_row_tile, max_row_tiles
from crossearth_sar.kernels.tiles import DTYPES, Tiles, choose_tiles, current_arch


@triton.jit
def tile_product_by_columns(
    a_ptr, row, b_ptr, first_column, columns, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN_DEPTH: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) fp32: rows `row` of a (., depth) times columns from first_column of b (depth, .).

    b is contiguous along its columns. EVEN_DEPTH promises that BLOCK_K divides depth: no masks then. Columns
    past the end wrap around: they read what is there and are never stored.
    """
    step = tl.arange(0, BLOCK_K)
    column = (first_column + tl.arange(0, BLOCK_N)) % columns
    column = tl.max_contiguous(tl.multiple_of(column, 16), 16)  # columns is a multiple of 16
    a = a_ptr + row.to(tl.int64)[:, None] * depth + step[None, :]
    b = b_ptr + step[:, None] * columns + column[None, :]
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, depth, BLOCK_K):
        if EVEN_DEPTH:
            left = tl.load(a)
            right = tl.load(b)
        else:
            left = tl.load(a, mask=step[None, :] < depth - done, other=0.0)
            right = tl.load(b, mask=step[:, None] < depth - done, other=0.0)
        product = tl.dot(left, right, product, input_precision="ieee")
        a += BLOCK_K
        b += BLOCK_K * columns
    return product


@triton.jit
def store_down_dgrad(
    product, row, end, gate, column, pre_ptr, dpre_ptr, act_ptr, share_ptr, rows, F,
    ACTIVATION: tl.constexpr, HAS_GATE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """dpre, act and a share of the gate gradient for a block of dA, in PARTS column parts.

    Each part stores its share at once: a sum carried over the parts would keep all of them in registers.
    """
    if PARTS > 1:
        left, right = split_columns(product, BLOCK_M, BLOCK_N)
        store_down_dgrad(
            left, row, end, gate, column, pre_ptr, dpre_ptr, act_ptr, share_ptr, rows, F,
            ACTIVATION, HAS_GATE, BLOCK_M, BLOCK_N // 2, PARTS // 2,
        )  # fmt: skip
        store_down_dgrad(
            right, row, end, gate, column + BLOCK_N // 2, pre_ptr, dpre_ptr, act_ptr, share_ptr, rows, F,
            ACTIVATION, HAS_GATE, BLOCK_M, BLOCK_N // 2, PARTS // 2,
        )  # fmt: skip
    else:
        columns = column + tl.arange(0, BLOCK_N)
        place = row.to(tl.int64)[:, None] * F + columns[None, :]
        inside = (row < end)[:, None] & (columns < F)[None, :]
        pre = tl.load(pre_ptr + place, mask=inside, other=0.0).to(tl.float32)
        act, slope = activate_with_derivative(pre, ACTIVATION, act_ptr.dtype.element_ty == tl.float32)
        tl.store(act_ptr + place, act.to(act_ptr.dtype.element_ty), mask=inside)
        dpre = product * slope
        if HAS_GATE:
            dpre *= gate[:, None]
        tl.store(dpre_ptr + place, dpre.to(dpre_ptr.dtype.element_ty), mask=inside)
        if share_ptr is not None:
            # act(0) = 0 for every activation, but product is not 0 in a column that wrapped around.
            share = tl.sum(tl.where(inside, product * act, 0.0), 1)
            tl.store(share_ptr + (column // BLOCK_N).to(tl.int64) * rows + row, share, mask=row < end)


@triton.jit(do_not_specialize=["row_tiles", "rows"])
def grouped_down_dgrad_kernel(
    dy_ptr, source_row_ptr, offsets_ptr, weight_ptr, gate_ptr, pre_ptr, dpre_ptr, act_ptr, share_ptr,
    row_tiles, rows, D, F, TOP_K: tl.constexpr, ACTIVATION: tl.constexpr, E: tl.constexpr,
    E_POW2: tl.constexpr, EVEN_DEPTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M, BLOCK_N) tile of dpre_NF and act_NF, and of the shares where share_ptr is given.

    dy (T, D), weight (E, D, F), gate (A,) or None, pre (N, F), share (column parts, N) fp32 or None. Grid:
    row_tiles * cdiv(F, BLOCK_N).
    """
    tile, column_tile = place_in_order(tl.program_id(0), row_tiles, tl.cdiv(F, BLOCK_N), GROUP_M)
    expert, first, end = locate_row_tile(offsets_ptr, tile, E, E_POW2, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    # Rows past the end read the last row of the expert: always there, never stored.
    assignment = tl.minimum(row, end - 1)
    if source_row_ptr is not None:
        assignment = tl.load(source_row_ptr + assignment)
    column = column_tile * BLOCK_N
    weight_ptr += expert.to(tl.int64) * F * D
    product = tile_product_by_columns(
        dy_ptr, assignment // TOP_K, weight_ptr, column, F, D, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_DEPTH
    )
    gate = assignment if gate_ptr is None else tl.load(gate_ptr + assignment).to(tl.float32)
    store_down_dgrad(
        product, row, end, gate, column, pre_ptr, dpre_ptr, act_ptr, share_ptr, rows, F,
        ACTIVATION, gate_ptr is not None, BLOCK_M, BLOCK_N, PARTS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "parts"])
def gate_grad_kernel(
    dy_ptr, source_row_ptr, offsets_ptr, bias_ptr, share_ptr, dgate_ptr, rows, parts, D,
    TOP_K: tl.constexpr, E: tl.constexpr, E_POW2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """dgate of BLOCK_M rows: dy . b2 of their expert, and their shares in a fixed order.

    dy (T, D), bias (E, D), share (parts, N) fp32, dgate (A,). Grid: max_row_tiles.
    """
    expert, first, end = locate_row_tile(offsets_ptr, tl.program_id(0), E, E_POW2, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    inside = row < end
    assignment = tl.minimum(row, end - 1)
    if source_row_ptr is not None:
        assignment = tl.load(source_row_ptr + assignment)
    start = (assignment // TOP_K).to(tl.int64) * D
    products = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for done in range(0, D, BLOCK_D):
        column = done + tl.arange(0, BLOCK_D)
        dy = tl.load(dy_ptr + start[:, None] + column[None, :], mask=(column < D)[None, :], other=0.0)
        bias = tl.load(bias_ptr + expert * D + column, mask=column < D, other=0.0)
        products += dy.to(tl.float32) * bias.to(tl.float32)[None, :]
    shares = tl.zeros((BLOCK_PARTS, BLOCK_M), tl.float32)
    for done in range(0, parts, BLOCK_PARTS):
        part = done + tl.arange(0, BLOCK_PARTS)
        mask = (part < parts)[:, None] & inside[None, :]
        shares += tl.load(share_ptr + part.to(tl.int64)[:, None] * rows + row[None, :], mask=mask, other=0.0)
    dgate = tl.sum(products, 1) + tl.sum(shares, 0)
    tl.store(dgate_ptr + assignment, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)


@triton.jit
def store_up_dgrad(
    product, row, assignment, end, column, dx_ptr, D, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Scatter of a block, in PARTS column parts."""
    if PARTS > 1:
        left, right = split_columns(product, BLOCK_M, BLOCK_N)
        store_up_dgrad(left, row, assignment, end, column, dx_ptr, D, BLOCK_M, BLOCK_N // 2, PARTS // 2)
        store_up_dgrad(
            right, row, assignment, end, column + BLOCK_N // 2, dx_ptr, D, BLOCK_M, BLOCK_N // 2, PARTS // 2
        )
    else:
        columns = column + tl.arange(0, BLOCK_N)
        place = assignment.to(tl.int64)[:, None] * D + columns[None, :]
        inside = (row < end)[:, None] & (columns < D)[None, :]
        tl.store(dx_ptr + place, product.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["row_tiles"])
def grouped_up_dgrad_kernel(
    dpre_ptr, source_row_ptr, offsets_ptr, weight_ptr, dx_ptr, row_tiles, F, D, E: tl.constexpr,
    E_POW2: tl.constexpr, EVEN_DEPTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M, BLOCK_N) tile of dx_AD, written to the rows source_row.

    dpre (N, F), weight (E, F, D). Grid: row_tiles * cdiv(D, BLOCK_N).
    """
    tile, column_tile = place_in_order(tl.program_id(0), row_tiles, tl.cdiv(D, BLOCK_N), GROUP_M)
    expert, first, end = locate_row_tile(offsets_ptr, tile, E, E_POW2, BLOCK_M)
    if expert >= E:
        return
    row = first + tl.arange(0, BLOCK_M)
    there = tl.minimum(row, end - 1)
    column = column_tile * BLOCK_N
    weight_ptr += expert.to(tl.int64) * F * D
    product = tile_product_by_columns(
        dpre_ptr, there, weight_ptr, column, D, F, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_DEPTH
    )
    assignment = there if source_row_ptr is None else tl.load(source_row_ptr + there)
    store_up_dgrad(product, row, assignment, end, column, dx_ptr, D, BLOCK_M, BLOCK_N, PARTS)


def grouped_down_dgrad(
    dy_TD: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    gate_A: Tensor | None,
    pre_NF: Tensor,
    *,
    top_k: int,
    activation: str,
    want_gate_grad: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dpre_NF, act_NF, dgate_A or None): back through the gate, the second GEMM and the activation.

    The arguments are those of a forward pass that has checked them, contiguous.

    Args:
        dy_TD: (T, D) gradient of the layer's output; where source_row_N is None, (N, D) in grouped order.
        w2_EDF, b2_ED: of dy's dtype; b2 is read for dgate only.
        gate_A: (A,) by assignment, or None for all ones.
        pre_NF: (N, F) values before the activation, in grouped order.
        want_gate_grad: needs a gate; dgate has its dtype.
    """
    rows, (experts, depth, columns) = pre_NF.shape[0], w2_EDF.shape
    assert_fits(dy_TD, (rows // top_k, depth), dy_TD)
    assert_fits(pre_NF, (rows, columns), dy_TD)
    assert_fits(w2_EDF, (experts, depth, columns), dy_TD)
    assert_fits(b2_ED, (experts, depth), dy_TD)
    assert activation in ACTIVATIONS
    assert gate_A is None or (gate_A.shape == (rows,) and gate_A.is_contiguous())
    assert gate_A is not None or not want_gate_grad
    assert_plan(source_row_N, offsets_E1, rows, experts, top_k)
    dpre_NF, act_NF = torch.empty_like(pre_NF), torch.empty_like(pre_NF)
    dgate_A = torch.empty_like(gate_A) if gate_A is not None and want_gate_grad else None
    if rows == 0:
        return dpre_NF, act_NF, dgate_A

    def launch(tiles: Tiles) -> None:
        row_tiles = max_row_tiles(rows, experts, tiles.block_m)
        column_tiles = triton.cdiv(columns, tiles.block_n)
        parts = column_tiles * tiles.epilogue_parts
        share_SN = (
            torch.empty((parts, rows), dtype=torch.float32, device=dy_TD.device)
            if dgate_A is not None
            else None
        )
        grouped_down_dgrad_kernel[(row_tiles * column_tiles,)](
            dy_TD, source_row_N, offsets_E1, w2_EDF, gate_A, pre_NF, dpre_NF, act_NF, share_SN, row_tiles,
            rows, depth, columns, TOP_K=top_k, ACTIVATION=activation,
            **grouped_constants(tiles, experts, depth),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        if dgate_A is not None:
            block_m, block_d = (64, 1024) if current_arch() == "interpreter" else (32, 128)
            gate_grad_kernel[(max_row_tiles(rows, experts, block_m),)](
                dy_TD, source_row_N, offsets_E1, b2_ED, share_SN, dgate_A, rows, parts, depth,
                TOP_K=top_k, E=experts, E_POW2=triton.next_power_of_2(experts), BLOCK_M=block_m,
                BLOCK_D=block_d, BLOCK_PARTS=32, num_warps=4,
            )  # fmt: skip

    with on_device_of(dy_TD):
        launch(
            tiles
            or choose_tiles(
                "grouped_down_dgrad", rows=rows, num_experts=experts, columns=columns, depth=depth,
                dtype=dy_TD.dtype, arch=current_arch(), trial=launch,
            )
        )  # fmt: skip
    return dpre_NF, act_NF, dgate_A


def grouped_down_dgrad_reference(
    dy_TD: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w2_EDF: Tensor,
    b2_ED: Tensor,
    gate_A: Tensor | None,
    pre_NF: Tensor,
    *,
    top_k: int,
    activation: str,
    want_gate_grad: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`grouped_down_dgrad` in plain torch; waits for the device, and ignores `tiles`."""
    assignment_N = _assignments(source_row_N, pre_NF)
    dy_ND = dy_TD[assignment_N // top_k]
    counts = offsets_E1.diff().tolist()
    da_NF = torch.cat(
        [dy_MD @ w2_DF for dy_MD, w2_DF in zip(dy_ND.split(counts), w2_EDF.unbind(0), strict=True)]
    )
    gated_NF = da_NF if gate_A is None else (da_NF * gate_A[assignment_N, None]).to(da_NF.dtype)
    with torch.enable_grad():
        leaf_NF = pre_NF.detach().requires_grad_()
        act_NF = ACTIVATIONS[activation](leaf_NF)
        (dpre_NF,) = torch.autograd.grad(act_NF, leaf_NF, gated_NF)
    act_NF = act_NF.detach()
    if gate_A is None or not want_gate_grad:
        return dpre_NF, act_NF, None
    exact = torch.promote_types(dy_TD.dtype, torch.float32)
    expert_N = torch.repeat_interleave(torch.arange(len(counts), device=offsets_E1.device), offsets_E1.diff())
    dgate_N = (da_NF.to(exact) * act_NF.to(exact)).sum(1) + (dy_ND.to(exact) * b2_ED.to(exact)[expert_N]).sum(
        1
    )
    return dpre_NF, act_NF, torch.zeros_like(gate_A).index_copy(0, assignment_N, dgate_N.to(gate_A.dtype))


def grouped_up_dgrad(
    dpre_NF: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    *,
    top_k: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """dx_TD: back through the first GEMM, in token order and summed over k.

    Args:
        dpre_NF: (N, F) rows in grouped order.
        source_row_N: (N,) int32, or None (then dx keeps the grouped order).
        w1_EFD: of dpre's dtype.
    """
    rows, (experts, depth, columns) = dpre_NF.shape[0], w1_EFD.shape
    assert_fits(dpre_NF, (rows, depth), dpre_NF)
    assert_fits(w1_EFD, (experts, depth, columns), dpre_NF)
    assert_plan(source_row_N, offsets_E1, rows, experts, top_k)
    dx_AD = torch.empty((rows, columns), dtype=dpre_NF.dtype, device=dpre_NF.device)

    def launch(tiles: Tiles) -> None:
        row_tiles = max_row_tiles(rows, experts, tiles.block_m)
        grouped_up_dgrad_kernel[(row_tiles * triton.cdiv(columns, tiles.block_n),)](
            dpre_NF, source_row_N, offsets_E1, w1_EFD, dx_AD, row_tiles, depth, columns,
            **grouped_constants(tiles, experts, depth),
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip

    if rows > 0:
        with on_device_of(dpre_NF):
            launch(
                tiles
                or choose_tiles(
                    "grouped_up_dgrad", rows=rows, num_experts=experts, columns=columns, depth=depth,
                    dtype=dpre_NF.dtype, arch=current_arch(), trial=launch,
                )
            )  # fmt: skip
    return sum_over_k(dx_AD, top_k)


def grouped_up_dgrad_reference(
    dpre_NF: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    w1_EFD: Tensor,
    *,
    top_k: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """`grouped_up_dgrad` in plain torch; waits for the device, and ignores `tiles`."""
    parts = zip(dpre_NF.split(offsets_E1.diff().tolist()), w1_EFD.unbind(0), strict=True)
    dx_ND = torch.cat([dpre_MF @ w1_FD for dpre_MF, w1_FD in parts])
    return sum_over_k(
        dx_ND.new_zeros(dx_ND.shape).index_copy(0, _assignments(source_row_N, dpre_NF), dx_ND), top_k
    )


def assert_fits(tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """`tensor` is contiguous, of `shape`, and of the dtype and device of `like`; its dtype has kernels."""
    assert tensor.shape == shape, f"{tuple(tensor.shape)} for {shape}"
    assert tensor.dtype == like.dtype, f"{tensor.dtype} for {like.dtype}"
    assert tensor.dtype in DTYPES, f"no kernels for {tensor.dtype}"
    assert tensor.device == like.device, f"{tensor.device} for {like.device}"
    assert tensor.is_contiguous(), f"strides {tensor.stride()}"


def assert_plan(source_row_N: Tensor | None, offsets_E1: Tensor, rows: int, experts: int, top_k: int) -> None:
    """The routing plan has the shapes and types of the contract in grouped_forward.py."""
    assert offsets_E1.shape == (experts + 1,)
    assert offsets_E1.dtype == torch.int32
    if source_row_N is None:
        assert top_k == 1
    else:
        assert source_row_N.shape == (rows,)
        assert source_row_N.dtype == torch.int32
        assert rows % top_k == 0


def _assignments(source_row_N: Tensor | None, rows_NI: Tensor) -> Tensor:
    return torch.arange(len(rows_NI), device=rows_NI.device) if source_row_N is None else source_row_N.long()
