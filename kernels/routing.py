"""Routing: router probabilities in one pass over the tokens, and the counting sort that groups by expert.

`group_by_expert` is a stable counting sort in two launches. The first counts each program's share of the
assignments by expert; the second turns those counts into first rows and places every assignment. Order comes
from positions, never from timing: no atomics, and the same input gives the same bits.

`router_probability` is softmax(x W^T + bias of the image) in float32, eq. (8) with the descriptors' product
as a bias per image. Its tiles depend on the types and on E only: a token's probabilities, and so its expert,
are bitwise the same in whichever batch it stands, in the forward and in a recomputation.

A assignments (T*K), T tokens, B images, D dim, E experts (at most 64), E1 = E + 1, G programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.kernels.tiles import DTYPES, Tiles, current_arch

MAX_EXPERTS = 64
MAX_COUNTS = 8192
"""Bound on programs * E of the counting sort, whose every program reads the counts of all."""

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@triton.jit(do_not_specialize=["A", "per_program"])  # another batch size needs no other code
def _count_by_expert(
    expert_ptr, counts_ptr, A, per_program, E: tl.constexpr, E_POW2: tl.constexpr, STEP: tl.constexpr
):
    """counts (programs, E): how many of a program's `per_program` assignments go to each expert."""
    program = tl.program_id(0)
    first = program.to(tl.int64) * per_program
    expert = tl.arange(0, E_POW2)
    count = tl.zeros((E_POW2,), tl.int32)
    for step in range(0, per_program, STEP):
        assignment = first + step + tl.arange(0, STEP)
        inside = assignment < A
        chosen = tl.load(expert_ptr + assignment, mask=inside, other=E_POW2).to(tl.int32)
        tl.device_assert((chosen >= 0) & ((chosen < E) | (assignment >= A)), "expert out of range")
        count += tl.sum((expert[:, None] == chosen[None, :]).to(tl.int32), 1)
    tl.store(counts_ptr + program * E + expert, count, mask=expert < E)


@triton.jit(do_not_specialize=["A", "per_program", "programs"])
def _place_by_expert(
    expert_ptr,
    counts_ptr,
    source_row_ptr,
    offsets_ptr,
    A,
    per_program,
    programs,
    E: tl.constexpr,
    E_POW2: tl.constexpr,
    STEP: tl.constexpr,
):
    """source_row (A,) and offsets (E + 1,), from the counts of `_count_by_expert` with the same shares."""
    program = tl.program_id(0)
    expert = tl.arange(0, E_POW2)
    total = tl.zeros((E_POW2,), tl.int32)
    earlier = tl.zeros((E_POW2,), tl.int32)
    for step in range(0, programs, STEP):
        other = step + tl.arange(0, STEP)
        known = (other < programs)[None, :] & (expert < E)[:, None]
        count = tl.load(counts_ptr + other[None, :] * E + expert[:, None], mask=known, other=0)
        total += tl.sum(count, 1)
        earlier += tl.sum(tl.where(other[None, :] < program, count, 0), 1)
    offset = tl.cumsum(total, 0) - total
    if program == 0:
        tl.store(offsets_ptr + expert, offset, mask=expert < E)
        tl.store(offsets_ptr + E, A)
    next_row = offset + earlier
    first = program.to(tl.int64) * per_program
    for step in range(0, per_program, STEP):
        assignment = first + step + tl.arange(0, STEP)
        inside = assignment < A
        chosen = tl.load(expert_ptr + assignment, mask=inside, other=E_POW2).to(tl.int32)
        mine = expert[:, None] == chosen[None, :]
        ordinal = tl.cumsum(mine.to(tl.int32), 1)
        row = tl.sum(tl.where(mine, next_row[:, None] + ordinal - 1, 0), 0)
        tl.store(source_row_ptr + row, assignment.to(tl.int32), mask=inside)
        next_row += tl.sum(mine.to(tl.int32), 1)


@triton.jit(do_not_specialize=["T", "tokens_per_image"])
def _router_probability(
    x_ptr,
    weight_ptr,
    bias_ptr,
    probability_ptr,
    T,
    D,
    tokens_per_image,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_M rows of the (T, E) float32 probabilities; x (T, D) and weight (E, D) contiguous."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    expert = tl.arange(0, E_PAD)
    depth = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token[:, None] * D + depth[None, :]
    weight_ptrs = weight_ptr + expert[None, :] * D + depth[:, None]
    logits = tl.zeros((BLOCK_M, E_PAD), tl.float32)
    for start in range(0, D, BLOCK_K):
        left = depth < D - start
        x = tl.load(x_ptrs + start, mask=(token < T)[:, None] & left[None, :], other=0.0)
        weight = tl.load(weight_ptrs + start, mask=(expert < E)[None, :] & left[:, None], other=0.0)
        if IN_FLOAT32:
            x = x.to(tl.float32)
            weight = weight.to(tl.float32)
        logits = tl.dot(x, weight, logits, input_precision="ieee")
    real = (token < T)[:, None] & (expert < E)[None, :]
    image = token // tokens_per_image
    logits += tl.load(bias_ptr + image[:, None] * E + expert[None, :], mask=real, other=0.0)
    logits = tl.where((expert < E)[None, :], logits, float("-inf"))
    exponential = tl.exp(logits - tl.max(logits, 1)[:, None])
    probability = exponential / tl.sum(exponential, 1)[:, None]
    tl.store(probability_ptr + token[:, None] * E + expert[None, :], probability, mask=real)


def group_by_expert_reference(expert_index_A: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """`group_by_expert` by torch.argsort."""
    _check_assignments(expert_index_A, num_experts)
    source_row_A = expert_index_A.argsort(stable=True).int()
    experts_E = torch.arange(num_experts, device=expert_index_A.device)
    counts_E = (expert_index_A[:, None] == experts_E).sum(0)
    return source_row_A, torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)]).int()


