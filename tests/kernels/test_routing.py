"""The routing kernels: under the interpreter, compiled ahead of time, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from interpreter import run_interpreted
from torch import Tensor

from bench.compiled.ahead import compile_case
from bench.compiled.ahead_cases import routing_cases
from crossearth_sar.errors import InputError
from crossearth_sar.kernels import routing
from crossearth_sar.kernels.routing import (
    group_by_expert,
    group_by_expert_reference,
    router_probability,
    router_probability_reference,
)
from crossearth_sar.kernels.tiles import Tiles

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def some_tiles(block_m: int, block_k: int = 16) -> Tiles:
    return Tiles(block_m=block_m, block_n=16, block_k=block_k, num_warps=4, num_stages=2)


def check_grouping(expert_index_A: Tensor, num_experts: int, tiles: Tiles | None = None) -> None:
    """Bitwise against torch's stable argsort and a count of its own."""
    source_row, offsets = group_by_expert(expert_index_A, num_experts, tiles=tiles)
    assert source_row.dtype == offsets.dtype == torch.int32
    assert source_row.device == offsets.device == expert_index_A.device
    assert torch.equal(source_row.long(), expert_index_A.argsort(stable=True))
    counts = expert_index_A.long().bincount(minlength=num_experts).tolist()
    assert offsets.tolist() == [sum(counts[:e]) for e in range(num_experts + 1)]


def choices(kind: str, total: int, num_experts: int) -> Tensor:
    if kind == "random":
        return torch.randint(num_experts, (total,))
    if kind == "last":
        return torch.full((total,), num_experts - 1)
    return torch.randint(num_experts, (total,)) // 2 * 2  # every odd expert is empty


