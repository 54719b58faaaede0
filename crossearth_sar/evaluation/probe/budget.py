"""How long something trains: steps, or processor seconds of this process, and the learning rate on the way.

Equal seconds compare networks of unlike speed: who is faster sees more images. What is counted is what is
done in `Budget.step` alone; loading belongs into it, saving does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from crossearth_sar.config import require

WARM_UP = 0.05
"""Share of a budget in which the rate rises from 0."""

DECAY_POWER = 0.9


class Budget:
    """So many steps, or so many processor seconds.

    Attributes:
        done: steps so far. spent: seconds within them so far.
    """

    def __init__(self, *, steps: int | None = None, seconds: float | None = None) -> None:
        require(
            (steps is None) != (seconds is None), "budget", (steps, seconds), "steps or seconds, one of them"
        )
        require(steps is None or steps >= 1, "steps", steps, "at least 1")
        require(seconds is None or seconds > 0, "seconds", seconds, "above 0")
        self.steps, self.seconds, self.done, self.spent = steps, seconds, 0, 0.0

    @property
    def share(self) -> float:
        """How much of it is used, 0 to 1; seconds may end a step beyond."""
        if self.steps is not None:
            return self.done / self.steps
        assert self.seconds is not None
        return self.spent / self.seconds

    @contextmanager
    def step(self) -> Iterator[None]:
        """What is done within counts as a step and as time."""
        started = time.process_time()
        yield
        self.spent += time.process_time() - started
        self.done += 1


def rate_at(share: float, peak: float) -> float:
    """The learning rate at a share of the budget: linear warm-up to `peak`, polynomial decay to 0."""
    if share < WARM_UP:
        return peak * (share + 1e-3) / WARM_UP
    return float(peak * (1 - (share - WARM_UP) / (1 - WARM_UP)) ** DECAY_POWER)