def group_by_expert(
    expert_index_A: Tensor, num_experts: int, *, tiles: Tiles | None = None
) -> tuple[Tensor, Tensor]:
    """Groups assignments by expert, their order kept within an expert. Never waits for the device.

    Example, four assignments, three experts, choices [2, 0, 2, 0]:

        source_row [1, 3, 0, 2]   grouped row n is assignment source_row[n]
        offsets    [0, 2, 2, 4]   rows of expert e are offsets[e] .. offsets[e + 1]; expert 1 is empty

    Args:
        expert_index_A: (A,) of any integer type, each 0 .. num_experts - 1. That is the caller's promise:
            reading it back would wait for the device (TRITON_DEBUG=1 asserts it there). A < 2^31.
        num_experts: E, at most 64.
        tiles: block_m assignments are ranked at a time, by num_warps; the rest is not used.

    Returns:
        source_row (A,) int32 and offsets (E + 1,) int32, on the input's device.

    Raises:
        InputError: for another shape or type, or too many experts or assignments.
    """
    _check_assignments(expert_index_A, num_experts)
    total, device = expert_index_A.numel(), expert_index_A.device
    source_row_A = torch.empty(total, dtype=torch.int32, device=device)
    if total == 0:
        return source_row_A, torch.zeros(num_experts + 1, dtype=torch.int32, device=device)
    offsets_E1 = torch.empty(num_experts + 1, dtype=torch.int32, device=device)
    with torch.cuda.device_of(expert_index_A):
        _launch_sort(
            expert_index_A, source_row_A, offsets_E1, tiles or _sort_tiles(num_experts, current_arch())
        )
    return source_row_A, offsets_E1


def _launch_sort(expert_index_A: Tensor, source_row_A: Tensor, offsets_E1: Tensor, tiles: Tiles) -> None:
    total, num_experts = source_row_A.numel(), offsets_E1.numel() - 1
    programs, per_program = _shares(total, num_experts, tiles.block_m)
    counts_GE = offsets_E1.new_empty(programs, num_experts)
    sizes = {
        "E": num_experts,
        "E_POW2": triton.next_power_of_2(num_experts),
        "STEP": tiles.block_m,
        "num_warps": tiles.num_warps,
    }
    expert_index_A = expert_index_A.contiguous()
    _count_by_expert[(programs,)](expert_index_A, counts_GE, total, per_program, **sizes)
    _place_by_expert[(programs,)](
        expert_index_A, counts_GE, source_row_A, offsets_E1, total, per_program, programs, **sizes
    )


def router_probability_reference(
    x_TD: Tensor, weight_ED: Tensor, image_bias_BE: Tensor, *, tokens_per_image: int
) -> Tensor:
    """`router_probability` in torch: tokens and weights widened to float32."""
    _check_router(x_TD, weight_ED, image_bias_BE, tokens_per_image)
    bias_TE = image_bias_BE.repeat_interleave(tokens_per_image, dim=0)
    return (x_TD.float() @ weight_ED.float().T + bias_TE).softmax(dim=-1)