@torch.no_grad()
def check_probability(
    dtype: torch.dtype, images: int, per_image: int, dim: int, experts: int, *, device: str = "cpu",
    weight_dtype: torch.dtype | None = None, tiles: Tiles | None = None,
) -> None:  # fmt: skip
    """Against float64; the bound is what float32 rounding of a sum of `dim` products of size 1 allows."""
    x_TD = torch.randn(images * per_image, dim, device=device).to(dtype)
    weight = (torch.randn(experts, dim + 3, device=device) / dim**0.5).to(weight_dtype or dtype)
    weight_ED, bias_BE = weight[:, :dim], torch.randn(images, experts, device=device)
    got = router_probability(x_TD, weight_ED, bias_BE, tokens_per_image=per_image, tiles=tiles)
    bias_TE = bias_BE.double().repeat_interleave(per_image, 0)
    expected = (x_TD.double() @ weight_ED.double().T + bias_TE).softmax(-1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    reference = router_probability_reference(x_TD, weight_ED, bias_BE, tokens_per_image=per_image)
    torch.testing.assert_close(reference.double(), expected, rtol=1e-5, atol=1e-6)


def interpreted_grouping_of_every_size() -> None:
    for num_experts in (1, 6, 7, 64):
        for total in (0, 1, 64, 301):
            for kind in ("random", "last", "gaps"):
                check_grouping(choices(kind, total, num_experts), num_experts, some_tiles(64))


def interpreted_grouping_with_several_steps_a_program() -> None:
    routing.MAX_COUNTS = 18  # three programs of six experts
    check_grouping(choices("random", 1000, 6), 6, some_tiles(64))
    check_grouping(choices("gaps", 769, 6), 6, some_tiles(64))
    assert routing._shares(1000, 6, 64) == (3, 384)
    routing.MAX_COUNTS = 8192


def interpreted_grouping_of_every_integer_type() -> None:
    for dtype in INTEGERS:
        check_grouping(choices("random", 200, 64).to(dtype), 64)
    check_grouping(choices("random", 400, 6)[::2], 6)


def interpreted_grouping_is_the_same_for_other_steps() -> None:
    expert = choices("random", 517, 7)
    first, second = (group_by_expert(expert, 7, tiles=some_tiles(step)) for step in (32, 256))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def interpreted_grouping_example_of_the_docstring() -> None:
    source_row, offsets = group_by_expert(torch.tensor([2, 0, 2, 0]), 3)
    assert source_row.tolist() == [1, 3, 0, 2]
    assert offsets.tolist() == [0, 2, 2, 4]


def interpreted_probability_of_odd_sizes() -> None:
    for dtype in (torch.float32, torch.float16):
        for images, per_image, dim, experts in (
            (1, 1, 16, 6),
            (3, 37, 48, 6),
            (2, 70, 80, 7),
            (2, 5, 32, 64),
        ):
            check_probability(dtype, images, per_image, dim, experts, tiles=some_tiles(64, 32))
    check_probability(torch.float16, 2, 33, 48, 6, weight_dtype=torch.float32)
    check_probability(torch.float32, 2, 9, 384, 1)


def interpreted_probability_without_tokens() -> None:
    for images, per_image in ((0, 5), (5, 0), (0, 0)):
        x_TD, bias_BE = torch.randn(0, 32), torch.randn(images, 6)
        got = router_probability(x_TD, torch.randn(6, 32), bias_BE, tokens_per_image=per_image)
        assert got.shape == (0, 6)


def interpreted_probability_of_a_token_is_the_same_in_any_batch() -> None:
    x_TD, weight_ED, bias_BE = torch.randn(150, 96).half(), torch.randn(6, 96).half(), torch.randn(3, 6)
    whole = router_probability(x_TD, weight_ED, bias_BE, tokens_per_image=50)
    alone = router_probability(x_TD[100:], weight_ED, bias_BE[2:], tokens_per_image=50)
    # The kernel's sums do not depend on the batch; the interpreter's products are numpy's, whose BLAS rounds
    # the rows at the edge of a block otherwise on some processors.
    torch.testing.assert_close(whole[100:], alone, rtol=1e-5, atol=1e-6)


def interpreted_probability_passes_a_nan_on() -> None:
    x_TD = torch.randn(4, 32)
    x_TD[2, 7] = float("nan")
    got = router_probability(x_TD, torch.randn(6, 32), torch.zeros(1, 6), tokens_per_image=4)
    assert got.isnan().all(1).tolist() == [False, False, True, False]
    assert not got[:2].isnan().any()


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


def test_references_agree_with_the_definition() -> None:
    expert = choices("gaps", 300, 7)
    source_row, offsets = group_by_expert_reference(expert, 7)
    assert torch.equal(source_row.long(), expert.argsort(stable=True))
    for e in range(7):
        rows = source_row[offsets[e] : offsets[e + 1]]
        assert torch.equal(rows.long(), (expert == e).nonzero().flatten())
    assert group_by_expert_reference(expert[:0], 7)[1].tolist() == [0] * 8
    x_TD, weight_ED, bias_BE = torch.randn(6, 16), torch.randn(3, 16), torch.randn(2, 3)
    got = router_probability_reference(x_TD, weight_ED, bias_BE, tokens_per_image=3)
    for token in range(6):
        logits = weight_ED @ x_TD[token] + bias_BE[token // 3]
        torch.testing.assert_close(got[token], logits.exp() / logits.exp().sum())


@pytest.mark.parametrize(
    ("expert", "num_experts", "problem"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), 6, "list of experts"),
        (torch.zeros(3), 6, "list of experts"),
        (torch.zeros(3, dtype=torch.bool), 6, "list of experts"),
        (torch.zeros(3, dtype=torch.int64), 0, "num_experts"),
        (torch.zeros(3, dtype=torch.int64), 65, "num_experts"),
        (torch.zeros(1, dtype=torch.int8).expand(2**31), 6, "too many assignments"),
    ],
)
def test_grouping_refuses(expert: Tensor, num_experts: int, problem: str) -> None:
    for function in (group_by_expert, group_by_expert_reference):
        with pytest.raises(InputError, match=problem):
            function(expert, num_experts)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"x_TD": torch.zeros(6)}, "x_TD is not a matrix"),
        ({"weight_ED": torch.zeros(3, 17)}, "weight_ED does not fit"),
        ({"weight_ED": torch.zeros(65, 16)}, "experts"),
        ({"weight_ED": torch.zeros(3, 16, dtype=torch.bfloat16)}, "dtype of x_TD and weight_ED"),
        ({"x_TD": torch.zeros(6, 16, dtype=torch.float64)}, "dtype of x_TD and weight_ED"),
        ({"image_bias_BE": torch.zeros(2, 4)}, "do not fit the tokens"),
        ({"image_bias_BE": torch.zeros(3, 3)}, "do not fit the tokens"),
        ({"image_bias_BE": torch.zeros(2, 3).half()}, "dtype of image_bias_BE"),
        ({"image_bias_BE": torch.zeros(2, 3, device="meta")}, "elsewhere"),
        ({"tokens_per_image": -3}, "do not fit the tokens"),
    ],
)
def test_probability_refuses(changes: dict[str, object], problem: str) -> None:
    good = {
        "x_TD": torch.zeros(6, 16),
        "weight_ED": torch.zeros(3, 16),
        "image_bias_BE": torch.zeros(2, 3),
        "tokens_per_image": 3,
    }
    for function in (router_probability, router_probability_reference):
        with pytest.raises(InputError, match=problem):
            function(**{**good, **changes})  # type: ignore[arg-type]


