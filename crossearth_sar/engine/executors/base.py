"""How a training step is executed, as a run sees it, and where what is learnt lies in between.

An executor takes an objective's network, does backward passes and updates, and gives masters and moments by
parameter name, whole, whatever it made of them; so a checkpoint knows neither of executors nor of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from crossearth_sar.engine.distributed import Ranks


@dataclass(frozen=True)
class Outcome:
    """Of an optimizer step. applied: False where a gradient was not finite and nothing was changed."""

    grad_norm: float
    applied: bool


class TrainedState(Protocol):
    """Masters and moments by parameter name. All methods are collective calls."""

    names: list[str]
    """Of the parameters that train."""
    moments: tuple[str, ...]
    """What the optimizer keeps of each."""

    @property
    def adam_step(self) -> int:
        """Optimizer steps behind the moments."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole parameter, all experts included."""

    def gather(self, name: str, moment: str | None = None) -> Tensor:
        """The whole fp32 master, or a moment of it (zeros before a first step)."""

    def scatter(self, name: str, whole: Tensor, moment: str | None = None) -> None:
        """Puts this rank's part of `whole` where `gather` would take it from."""

    def prepare(self, adam_step: int) -> None:
        """Makes room for moments as after `adam_step` steps."""


class Executor(Protocol):
    """Backward, step, gather."""

    name: str
    ranks: Ranks
    ep_size: int
    """Ranks that share one set of experts."""
    micro_batch: int
    """Images of one forward pass on a rank."""

    @property
    def module(self) -> nn.Module:
        """The network on this rank: frozen or trained, all of it or this rank's slice."""

    def start(self, build: Callable[..., nn.Module], *, from_start: bool) -> None:
        """Builds what trains of what `build(from_start=…)`, an objective's, gives."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The network's forward, as it trains."""

    def set_rate(self, rate: float) -> None:
        """The learning rate of the step to come."""

    def accumulate(self, loss: Tensor, index: int) -> None:
        """Backward of the step's part `index`; with the last part, the update."""

    def outcome(self) -> Outcome:
        """Of the update, once the last part is through."""

    def whole(self) -> nn.Module:
        """A plain network with all experts and the current masters, in eval mode; a collective call."""

    def state(self) -> TrainedState:
        """Of what trains now."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight and buffer of the network, whole, float32 where it is a float; a collective call."""

    def set_weight(self, name: str, whole: Tensor) -> None:
        """Puts a whole weight or buffer into this rank's network; a collective call."""

    def full_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every weight and buffer, as in a network on one rank."""

    def facts(self) -> dict[str, Any]:
        """What a checkpoint and the report say of it: executor, ranks, ep_size, zero_stage."""

    def words(self) -> str:
        """The same for a person, one line."""

    def leave_record(self, output: Path) -> None:
        """Writes beside the run, on its main rank, what the executor was given, if anything."""
