"""How far a long piece of work is: a bar in a terminal, a line a minute anywhere else."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

LINE_EVERY_S = 60.0


class Progress:
    """Counts up to `total`: `with Progress("scene.tif", 400, "window") as progress: progress.add(4)`."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.bar = tqdm(total=total, unit=unit, leave=False) if sys.stderr.isatty() else None
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            left_s = (now - self.started) * (self.total - self.done) / self.done
            print(
                f"{self.name}: {self.done} of {self.total} {self.unit}s, about {left_s / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )
