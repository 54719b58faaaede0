"""Running a benchmark: open the two domains, predict the target's test side, score the paper's classes.

The one thing this file fixes is what a score means: counts are summed over all test patches, classes are
those of the row's task, and the mean is over its scored classes alone. Images are normalised by the dB
statistics of their own domain, which needs no label of it.

B batch, C bands, K classes, H W pixels.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.config import require
from crossearth_sar.data.datasets.official import Part
from crossearth_sar.data.datasets.published import named_dataset, open_spec
from crossearth_sar.data.datasets.tasks import Task
from crossearth_sar.data.domain import Domain, DomainConfig, OfficialConfig, open_domain
from crossearth_sar.data.sample import Sample
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.evaluation.evaluate import evaluate, predict_sample
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.evaluation.registry import Benchmark, DomainRef
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.spacing import evenly_spaced, sliding_windows

Logits = Callable[[Tensor], Tensor]
"""A model as others see it: (B, C, H, W) linear amplitude -> (B, K, h, w) logits at any stride."""

Predictor = Callable[[Sample], Tensor]
"""(H, W) int64 classes of one sample."""


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """Where the data are, and what the paper leaves open."""

    data_root: str
    """The folder that holds the datasets' folders."""
    splits: str | None = None
    """Where splits are kept; null: splits below the data root."""
    seed: int = 0
    """Of the splits."""
    datasets: dict[str, Any] = field(default_factory=dict)
    """Dataset: {changes to its row}."""
    normalize: str = "domain"
    """Whose dB statistics: domain, of the whole of it, or image, of each."""

    def __post_init__(self) -> None:
        require(self.normalize in ("domain", "image"), "normalize", self.normalize, "'domain' or 'image'")
        for key in self.datasets:
            named_dataset(key)


def side_config(reference: DomainRef, task: Task, part: Part, config: ProtocolConfig) -> DomainConfig:
    """The train or test side of one domain, with the classes of `task`."""
    return DomainConfig(
        name=re.sub(r"[^A-Za-z0-9.]+", "-", f"{reference.dataset} {reference.domain} {part}"),
        official=OfficialConfig(
            dataset=reference.dataset,
            domain=reference.domain,
            part=part,
            task=task.key,
            splits=None if config.splits is None else str(Path(config.splits).absolute()),
            split_seed=config.seed,
            changes=config.datasets.get(reference.dataset, {}),
        ),
        normalize=config.normalize,
    )


def training_domains(row: Benchmark, config: ProtocolConfig) -> dict[str, DomainConfig | tuple[DomainConfig]]:
    """What a run for the row trains on, validates on (the source's test side) and is for (the target's)."""
    sides: tuple[tuple[DomainRef, Part], ...] = (
        (row.source, "train"),
        (row.source, "test"),
        (row.target, "test"),
    )
    train, held_out, target = (side_config(reference, row.classes, part, config) for reference, part in sides)
    return {"train": train, "validation": held_out, "unseen": (target,)}


def open_source(row: Benchmark, config: ProtocolConfig, pixel_m: float | None = None) -> Domain:
    """What the row trains on, for a model of this ground spacing; InputError as `data.domain.open_domain`."""
    return open_domain(side_config(row.source, row.classes, "train", config), config.data_root, pixel_m)


def open_target(row: Benchmark, config: ProtocolConfig, pixel_m: float | None = None) -> Domain:
    """What the row is scored on, for a model of this spacing; InputError as `data.domain.open_domain`."""
    return open_domain(side_config(row.target, row.classes, "test", config), config.data_root, pixel_m)


@dataclass(frozen=True, kw_only=True)
class BenchmarkScore:
    """One model on one row.

    notes: where the data are not the paper's. expert_share_LE: of a sparse model, else (0, 0).
    """

    row: Benchmark
    confusion: ConfusionMatrix
    images: int
    notes: tuple[str, ...]
    expert_share_LE: Tensor

    @property
    def miou(self) -> float:
        """Mean IoU of the scored classes that occur, a fraction; NaN where none does."""
        return float(self.confusion.scores().iou[self.row.classes.scored_indices].nanmean())

    def to_mapping(self) -> dict[str, Any]:
        """Plain data for JSON; a score that does not exist is None."""
        row, names = self.row, self.row.classes.classes.names
        return {
            "benchmark": row.key,
            "gap": row.gap,
            "source": str(row.source),
            "target": str(row.target),
            "scored_classes": list(row.classes.scored),
            **self.confusion.scores().to_mapping(names),
            "miou": None if math.isnan(self.miou) else self.miou,
            "images": self.images,
            "paper_images": row.test_images,
            "notes": list(self.notes),
            "confusion": self.confusion.counts.tolist(),
            "classes": list(names),
        }


