"""The CUDA half on a GPU: against the CPU half, twice the same, on any stream, in a graph, without a sync."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossearth_sar import sar_descriptors
from crossearth_sar.backend import extension_status
from crossearth_sar.descriptors.fused import PIXEL_TYPES, fused_descriptors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not extension_status().has_cuda, reason=extension_status()[1]),
]


def both(image: Tensor, num_bins: int = 36, block_size: int = 16) -> tuple[Tensor, Tensor]:
    options = {"num_bins": num_bins, "block_size": block_size, "flat_pixels": "include"}
    here, _ = fused_descriptors(image, **options)  # type: ignore[arg-type]
    there, _ = fused_descriptors(image.cuda(), **options)  # type: ignore[arg-type]
    return here, there.cpu()


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 17, 130), (3, 512, 512), (1, 1000, 333)])
@pytest.mark.parametrize("dtype", list(PIXEL_TYPES))
def test_agrees_with_the_cpu(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    image = torch.distributions.Gamma(4.0, 0.1).sample(shape).clamp(max=250)
    image = torch.polar(image, image) if dtype.is_complex else image.to(dtype)
    torch.testing.assert_close(*both(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_bins", [4, 36, 252])
@pytest.mark.parametrize("block_size", [1, 5, 16, 64])
def test_parameters_and_strides(num_bins: int, block_size: int) -> None:
    image = (torch.rand(2, 300, 262) * 99)[:, ::2, ::3]
    torch.testing.assert_close(*both(image, num_bins, block_size), rtol=1e-5, atol=1e-6)


def test_bitwise_the_same_and_no_synchronisation() -> None:
    image = torch.rand(8, 1, 500, 700, device="cuda")
    first = sar_descriptors(image, backend="fused", check_finite=False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [sar_descriptors(image, backend="fused", check_finite=False) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(first, other) for other in again)


def test_graph_replay_on_other_data() -> None:
    image = torch.rand(4, 1, 256, 256, device="cuda")
    sar_descriptors(image, backend="fused", check_finite=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sar_descriptors(image, backend="fused", check_finite=False)
    for _ in range(3):
        image.copy_(torch.rand_like(image) * 50)
        graph.replay()
        assert torch.equal(captured, sar_descriptors(image, backend="fused", check_finite=False))
