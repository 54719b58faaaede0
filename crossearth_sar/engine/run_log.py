"""What a run says while it trains: CSV files, TensorBoard, trackers, the progress bar. Of the first rank."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossearth_sar.config import to_mapping, write_yaml
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.log import CsvLog, TensorBoard, logger, told_if_lost
from crossearth_sar.engine.trackers import Trackers


class RunLog:
    """The record of a run of `config` that goes on at `step`."""

    def __init__(self, config: RunConfig, step: int) -> None:
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        with told_if_lost("config.yaml"):
            write_yaml(config, output / "config.yaml")
        self._csv: dict[str, CsvLog] = {}
        self._lost: set[str] = set()
        for name, first in (("train", step), ("validation", step + 1 if step else 0)):
            with told_if_lost(f"{name}.csv"):
                self._csv[name] = CsvLog(output / f"{name}.csv", resume_step=first)
        self.tensorboard = TensorBoard(output / "tensorboard", resume_step=step)
        self.trackers = Trackers(config.trackers, output, to_mapping(config))
        self._bar = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            mininterval=1.0 if sys.stderr.isatty() else 15.0,
            dynamic_ncols=True,
        )

    def step(self, row: Mapping[str, Any]) -> None:
        """A training step's row."""
        self._everywhere("train", row, row["step"])
        shown = {"loss": f"{row['loss']:.2f}", "lr": f"{row['lr']:.1e}"}
        shown |= {"img_s": f"{row['images_per_second']:.1f}", "wait": f"{row['data_wait']:.0%}"}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def score(self, row: Mapping[str, Any], words: str) -> None:
        """A validation's row."""
        self._everywhere("validation", row, row["step"])
        self._bar.write(f"step {row['step']}: {words}", file=sys.stderr)

    def close(self) -> None:
        """The last events reach the disk, whatever ended the run."""
        self._bar.close()
        self.tensorboard.close()
        self.trackers.close()

    def _everywhere(self, prefix: str, row: Mapping[str, Any], step: int) -> None:
        try:
            if prefix in self._csv:
                self._csv[prefix].append(row)
        except OSError as error:
            if prefix not in self._lost:  # once; when there is room again, later rows are there
                logger.warning("%s.csv cannot be written, rows of it are lost: %s", prefix, error)
            self._lost.add(prefix)
        self.tensorboard.scalars(prefix, row, step)
        self.trackers.log(prefix, row, step)
