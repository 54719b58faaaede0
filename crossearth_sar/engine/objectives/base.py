"""What is learnt, as a run sees it: a network, the losses of a batch, a score, and what else must be kept.

A run (engine/run.py) owns the folder and the steps, an executor (engine/executors/) the backward pass and the
update; an objective knows neither. Segmentation is one (segmentation.py). A new one is a subclass of
`Objective` that gives `build`, `batches` and `losses`; all else has a default.

B images of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from crossearth_sar.engine.executors.base import Executor
from crossearth_sar.model_files import WEIGHTS_FILE, save_file

Batch = dict[str, Any]
Forward = Callable[..., Any]
"""The network as the executor calls it: with the arguments of its forward, hooks and casts included."""


class Load(Protocol):
    """The run's loader."""

    def __call__(
        self, dataset: Dataset[Any], join: Callable[[list[Any]], Batch], *, in_process: bool = False
    ) -> Iterable[Batch]:
        """The batches from the run's step on.

        Args:
            dataset: its index is the number of a draw.
            join: samples -> a batch.
            in_process: no worker processes, whatever the settings say.
        """


@dataclass(frozen=True)
class Losses:
    """Of one part of a batch.

    total: scalar with a graph, what is minimised. values: for the log, of any shape; their means over all
    parts and ranks reach `Objective.columns`.
    """

    total: Tensor
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Finished:
    """What a finished run tells its objective's report.

    output: its folder. step: optimizer steps done. model_of_step: those behind the model that is left.
    facts: of the executor. say: a line to the user, from the main rank.
    """

    output: Path
    step: int
    model_of_step: int
    facts: Mapping[str, Any]
    say: Callable[[str], None]


class Objective:
    """What is learnt. What a step computes may depend on (settings, step, part) alone, so that a resumed run
    repeats an uninterrupted one: the run seeds torch before each part."""

    best_by = "score"
    """The column of `score` whose highest value makes the best model."""

    def build(self, *, from_start: bool) -> nn.Module:
        """The network, with frozen parts marked by `requires_grad`.

        Args:
            from_start: False where a checkpoint's weights follow: what trains needs none then.
        """
        raise NotImplementedError

    def frozen(self, model: nn.Module) -> set[str]:
        """Names of parameters that stay as they are and that `build` gives again: checkpoints leave them out
        and keep a fingerprint."""
        return set()

    def batches(self, load: Load) -> Iterable[Batch]:
        """This rank's batch of each step: `load(dataset, join)`, or what is made of it."""
        raise NotImplementedError

    def losses(self, forward: Forward, model: nn.Module, part: Batch) -> Losses:
        """Of one part, on the device of the network.

        Args:
            forward: to be called for what trains.
            model: the network itself, for methods that are not its forward.
        """
        raise NotImplementedError

    def prepare(self, parts: list[Batch]) -> list[Batch]:
        """This rank's parts of a step, on the host, before any is computed; may be a collective call."""
        return parts

    def columns(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """A row of the log from the mean values; the column «loss» must be among them."""
        return {name: float(value) for name, value in values.items()}

    def train_mode(self, model: nn.Module) -> None:
        """Training mode for what trains."""
        model.train()

    def score(self, model: nn.Module) -> dict[str, float] | None:
        """The held-out score of a whole network with its masters; a collective call. None: there is none."""
        return None

    def score_words(self, row: Mapping[str, float]) -> str:
        """The score in a phrase."""
        return f"{self.best_by} {row[self.best_by]:.4g}"

    def after_step(self, executor: Executor) -> None:
        """After each optimizer step that was applied, an average of the weights, say."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside weights and optimizer, equal on all ranks."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""
        assert not state

    def about(self) -> dict[str, Any]:
        """What a resumed run must find as it was, data for instance: kept in each checkpoint's state.json. Of
        the main rank."""
        return {}

    def check_about(self, before: dict[str, Any]) -> None:
        """Compares what `about` gave when the checkpoint was made; InputError where the run would not be the
        same. Of the main rank."""

    def save_model(self, model: nn.Module, folder: Path, weights: Mapping[str, Tensor]) -> list[str]:
        """Writes the network with these weights, and what says how to build it; the names of the files."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS_FILE)
        return [WEIGHTS_FILE]

    def save_result(self, model: nn.Module, folder: Path) -> None:
        """Writes what a finished run is for, the best network or the part of it that is used."""
        self.save_model(model, folder, model.state_dict())

    def write_config(self, model: nn.Module, folder: Path) -> list[str]:
        """Only what says how to build the network, where frozen weights are not copied; the files' names."""
        return []

    def meter_images(self) -> tuple[int, float]:
        """(tokens, FLOP of a forward pass) of one image, for the log's speed; zeros where nobody counted."""
        return 0, 0.0

    def describe(self, model: nn.Module) -> list[str]:
        """Lines for the user before the first step."""
        return []

    def report(self, finished: Finished, model: nn.Module) -> dict[str, Any]:
        """What a finished run leaves beside its model, scored on `model`, the best; collective."""
        return {}


def split_into_parts(batch: Batch, accumulation: int) -> list[Batch]:
    """This rank's parts of the batch, every `accumulation`-th image each; words, as names, stay behind."""
    tensors = {key: value for key, value in batch.items() if _is_tensors(value)}
    return [
        {key: _each(value, lambda t, part=part: t[part::accumulation]) for key, value in tensors.items()}  # type: ignore[misc]
        for part in range(accumulation)
    ]


def on_device(part: Batch, device: torch.device) -> Batch:
    """The part with its tensors there; copies from pinned memory do not wait."""
    return {key: _each(value, lambda t: t.to(device, non_blocking=True)) for key, value in part.items()}


def named_rows(values: Mapping[str, Tensor]) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """Values of any shape as one float32 vector, and the way back."""
    shapes = {name: value.shape for name, value in values.items()}

    def back(vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    return torch.cat([value.detach().float().reshape(-1) for value in values.values()]), back


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Tensor) for v in value)
    )


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(value) if isinstance(value, Tensor) else [change(item) for item in value]
