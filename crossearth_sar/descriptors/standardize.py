"""Running standardisation of the descriptors on their way to the routers.

Raw ENL can be thousands while entropy is about 3; unscaled, one column would own the router's logits.

B batch, P descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RunningStandardizer(nn.Module):
    """(x - mean) / std per descriptor, with statistics gathered while training.

    The first batches count equally (a plain mean of what was seen), later ones with weight `momentum`.
    In eval mode the buffers are used as they are; fresh ones (mean 0, variance 1) make it the identity.
    With torch.distributed running, the statistics of all ranks' batches are taken together, so that the
    buffers are the same on every rank.

    Args:
        num_descriptors: P.
        momentum: weight of a new batch once more than 1 / momentum batches were seen.
        epsilon: added to the variance; small, for roughness varies by 1e-4 and less.
    """

    def __init__(self, num_descriptors: int = 3, momentum: float = 0.01, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.register_buffer("mean", torch.zeros(num_descriptors))
        self.register_buffer("variance", torch.ones(num_descriptors))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.mean: Tensor
        self.variance: Tensor
        self.batches_seen: Tensor

    def forward(self, descriptors_BP: Tensor) -> Tensor:
        """(B, P) raw descriptors -> (B, P) standardised, float32."""
        descriptors_BP = descriptors_BP.float()
        if self.training and descriptors_BP.shape[0]:
            self._update(descriptors_BP)
        mean, variance = self.mean.float(), self.variance.float()
        fresh = self.batches_seen == 0
        scale = torch.where(fresh, torch.ones_like(variance), torch.rsqrt(variance + self.epsilon))
        return (descriptors_BP - mean) * scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows `.to(device)` but not `.bfloat16()` and the like: ENL in the thousands needs float32."""
        return super()._apply(lambda t: t.to(fn(t).device), recurse)

    @torch.no_grad()
    def _update(self, descriptors_BP: Tensor) -> None:
        rows = torch.tensor([descriptors_BP.shape[0]], dtype=torch.float64, device=descriptors_BP.device)
        values = descriptors_BP.double()
        sums = torch.cat([rows, values.sum(0), values.square().sum(0)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        first, second = sums[1:].div(sums[0]).chunk(2)
        # The batch's second moment about the new mean, so that drifting means count as spread.
        weight = torch.clamp(1.0 / (self.batches_seen + 1), min=self.momentum).double()
        mean = self.mean.double().lerp(first, weight)
        spread = (second - 2 * mean * first + mean.square()).clamp(min=0)
        shift = (self.mean.double() - mean).square()
        old = torch.where(self.batches_seen == 0, torch.zeros_like(spread), self.variance.double() + shift)
        self.variance.copy_(old.lerp(spread, weight))
        self.mean.copy_(mean)
        self.batches_seen += 1
