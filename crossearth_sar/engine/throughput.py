"""How fast a run is, and what it waits for: images, tokens and arithmetic per second, waiting, balance.

FLOP are those of flop.py; a training step counts three forward passes (one, and two in backward). What is
computed twice under activation checkpointing is not counted, as is usual for model FLOP utilisation (MFU).

L layers, E experts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

PEAK_BF16_TFLOPS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0}
"""Dense bf16 tensor-core peak by a part of the device's name, from NVIDIA's data sheets (SXM parts)."""


def peak_tflops(device: torch.device) -> float | None:
    """The device's dense bf16 peak, or None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_TFLOPS.items() if part in name), None)


class Meter:
    """Turns the times of a step into the columns of the log.

    Args:
        tokens: of one image. flop: of one image's forward pass.
        batch_size: images per step over all ranks.
        peak: of all devices together, TFLOP/s; None leaves MFU out.
    """

    def __init__(self, tokens: int, flop: float, batch_size: int, peak: float | None) -> None:
        self.batch_size, self.peak = batch_size, peak
        self.tokens = batch_size * tokens
        self.step_tflop = 3 * flop * batch_size / 1e12
        self._waited = 0.0
        self._started = time.perf_counter()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; what the training process waits for them is measured."""
        iterator = iter(batches)
        while True:
            self._started = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited = time.perf_counter() - self._started
            yield batch

    def row(self) -> dict[str, float]:
        """Of the step that began with the last batch and ends now."""
        seconds = time.perf_counter() - self._started
        row = {
            "images_per_second": self.batch_size / seconds,
            "tokens_per_second": self.tokens / seconds,
            "data_wait": self._waited / seconds,
            "tflops": self.step_tflop / seconds,
        }
        if self.peak is not None:
            row["mfu"] = row["tflops"] / self.peak
        return row


def balance_columns(share_LE: Tensor, ep_size: int) -> dict[str, float]:
    """How even the experts' work is, in the worst layer; 1 is even.

    Args:
        share_LE: (L, E) share of all ranks' tokens per layer and expert.

    Returns:
        largest_expert_share: the largest share; expert_balance: that times E; max_rank_load: the tokens of
        the busiest of ep_size ranks over their mean.
    """
    if not share_LE.numel():
        return {"largest_expert_share": 0.0, "expert_balance": 0.0, "max_rank_load": 0.0}
    largest = float(share_LE.max())
    per_rank = share_LE.unflatten(1, (ep_size, -1)).sum(2)
    return {
        "largest_expert_share": largest,
        "expert_balance": largest * share_LE.shape[1],
        "max_rank_load": float(per_rank.max()) * ep_size,
    }
