"""Collapse: the network that answers every image with one and the same vector, and how it is noticed.

M vectors, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossearth_sar.selfsup.ranks import sum_over_ranks


class CollapseError(RuntimeError):
    """Training was stopped, for the embeddings of all images had become one. The same on all ranks."""


class CollapseWatch:
    """The standard deviation of unit embeddings, and for how many steps in a row it was too small.

    Args:
        limit: standard deviation below which a step is one of collapse; 0: none is.
        steps: so many in a row are too many.
    """

    def __init__(self, limit: float, steps: int) -> None:
        self.limit, self.steps = limit, steps
        self.low_steps = 0
        self.forget()

    def forget(self) -> None:
        """Begins a step."""
        self._sums: Tensor | None = None

    @torch.no_grad()
    def see(self, units_MD: Tensor, counted_M: Tensor | None = None) -> Tensor:
        """Counts the vectors of all ranks' pass and gives their standard deviation; a collective call.

        Args:
            counted_M: bool, which of them there are; None: all.
        """
        sums = _sums(units_MD, counted_M)
        self._sums = sums if self._sums is None else self._sums + sums
        return _deviation(sums)

    def end_step(self) -> None:
        """Judges what was seen since `forget`.

        Raises:
            CollapseError: with what to do.
        """
        if self._sums is None or not self.limit or int(self._sums[0]) < 2:
            return
        deviation = float(_deviation(self._sums))
        self.low_steps = self.low_steps + 1 if deviation < self.limit else 0
        if self.low_steps >= self.steps:
            raise CollapseError(
                f"the embeddings have collapsed: their standard deviation is {deviation:.2g}\n"
                f"  expected: above {self.limit:g}, and it was below for {self.low_steps} steps\n"
                "  to do: head_norm=batch, a shorter queue (queue_length), views that differ less, or a "
                "lower learning rate; collapse_std=0 goes on regardless"
            )


@torch.no_grad()
def deviation(units_MD: Tensor, counted_M: Tensor | None = None) -> Tensor:
    """The standard deviation of vectors of all ranks, the mean over channels; a collective call."""
    return _deviation(_sums(units_MD, counted_M))


def _sums(units_MD: Tensor, counted_M: Tensor | None) -> Tensor:
    units_MD = units_MD.float()
    weights_M = units_MD.new_ones(len(units_MD)) if counted_M is None else counted_M.to(units_MD)
    count = weights_M.sum()[None]
    return sum_over_ranks(torch.cat([count, weights_M @ units_MD, weights_M @ units_MD.square()]))


def _deviation(sums: Tensor) -> Tensor:
    """The root of the mean variance over channels, from the number, the sums and the sums of squares."""
    first, second = sums[1:].div(sums[0].clamp(min=1)).chunk(2)
    return (second - first.square()).clamp(min=0).mean().sqrt()
