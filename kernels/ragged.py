"""Rows grouped by expert: how a program of a grid finds the expert and the rows of its tile.

N rows lie expert after expert; `offsets` (E + 1,) int32 says where each begins, offsets[E] = N. No length is
known on the host, so grids are sized by an upper bound, `max_row_tiles`, and a program past the last tile
returns.
"""

from __future__ import annotations

import triton
import triton.language as tl


def max_row_tiles(rows: int, num_experts: int, block_m: int) -> int:
    """At least as many tiles as any split of `rows` among experts needs: each wastes less than one."""
    return min(triton.cdiv(rows, block_m) + num_experts, rows)


@triton.jit
def locate_row_tile(offsets_ptr, tile, E: tl.constexpr, E_POW2: tl.constexpr, BLOCK_M: tl.constexpr):
    """(expert, first row, end of the expert's rows) of row tile number `tile`; expert >= E past the last.

    E_POW2 is E rounded up to a power of two. A tile never spans two experts; an empty expert has none.
    """
    expert = tl.arange(0, E_POW2)
    start = tl.load(offsets_ptr + expert, mask=expert < E, other=0)
    end = tl.load(offsets_ptr + expert + 1, mask=expert < E, other=0)
    tiles = (end - start + BLOCK_M - 1) // BLOCK_M
    tiles_until = tl.cumsum(tiles, 0)
    mine = tl.sum((tiles_until <= tile).to(tl.int32), 0)
    is_mine = expert == mine
    first_tile = tl.sum(tl.where(is_mine, tiles_until - tiles, 0), 0)
    first_row = tl.sum(tl.where(is_mine, start, 0), 0) + (tile - first_tile) * BLOCK_M
    return mine, first_row, tl.sum(tl.where(is_mine, end, 0), 0)