def run_benchmark(
    row: Benchmark,
    model: CrossEarthSAR | Predictor,
    target: Domain,
    *,
    max_images: int | None = None,
) -> BenchmarkScore:
    """Scores a model on the target of a row.

    Args:
        model: ours, or a Predictor (`slide_predictor` makes one of any network).
        max_images: scores that many evenly spaced images only, and notes it.

    Raises:
        InputError: the model's classes are not the row's, or it predicts something that is no class.
    """
    indices = evenly_spaced(len(target), len(target) if max_images is None else max_images)
    notes = list(target.notes)
    if len(indices) < len(target):
        notes.append(f"scored on {len(indices)} of {len(target)} test images")
    classes = len(row.classes.classes)
    if isinstance(model, CrossEarthSAR):
        if model.config.num_classes != classes:
            raise InputError(
                f"the model does not fit benchmark {row.key}",
                got=f"{model.config.num_classes} classes",
                expected=f"{classes}: {', '.join(row.classes.classes.names)}",
                fix="give the model fine-tuned for it; {benchmark} in the path stands for the row's name",
            )
        _require_classes(model, row)
        found = evaluate(model, target, indices)
        confusion, share = found.confusion, found.expert_share_LE.cpu()
    else:
        confusion, share = ConfusionMatrix(classes), torch.zeros(0, 0)
        for index in indices:
            sample = target[index]
            confusion.update(model(sample).cpu(), sample["mask"])
    return BenchmarkScore(
        row=row, confusion=confusion, images=len(indices), notes=tuple(notes), expert_share_LE=share
    )


def _require_classes(model: CrossEarthSAR, row: Benchmark) -> None:
    """InputError where the model says what its classes are, and they are others than the row's."""
    expected = row.classes.classes.names
    if model.class_names is None or [n.casefold() for n in model.class_names] == [
        n.casefold() for n in expected
    ]:
        return
    raise InputError(
        f"the model has other classes than benchmark {row.key}",
        got=", ".join(model.class_names),
        expected=", ".join(expected),
        fix="give the model fine-tuned for it; if they are the same under other names, correct "
        "classes.names in its config.json",
    )


def as_predictor(model: CrossEarthSAR | Predictor) -> Predictor:
    if isinstance(model, CrossEarthSAR):
        return lambda sample: predict_sample(model, sample)
    return model


def slide_predictor(
    network: Logits,
    num_classes: int,
    *,
    crop: int = 512,
    stride: int = 341,
    device: torch.device | str = "cpu",
) -> Predictor:
    """A Predictor of any network: overlapping windows, logits resized bilinearly to them and averaged.

    Raises (when it predicts):
        InputError: the network gives another shape than (1, num_classes, h, w), or no finite numbers.
    """

    @torch.no_grad()
    def predict(sample: Sample) -> Tensor:
        image = sample["image"][None].to(device)
        height, width = image.shape[-2:]
        total = torch.zeros(1, num_classes, height, width, device=device)
        hits = torch.zeros(height, width, device=device)
        for rows, columns in sliding_windows(height, width, crop, stride):
            window = image[..., rows, columns]
            logits = network(window)
            if logits.ndim != 4 or tuple(logits.shape[:2]) != (1, num_classes):
                raise InputError(
                    "the adapter's network gives no logits of this task",
                    got=f"shape {tuple(logits.shape)}",
                    expected=f"(1, {num_classes}, h, w)",
                )
            total[..., rows, columns] += F.interpolate(
                logits.float(), size=window.shape[-2:], mode="bilinear", align_corners=False
            )
            hits[rows, columns] += 1
        scores = total / hits
        if not bool(torch.isfinite(scores).all()):
            raise InputError(
                f"the adapter's network gives values that are not finite on {sample['name']!r}",
                expected="finite logits; its input is linear amplitude, which may be 0",
            )
        return scores.argmax(1)[0]

    return predict


def load_adapter(path: str) -> Callable[..., Logits]:
    """The function at `package.module:function`; it is called with num_classes and device.

    Raises:
        InputError: nothing can be imported from there, or it cannot be called.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        raise InputError("an adapter is a path to a function", got=path, expected="package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"the adapter's module {module_name!r} cannot be imported",
            got=str(error),
            fix="run from its folder, or put that on PYTHONPATH",
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise InputError(
            f"{module_name} has no function {name!r}{nearest(name, vars(module))}", expected="a function"
        )
    return factory


def absent_rows(rows: Mapping[str, Benchmark], config: ProtocolConfig) -> dict[str, str]:
    """Rows whose target dataset's folder is not there -> where it was looked for."""
    absent = {}
    for key, row in rows.items():
        spec = open_spec(row.target.dataset, config.datasets.get(row.target.dataset))
        root = Path(config.data_root).expanduser() / spec.folder
        if not root.is_dir():
            absent[key] = f"{spec.key} is not at {root}"
    return absent