def test_shares_cover_every_assignment_once() -> None:
    for total in (1, 511, 512, 513, 65_536, 10**6 + 1, 2**31 - 1):
        for num_experts in (1, 6, 64):
            programs, per_program = routing._shares(total, num_experts, 512)
            assert programs * num_experts <= routing.MAX_COUNTS
            assert (programs - 1) * per_program < total <= programs * per_program
            assert per_program % 512 == 0


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_compiled_ahead_of_time(arch: str) -> None:
    """6 experts in bf16; bench/compiled/kernels_ahead.py compiles every case."""
    cases = [c for c in routing_cases(arch) if c.name.endswith(" E=6") and "fp" not in c.name]
    assert len(cases) == 3
    for case in cases:
        assert compile_case(case, arch).problems(case, arch) == [], case.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_experts", [1, 6, 7, 64])
@pytest.mark.parametrize("total", [0, 1, 513, 65_536, 3_000_001])
def test_grouping_on_a_gpu(total: int, num_experts: int) -> None:
    for kind in ("random", "last", "gaps"):
        check_grouping(choices(kind, total, num_experts).cuda(), num_experts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_probability_on_a_gpu(dtype: torch.dtype) -> None:
    for experts in (1, 6, 64):
        for images, per_image, dim in ((1, 1, 16), (3, 1369, 384), (2, 1024, 1040)):
            check_probability(dtype, images, per_image, dim, experts, device="cuda")
    check_probability(dtype, 2, 77, 384, 6, device="cuda", weight_dtype=torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_routing_is_captured_in_a_graph_and_replayed_with_another_choice() -> None:
    x_TD, weight_ED, bias_BE = (torch.randn(*s, device="cuda") for s in ((4096, 64), (6, 64), (4, 6)))

    def route() -> tuple[Tensor, Tensor, Tensor]:
        probability_TE = router_probability(x_TD, weight_ED, bias_BE, tokens_per_image=1024)
        expert = probability_TE.argmax(-1)
        return (expert, *group_by_expert(expert, 6))

    route()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        expert, source_row, offsets = route()
    x_TD.copy_(torch.randn_like(x_TD))
    graph.replay()
    expected = group_by_expert_reference(expert, 6)
    assert torch.equal(source_row, expected[0])
    assert torch.equal(offsets, expected[1])
