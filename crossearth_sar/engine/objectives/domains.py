"""The domains of a run, opened and checked against each other, and a score on one of them."""

from __future__ import annotations

from dataclasses import dataclass

from crossearth_sar.data.domain import (
    Domain,
    held_out_of,
    open_domain,
    require_held_out,
    require_same_classes,
)
from crossearth_sar.data.domain_labels import require_labels, tell_absent_classes
from crossearth_sar.data.sample import ClassTable
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks, sum_over_ranks
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.evaluate import Evaluation, evaluate
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.spacing import evenly_spaced


@dataclass(frozen=True)
class Domains:
    """train: what is trained on. validation: images of it held out. unseen: domains never trained on."""

    train: Domain
    validation: Domain
    unseen: tuple[Domain, ...]

    @property
    def classes(self) -> ClassTable:
        """The same of all."""
        return self.train.classes


def open_domains(config: RunConfig, pixel_m: float | None = None) -> Domains:
    """Opens them; without a validation domain, a share of the training domain is held out.

    Args:
        pixel_m: ground spacing of the run's model, at which their statistics are measured.

    Raises:
        InputError: for no training domain, other classes, no labels, or images that training sees too.
    """
    source, held_out = config.train, config.validation
    if source is None:
        raise InputError(
            "the run names no training domain",
            expected="train: {name: …, folder: {…}}, or simulated, official, mixture",
            fix="add train to the config; docs/TRAINING.md, Data",
        )
    if held_out is None:
        source, held_out = held_out_of(source)
    root = config.data_root
    train, validation = open_domain(source, root, pixel_m), open_domain(held_out, root, pixel_m)
    unseen = tuple(open_domain(domain, root, pixel_m) for domain in config.unseen)
    require_same_classes([train, validation, *unseen])
    require_held_out(train, [validation, *unseen])
    require_labels(train)
    for domain in (validation, *unseen):
        tell_absent_classes(domain)
    return Domains(train, validation, unseen)


def evaluate_together(
    model: CrossEarthSAR, domain: Domain, ranks: Ranks, max_samples: int | None = None
) -> Evaluation:
    """`model` on up to `max_samples` evenly spaced samples, shared among ranks; a collective call."""
    chosen = evenly_spaced(len(domain), min(len(domain), max_samples or len(domain)))
    result = evaluate(model, domain, chosen[ranks.rank :: ranks.size])
    result.confusion.counts.copy_(sum_over_ranks(result.confusion.counts))
    result.tokens_LE = sum_over_ranks(result.tokens_LE)
    return result
