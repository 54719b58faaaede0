"""FLOP against torch's own count, the meter's arithmetic, and how balance is told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from crossearth_sar.config import merge
from crossearth_sar.engine.flop import forward_flop, tokens_per_image
from crossearth_sar.engine.throughput import Meter, balance_columns, peak_tflops
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.presets import ModelConfig, model_preset

SMALL = {"vit": {"dim": 32, "num_heads": 2}, "decoder": {"channels": 32, "num_heads": 2, "num_points": 64}}


def test_flop_of_a_sparse_model_are_those_torch_counts() -> None:
    """Router, and experts, whose operations are custom and have formulas of their own."""
    sparse = merge(model_preset("crossearth_sar_tiny", 7), SMALL)
    found = []
    for config in (sparse, merge(sparse, {"moe": None})):
        model = CrossEarthSAR(config).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.features(torch.rand(1, 1, config.crop_size, config.crop_size))
        found.append((counter.get_total_flops(), forward_flop(config)))
    counted, told = (a - b for a, b in zip(*found, strict=True))
    descriptors = 2 * config.vit.depth * sparse.moe.num_experts * sparse.moe.num_descriptors
    assert counted - descriptors == pytest.approx(told - tokens_per_image(config) * descriptors)
    # told: the router's width has the descriptors in it, though their part is taken once an image


@pytest.mark.parametrize("change", [{}, {"query_layers": 5}, {"pixel_layers": 1}, {"channels": 64}])
def test_flop_of_a_dense_model_are_those_torch_counts(change: dict[str, int]) -> None:
    config = merge(merge(model_preset("crossearth_sar_tiny", 7), SMALL), {"moe": None, "decoder": change})
    model = CrossEarthSAR(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 1, config.crop_size, config.crop_size))
    counts = counter.get_flop_counts()["Global"]
    attention = config.vit.depth * 4 * tokens_per_image(config) ** 2 * config.vit.dim
    if not any("scaled_dot_product" in str(op) for op in counts):  # torch has no formula for it on a CPU
        counts["attention"] = attention
    assert forward_flop(config) == pytest.approx(sum(counts.values()), rel=0.01)


def flop(**moe: int) -> float:
    config = model_preset("crossearth_sar_s", 7)
    return forward_flop(merge(config, {"moe": moe} if moe else {"moe": None}))


def test_flop_are_of_the_active_experts() -> None:
    ffn = 12 * 1025 * 16 * 384**2
    router = 12 * 1025 * 2 * 387 * 6
    assert flop(top_k=1) - flop() == pytest.approx(router)
    assert flop(top_k=2) - flop(top_k=1) == pytest.approx(ffn)


def waiting(seconds: float, count: int) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_meter() -> None:
    config: ModelConfig = model_preset("crossearth_sar_tiny", 7)
    meter = Meter(tokens_per_image(config), forward_flop(config), batch_size=8, peak=2.0)
    numbers = []
    for number in meter.timed(waiting(0.03, 3)):
        time.sleep(0.03)
        row = meter.row()
        numbers.append(number)
        assert 0.05 < row["data_wait"] < 0.95
        assert 0 < row["images_per_second"] <= 8 / 0.06
        assert row["tokens_per_second"] == pytest.approx(row["images_per_second"] * 257)
        assert row["tflops"] == pytest.approx(row["images_per_second"] * 3 * forward_flop(config) / 1e12)
        assert row["mfu"] == pytest.approx(row["tflops"] / 2)
    assert numbers == [0, 1, 2]
    assert "mfu" not in Meter(17, 1e9, 8, None).row()
    assert peak_tflops(torch.device("cpu")) is None


def test_balance() -> None:
    share_LE = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.4, 0.3, 0.2, 0.1]])
    alone = balance_columns(share_LE, ep_size=1)
    assert alone["max_rank_load"] == pytest.approx(1)
    assert alone["largest_expert_share"] == pytest.approx(0.4)
    assert alone["expert_balance"] == pytest.approx(1.6)
    assert balance_columns(share_LE, ep_size=2)["max_rank_load"] == pytest.approx(1.4)
    assert balance_columns(torch.zeros(0, 0), ep_size=1)["expert_balance"] == 0
