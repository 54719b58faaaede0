"""Running standardisation of the descriptors on their way to the routers.

Raw ENL can be thousands while entropy is about 3; unscaled, one column would own the router's logits. Scaled
alone is not enough: a constant crop has an ENL of 1e7, and another sensor lies a hundred deviations off. So
one odd image may neither ruin the statistics for those after it, nor outshout the tokens at the router. The
paper's literal form is without all this: `moe.standardize: false`.

B batch, P descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from crossearth_sar.errors import InputError

DESCRIPTOR_LIMIT = 5.0
"""Standardised descriptors are cut to +- this many deviations; so are, later on, those that are counted."""
LARGEST_COUNTED = 1000.0
"""A larger descriptor is counted as this. Entropy and roughness never are; an ENL is where X' spreads by less
than 3 % of its mean: a fill value, saturation, even ground after a dozen looks. (Real images: 1 to 233.)"""
FREE_BATCHES = 10
"""So many batches are counted as they are, for there is nothing yet that says what is odd."""


class RunningStandardizer(nn.Module):
    """(x - mean) / std per descriptor, with statistics gathered while training.

    The first batches count equally (a plain mean of what was seen), later ones with weight `momentum`.
    In eval mode the buffers are used as they are; fresh ones (mean 0, variance 1) make it the identity.
    What comes out is cut to +- DESCRIPTOR_LIMIT, save from fresh buffers. A row with a NaN or infinity is
    not counted and comes out as NaN, to be heard of. After FREE_BATCHES a value further than
    DESCRIPTOR_LIMIT deviations from the mean is counted as one just so far: an odd image moves the
    statistics little, a new sensor that stays moves them to itself within some dozens of batches.
    With torch.distributed running, the statistics of all ranks' batches are taken together, so that the
    buffers are the same on every rank. In training mode it belongs where the model is: in a DataLoader's
    worker, whose ranks nobody meets and whose buffers nobody saves, it raises an InputError.

    Args:
        num_descriptors: P.
        momentum: weight of a new batch once more than 1 / momentum batches were seen.
        epsilon: added to the variance; small, for roughness varies by 1e-4 and less.
        device: of the buffers; "meta" until `to_empty` and `reset_parameters`.
    """

    def __init__(
        self,
        num_descriptors: int = 3,
        momentum: float = 0.01,
        epsilon: float = 1e-12,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.register_buffer("mean", torch.empty(num_descriptors, device=device))
        self.register_buffer("variance", torch.empty(num_descriptors, device=device))
        self.register_buffer("batches_seen", torch.empty((), dtype=torch.int64, device=device))
        self.mean: Tensor
        self.variance: Tensor
        self.batches_seen: Tensor
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As nothing was seen: mean 0, variance 1."""
        self.mean.zero_()
        self.variance.fill_(1)
        self.batches_seen.zero_()

    def forward(self, descriptors_BP: Tensor) -> Tensor:
        """(B, P) raw descriptors -> (B, P) standardised, float32."""
        descriptors_BP = descriptors_BP.float()
        if self.training:
            self._refuse_worker()
            self._update(descriptors_BP)
        scaled_BP = (descriptors_BP - self.mean.float()) * torch.rsqrt(self.variance.float() + self.epsilon)
        scaled_BP = scaled_BP.clamp(-DESCRIPTOR_LIMIT, DESCRIPTOR_LIMIT)
        scaled_BP = torch.where(self.batches_seen == 0, descriptors_BP, scaled_BP)
        return torch.where(torch.isfinite(descriptors_BP), scaled_BP, torch.nan)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows `.to(device)` but not `.bfloat16()` and the like: ENL in the thousands needs float32."""
        return super()._apply(lambda t: fn(t).to(t.dtype) if t.is_meta else t.to(fn(t).device), recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As nn.Module's; refuses statistics with a NaN, which an earlier version could save."""
        for name in ("mean", "variance"):
            value = state_dict.get(prefix + name)
            if value is not None and not value.is_meta and not bool(torch.isfinite(value).all()):
                raise InputError(
                    f"the descriptor statistics {prefix}{name} are no numbers",
                    got=str(value.tolist()),
                    expected="finite values",
                    fix="they met an image with a bad pixel: take an earlier checkpoint, or train anew",
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _refuse_worker(self) -> None:
        if torch.compiler.is_compiling():  # the question would break the graph, and no worker compiles
            return
        worker = get_worker_info()
        if worker is not None:
            raise InputError(
                "statistics gathered in a DataLoader's worker would stay in its copy of the module",
                got=f"training mode in worker {worker.id}",
                fix="hand raw descriptors over and standardise them where the model is, or call its eval()",
            )

    @torch.no_grad()
    def _update(self, descriptors_BP: Tensor) -> None:
        counted_B = torch.isfinite(descriptors_BP).all(1)
        values = torch.where(counted_B[:, None], self._within_bounds(descriptors_BP.double()), 0.0)
        sums = torch.cat([counted_B.sum()[None].double(), values.sum(0), values.square().sum(0)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        first, second = sums[1:].div(sums[0].clamp(min=1)).chunk(2)
        # The batch's second moment about the new mean, so that drifting means count as spread.
        weight = torch.clamp(1.0 / (self.batches_seen + 1), min=self.momentum).double()
        mean = self.mean.double().lerp(first, weight)
        spread = (second - 2 * mean * first + mean.square()).clamp(min=0)
        shift = (self.mean.double() - mean).square()
        old = torch.where(self.batches_seen == 0, torch.zeros_like(spread), self.variance.double() + shift)
        any_row = sums[0] > 0  # no branch on it: that would make a GPU wait
        self.variance.copy_(torch.where(any_row, old.lerp(spread, weight), self.variance))
        self.mean.copy_(torch.where(any_row, mean, self.mean))
        self.batches_seen += any_row

    def _within_bounds(self, values_BP: Tensor) -> Tensor:
        """The values as they are counted, a function of them and the buffers alone: the same on any rank."""
        values_BP = values_BP.clamp(max=LARGEST_COUNTED)
        mean = self.mean.double()
        reach = DESCRIPTOR_LIMIT * (self.variance.double() + self.epsilon).sqrt()  # never 0, so it can grow
        near_BP = values_BP.clamp(mean - reach, mean + reach)
        return torch.where(self.batches_seen < FREE_BATCHES, values_BP, near_BP)