def router_probability(
    x_TD: Tensor,
    weight_ED: Tensor,
    image_bias_BE: Tensor,
    *,
    tokens_per_image: int,
    tiles: Tiles | None = None,
) -> Tensor:
    """softmax(x W^T + image_bias[t // tokens_per_image]) per token, (T, E) float32.

    Products of bfloat16 or float16 tokens and weights of the same type run on the tensor cores; with float32
    on either side everything is IEEE float32, on slower units. The accumulation is float32 always.

    Args:
        x_TD: (T, D) tokens in image order, T = B * tokens_per_image; read once.
        weight_ED: (E, D) the router's columns for the tokens, float32 or as x. A slice of the router's weight
            may be given: what is not contiguous is copied.
        image_bias_BE: (B, E) float32: the router's bias plus the descriptors' product.
        tiles: block_m tokens by block_k columns at a time; block_n is not used. Other tiles may round
            differently: pass the same in the forward and in a recomputation.

    Raises:
        InputError: for shapes, types or devices that do not fit.
    """
    _check_router(x_TD, weight_ED, image_bias_BE, tokens_per_image)
    tokens, dim = x_TD.shape
    num_experts = weight_ED.shape[0]
    probability_TE = torch.empty(tokens, num_experts, dtype=torch.float32, device=x_TD.device)
    if tokens == 0:
        return probability_TE
    in_float32 = torch.float32 in (x_TD.dtype, weight_ED.dtype)
    with torch.cuda.device_of(x_TD):
        tiles = tiles or _router_tiles(num_experts, in_float32, current_arch())
        _router_probability[(triton.cdiv(tokens, tiles.block_m),)](
            x_TD.contiguous(),
            weight_ED.contiguous(),
            image_bias_BE.contiguous(),
            probability_TE,
            tokens,
            dim,
            tokens_per_image,
            E=num_experts,
            E_PAD=_padded(num_experts),
            IN_FLOAT32=in_float32,
            BLOCK_M=tiles.block_m,
            BLOCK_K=tiles.block_k,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
    return probability_TE


def _padded(num_experts: int) -> int:
    return max(16, triton.next_power_of_2(num_experts))  # the least width of a product of blocks


def _shares(total: int, num_experts: int, step: int) -> tuple[int, int]:
    """(programs, assignments of each): as many programs as there are steps, within MAX_COUNTS."""
    programs = min(triton.cdiv(total, step), max(1, MAX_COUNTS // num_experts))
    per_program = triton.cdiv(triton.cdiv(total, programs), step) * step
    return triton.cdiv(total, per_program), per_program


def _sort_tiles(num_experts: int, arch: str) -> Tiles:
    """A step's comparison matrix is (E, block_m): 4096 elements, 32 a thread."""
    step = 8192 if arch == "interpreter" else max(64, min(512, 4096 // triton.next_power_of_2(num_experts)))
    return Tiles(block_m=step, block_n=16, block_k=16, num_warps=4, num_stages=1)


def _router_tiles(num_experts: int, in_float32: bool, arch: str) -> Tiles:
    """No function of T and never searched for; see the module docstring."""
    padded = _padded(num_experts)
    if arch == "interpreter":
        return Tiles(block_m=512, block_n=padded, block_k=512, num_warps=1, num_stages=1)
    if in_float32:
        depth = 32 if padded <= 32 else 16  # more would spill
        return Tiles(block_m=32, block_n=padded, block_k=depth, num_warps=4, num_stages=3)
    return Tiles(block_m=64, block_n=padded, block_k=128, num_warps=4, num_stages=3)


def _check_assignments(expert_index_A: Tensor, num_experts: int) -> None:
    if expert_index_A.ndim != 1 or expert_index_A.dtype not in INTEGERS:
        raise InputError(
            "expert_index_A is not a list of experts",
            got=f"shape {tuple(expert_index_A.shape)}, {expert_index_A.dtype}",
            expected=f"(A,) of {' | '.join(map(str, INTEGERS))}",
        )
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise InputError("num_experts", got=num_experts, expected=f"1 .. {MAX_EXPERTS}")
    if expert_index_A.numel() >= 2**31:
        raise InputError(
            "too many assignments for int32 rows", got=expert_index_A.numel(), expected="below 2^31"
        )


def _check_router(x_TD: Tensor, weight_ED: Tensor, image_bias_BE: Tensor, tokens_per_image: int) -> None:
    tensors = {"x_TD": x_TD, "weight_ED": weight_ED, "image_bias_BE": image_bias_BE}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            raise InputError(f"{name} is not a matrix", got=f"shape {tuple(tensor.shape)}")
        if tensor.device != x_TD.device:
            raise InputError(
                f"{name} is elsewhere", got=tensor.device, expected=f"{x_TD.device}, where x_TD is"
            )
    (tokens, dim), num_experts = x_TD.shape, weight_ED.shape[0]
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise InputError("weight_ED.shape[0], the experts", got=num_experts, expected=f"1 .. {MAX_EXPERTS}")
    if weight_ED.shape[1] != dim:
        raise InputError("weight_ED does not fit x_TD", got=tuple(weight_ED.shape), expected=f"(E, {dim})")
    fits = tokens_per_image >= 0 and image_bias_BE.shape == (image_bias_BE.shape[0], num_experts)
    if not fits or image_bias_BE.shape[0] * tokens_per_image != tokens:
        raise InputError(
            "image_bias_BE and tokens_per_image do not fit the tokens",
            got=f"shape {tuple(image_bias_BE.shape)}, {tokens_per_image} tokens per image",
            expected=f"(B, {num_experts}) with B * tokens_per_image = {tokens}",
        )
    if x_TD.dtype not in DTYPES or weight_ED.dtype not in (x_TD.dtype, torch.float32):
        raise InputError(
            "dtype of x_TD and weight_ED",
            got=f"{x_TD.dtype} and {weight_ED.dtype}",
            expected=f"x_TD {' | '.join(map(str, DTYPES))}; weight_ED the same or float32",
        )
    if image_bias_BE.dtype != torch.float32:
        raise InputError("dtype of image_bias_BE", got=image_bias_BE.dtype, expected=torch.float32)
