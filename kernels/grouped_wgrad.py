"""The experts' weight gradients: a grouped GEMM whose depth is ragged, the rows of each expert.

    dw_e = L_e^T R_e          db_e = column sums of L_e          over the rows n of expert e

N routed rows, A = N assignments in token order, T tokens, E experts, E1 = E + 1, S shares, M rows of one;
(I, J) an expert's gradient, `height` and `width` in the kernels: dw1, db1 come from L = dpre (N, F) and R = x
gathered by row; dw2, db2 from L = dy gathered by row and R = act (N, F). Plan as in grouped_forward.py. Rows
that a gather reads are multiplied by the gate, where there is one.

db comes from the tensor cores too, as a product with 16 columns of ones, in the programs of the first column
of tiles only: adding up L in registers would stall the loop that feeds the product.

Work is dealt out in two ways, chosen on the host from shapes alone:
- whole experts, the longest first, where an expert has tiles enough to fill the GPU;
- shares of at most `rows_per_share` rows, each expert cut into equal ones. An expert with a single share is
  written at once; the shares of the others go to an fp32 buffer and a second kernel adds them in order. With
  few tiles this fills the GPU, and it bounds what one long expert costs.
Nothing is atomic, so the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossearth_sar.kernels.grouped_dgrad import assert_fits, assert_plan
from crossearth_sar.kernels.grouped_forward import on_device_of
from crossearth_sar.kernels.ragged import max_row_tiles
from crossearth_sar.kernels.tiles import SMS, Tiles, choose_tiles, current_arch


@triton.jit
def longest_expert_first(offsets_ptr, item, E: tl.constexpr, E_POW2: tl.constexpr):
    """(expert, begin, end) of the item-th expert by number of rows; ties go by index."""
    expert = tl.arange(0, E_POW2)
    begin = tl.load(offsets_ptr + expert, mask=expert < E, other=0)
    end = tl.load(offsets_ptr + expert + 1, mask=expert < E, other=0)
    count = tl.where(expert < E, end - begin, -1)
    is_longer = count[:, None] > count[None, :]
    is_earlier = (count[:, None] == count[None, :]) & (expert[:, None] < expert[None, :])
    rank = tl.sum((is_longer | is_earlier).to(tl.int32), 0)
    is_mine = rank == item
    mine = tl.sum(tl.where(is_mine, expert, 0), 0)
    return mine, tl.sum(tl.where(is_mine, begin, 0), 0), tl.sum(tl.where(is_mine, end, 0), 0)


@triton.jit
def count_shares(offsets_ptr, rows_per_share, E: tl.constexpr, E_POW2: tl.constexpr):
    """(expert, begin, end, number of shares), each (E_POW2,); an empty expert has none."""
    expert = tl.arange(0, E_POW2)
    begin = tl.load(offsets_ptr + expert, mask=expert < E, other=0)
    end = tl.load(offsets_ptr + expert + 1, mask=expert < E, other=0)
    return expert, begin, end, (end - begin + rows_per_share - 1) // rows_per_share


@triton.jit
def locate_share(
    offsets_ptr, item, rows_per_share, E: tl.constexpr, E_POW2: tl.constexpr, BLOCK_K: tl.constexpr
):
    """(expert, its number of shares, begin, end) of share number `item`; expert >= E past the last.

    Shares of an expert are equal but for the rounding to BLOCK_K rows, so the last may be short or empty.
    """
    expert, begin, end, shares = count_shares(offsets_ptr, rows_per_share, E, E_POW2)
    shares_until = tl.cumsum(shares, 0)
    mine = tl.sum((shares_until <= item).to(tl.int32), 0)
    is_mine = expert == mine
    number = tl.sum(tl.where(is_mine, shares, 0), 0)
    index = item - tl.sum(tl.where(is_mine, shares_until - shares, 0), 0)
    first = tl.sum(tl.where(is_mine, begin, 0), 0)
    last = tl.sum(tl.where(is_mine, end, 0), 0)
    length = tl.cdiv(tl.cdiv(last - first, tl.maximum(number, 1)), BLOCK_K) * BLOCK_K
    share_begin = tl.minimum(first + index * length, last)
    return mine, number, share_begin, tl.minimum(share_begin + length, last)


@triton.jit
def share_product(
    left_ptr, right_ptr, source_row_ptr, gate_ptr, begin, end, left_column, right_column, height, width,
    WITH_SUMS: tl.constexpr, GATHER: tl.constexpr, TOP_K: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows begin .. end of (left^T right, column sums of left): (BLOCK_M, BLOCK_N) and (BLOCK_M,) fp32.

    The sums are zeros unless WITH_SUMS. left is loaded transposed, which keeps the copies asynchronous on
    every architecture; a tl.trans of the loaded block does not on sm_80.
    """
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    sums = tl.zeros((BLOCK_M, 16), tl.float32)
    ones = tl.full((BLOCK_K, 16), 1.0, left_ptr.dtype.element_ty)
    # height and width are multiples of 16
    left_column = tl.max_contiguous(tl.multiple_of(left_column % height, 16), 16)
    right_column = tl.max_contiguous(tl.multiple_of(right_column % width, 16), 16)
    for start in range(begin, end, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        inside = row < end
        assignment = row
        if source_row_ptr is not None:
            assignment = tl.load(source_row_ptr + row, mask=inside, other=0)
        left_row = (assignment // TOP_K if GATHER == "left" else row).to(tl.int64)
        right_row = (assignment // TOP_K if GATHER == "right" else row).to(tl.int64)
        left = tl.load(
            left_ptr + left_column[:, None] + left_row[None, :] * height, mask=inside[None, :], other=0.0
        )
        right = tl.load(
            right_ptr + right_row[:, None] * width + right_column[None, :], mask=inside[:, None], other=0.0
        )
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + assignment, mask=inside, other=0.0).to(tl.float32)
            if GATHER == "left":
                left = (left.to(tl.float32) * gate[None, :]).to(left_ptr.dtype.element_ty)
            else:
                right = (right.to(tl.float32) * gate[:, None]).to(right_ptr.dtype.element_ty)
        product = tl.dot(left, right, product, input_precision="ieee")
        if WITH_SUMS:
            sums = tl.dot(left, ones, sums, input_precision="ieee")
    return product, tl.sum(sums, 1) * 0.0625  # 16 equal columns: their sum is exact


@triton.jit
def store_gradients(
    product, sums, dw_ptr, db_ptr, slot, row_tile, column_tile, height, width, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes a tile to dw[slot], and its sums to db[slot] from the first column of tiles."""
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    place = slot.to(tl.int64) * height * width + row[:, None] * width + column[None, :]
    inside = (row < height)[:, None] & (column < width)[None, :]
    tl.store(dw_ptr + place, product.to(dw_ptr.dtype.element_ty), mask=inside)
    if column_tile == 0:
        tl.store(
            db_ptr + slot.to(tl.int64) * height + row, sums.to(db_ptr.dtype.element_ty), mask=row < height
        )


@triton.jit(do_not_specialize=["rows_per_share"])
def grouped_wgrad_kernel(
    left_ptr, right_ptr, source_row_ptr, offsets_ptr, gate_ptr, dw_ptr, db_ptr, dw_share_ptr, db_share_ptr,
    rows_per_share, height, width, GATHER: tl.constexpr, TOP_K: tl.constexpr, E: tl.constexpr,
    E_POW2: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One (BLOCK_M, BLOCK_N) tile of dw of an expert, or of a share of its rows where dw_share_ptr is given.

    left (N, I) and right (N, J), of which the one named by GATHER is read at row source_row // TOP_K and
    gated; dw (E, I, J), db (E, I); dw_share (S, I, J) and db_share (S, I) fp32, or None. Grid:
    experts or shares, times tiles.
    """
    column_tiles = tl.cdiv(width, BLOCK_N)
    tiles = tl.cdiv(height, BLOCK_M) * column_tiles
    item = tl.program_id(0) // tiles
    within = tl.program_id(0) % tiles
    row_tile = within // column_tiles
    column_tile = within % column_tiles
    if dw_share_ptr is None:
        expert, begin, end = longest_expert_first(offsets_ptr, item, E, E_POW2)
        shares = 1
    else:
        expert, shares, begin, end = locate_share(offsets_ptr, item, rows_per_share, E, E_POW2, BLOCK_K)
        if expert >= E:
            return
    left_column = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    right_column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if column_tile == 0:
        product, sums = share_product(
            left_ptr, right_ptr, source_row_ptr, gate_ptr, begin, end, left_column, right_column,
            height, width, True, GATHER, TOP_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        product, sums = share_product(
            left_ptr, right_ptr, source_row_ptr, gate_ptr, begin, end, left_column, right_column,
            height, width, False, GATHER, TOP_K, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    if dw_share_ptr is None or shares == 1:
        store_gradients(
            product, sums, dw_ptr, db_ptr, expert, row_tile, column_tile, height, width, BLOCK_M, BLOCK_N
        )
    else:
        store_gradients(
            product, sums, dw_share_ptr, db_share_ptr, item, row_tile, column_tile, height, width,
            BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows_per_share"])
def sum_shares_kernel(
    share_ptr, offsets_ptr, out_ptr, rows_per_share, size, E: tl.constexpr, E_POW2: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[expert] = its shares, added in order; zeros for an empty expert; nothing where there is one share.

    share (shares, size) fp32, out (E, size). Grid: (cdiv(size, BLOCK), E).
    """
    mine = tl.program_id(1)
    expert, _, _, shares = count_shares(offsets_ptr, rows_per_share, E, E_POW2)
    number = tl.sum(tl.where(expert == mine, shares, 0), 0)
    if number == 1:
        return
    slot = tl.sum(tl.where(expert < mine, shares, 0), 0).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for index in range(number):
        total += tl.load(share_ptr + (slot + index) * size + place, mask=place < size, other=0.0)
    at = out_ptr + mine.to(tl.int64) * size + place
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=place < size)


def grouped_wgrad(
    left_NI: Tensor,
    right_NJ: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    *,
    num_experts: int,
    gather: str | None,
    gate_A: Tensor | None,
    top_k: int,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """(dw_EIJ, db_EI) of left's dtype: L_e^T R_e and the column sums of L_e; zeros if e is empty.

    The arguments are those of a forward pass that has checked them, contiguous.

    Args:
        left_NI: (N, I) rows in grouped order; (T, I) where gather is "left".
        right_NJ: (N, J) rows in grouped order; (T, J) where gather is "right".
        source_row_N: (N,) int32, or None: nothing is gathered then, and `gather` only names the gated side.
        gather: "left" | "right" | None, the side that is read at row source_row_N // K.
        gate_A: (A,) by assignment, for the rows of the gathered side; None for all ones.
    """
    assert gather in ("left", "right", None)
    assert gather is not None or gate_A is None, "no gathered side to gate"
    rows = (right_NJ if gather == "left" else left_NI).shape[0]
    gathered_rows = rows if source_row_N is None else rows // top_k
    height, width = left_NI.shape[1], right_NJ.shape[1]
    assert_fits(left_NI, (gathered_rows if gather == "left" else rows, height), left_NI)
    assert_fits(right_NJ, (gathered_rows if gather == "right" else rows, width), left_NI)
    assert height % 16 == 0
    assert width % 16 == 0
    assert gate_A is None or (gate_A.shape == (rows,) and gate_A.is_contiguous())
    assert_plan(source_row_N, offsets_E1, rows, num_experts, top_k)
    dw_EIJ = torch.empty((num_experts, height, width), dtype=left_NI.dtype, device=left_NI.device)
    db_EI = torch.empty((num_experts, height), dtype=left_NI.dtype, device=left_NI.device)
    if rows == 0:
        return dw_EIJ.zero_(), db_EI.zero_()
    index_N = source_row_N if gather is not None else None

    def launch(tiles: Tiles) -> None:
        _launch(
            tiles, left_NI, right_NJ, index_N, offsets_E1, gate_A, dw_EIJ, db_EI, gather=gather, top_k=top_k
        )

    with on_device_of(left_NI):
        launch(
            tiles
            or choose_tiles(
                "grouped_wgrad", rows=rows, num_experts=num_experts, columns=width, depth=height,
                dtype=left_NI.dtype, arch=current_arch(), trial=launch,
            )
        )  # fmt: skip
    return dw_EIJ, db_EI


def _launch(
    tiles: Tiles,
    left_NI: Tensor,
    right_NJ: Tensor,
    index_N: Tensor | None,
    offsets_E1: Tensor,
    gate_A: Tensor | None,
    dw_EIJ: Tensor,
    db_EI: Tensor,
    *,
    gather: str | None,
    top_k: int,
) -> None:
    experts, height, width = dw_EIJ.shape
    rows = (right_NJ if gather == "left" else left_NI).shape[0]
    tiles_per_expert = triton.cdiv(height, tiles.block_m) * triton.cdiv(width, tiles.block_n)
    share = rows_per_share(
        tiles, rows=rows, num_experts=experts, tiles_per_expert=tiles_per_expert, sms=SMS[current_arch()]
    )
    items = experts if share is None else max_row_tiles(rows, experts, share)
    dw_share_SIJ = db_share_SI = None
    if share is not None:
        dw_share_SIJ = torch.empty((items, height, width), dtype=torch.float32, device=dw_EIJ.device)
        db_share_SI = torch.empty((items, height), dtype=torch.float32, device=dw_EIJ.device)
    e_pow2 = triton.next_power_of_2(experts)
    grouped_wgrad_kernel[(items * tiles_per_expert,)](
        left_NI, right_NJ, index_N, offsets_E1, gate_A, dw_EIJ, db_EI, dw_share_SIJ, db_share_SI, share or 0,
        height, width, GATHER=gather, TOP_K=top_k, E=experts, E_POW2=e_pow2, BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, num_warps=tiles.num_warps,
        num_stages=pipeline_stages(tiles, index_N is not None),
    )  # fmt: skip
    for partial, out in ((dw_share_SIJ, dw_EIJ), (db_share_SI, db_EI)):
        if partial is not None:
            size = out[0].numel()
            sum_shares_kernel[(triton.cdiv(size, 4096), experts)](
                partial, offsets_E1, out, share, size, E=experts, E_POW2=e_pow2, BLOCK=4096, num_warps=8
            )


def rows_per_share(
    tiles: Tiles, *, rows: int, num_experts: int, tiles_per_expert: int, sms: int
) -> int | None:
    """The most rows of one expert that one program takes; None for all, however many.

    With split_k > 1, an expert of average length is cut in about that many. Otherwise only experts above 5/4
    of the average are cut, where the longest alone would set the time: an expert cannot fill half the SMs,
    all of them together do not make four waves, and they are long enough to be worth two more launches.
    """
    is_full = 2 * tiles_per_expert >= sms or num_experts * tiles_per_expert >= 4 * sms
    if tiles.split_k == 1 and (is_full or rows < 2048 * num_experts):
        return None
    return max(tiles.block_k, -(-5 * rows // (4 * num_experts * tiles.split_k)))


def pipeline_stages(tiles: Tiles, is_gathered: bool) -> int:
    """Triton shares its stages among the loads of a chain: the row numbers, then the rows they name."""
    return 2 * tiles.num_stages - 1 if is_gathered else tiles.num_stages


def grouped_wgrad_reference(
    left_NI: Tensor,
    right_NJ: Tensor,
    source_row_N: Tensor | None,
    offsets_E1: Tensor,
    *,
    num_experts: int,
    gather: str | None,
    gate_A: Tensor | None,
    top_k: int,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """`grouped_wgrad` in plain torch; waits for the device, and ignores `tiles`."""
    counts = offsets_E1.diff().tolist()
    sides = {"left": left_NI, "right": right_NJ}
    if gather is not None:
        rows_TI = sides[gather]
        assignment_N = (
            torch.arange(sum(counts), device=left_NI.device) if source_row_N is None else source_row_N.long()
        )
        rows_NI = rows_TI[assignment_N // top_k]
        sides[gather] = (
            rows_NI if gate_A is None else (rows_NI * gate_A[assignment_N, None]).to(rows_NI.dtype)
        )
    parts = list(zip(sides["left"].split(counts), sides["right"].split(counts), strict=True))
    assert len(parts) == num_experts
    return (
        torch.stack([left_MI.mT @ right_MJ for left_MI, right_MJ in parts]),
        torch.stack([left_MI.sum(0) for left_MI, _ in parts]),
    )
