"""The probe at the end of a self-supervised run: its domains, opened before the first step, and its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crossearth_sar.data.domain import Domain, open_domain, require_held_out, require_same_classes
from crossearth_sar.data.domain_labels import require_labels, tell_absent_classes
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.selfsup_config import ProbeAtEnd
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.probe.encoder import Encoder, model_encoder, random_twin
from crossearth_sar.evaluation.probe.table import ProbeRow, probe_table
from crossearth_sar.model import CrossEarthSAR, load_model

THIS_RUN, RANDOM = "this run", "random initialisation"
"""Rows that every table has."""


@dataclass(frozen=True)
class ProbeDomains:
    """labelled: what the probe learns from. scored: what it is scored on, held-out images first."""

    settings: ProbeAtEnd
    labelled: Domain
    scored: tuple[Domain, ...]


def open_probe(config: RunConfig, images: Domain, pixel_m: float | None) -> ProbeDomains | None:
    """The domains of the run's probe, checked; None where it has none.

    Args:
        images: what the backbone learns from: none of it may be scored, with labels or without.

    Raises:
        InputError: for what is wrong with them, or a model beside that is not there.
    """
    settings, root = config.probe, config.data_root
    if settings is None:
        return None
    for name, folder in settings.beside.items():
        _beside(name, folder)
    labelled = open_domain(settings.labelled, root, pixel_m)
    named = (config.validation, *config.unseen)
    scored = tuple(open_domain(domain, root, pixel_m) for domain in named if domain is not None)
    require_same_classes([labelled, *scored])
    require_labels(labelled)
    require_held_out(labelled, scored)
    for domain in scored:
        tell_absent_classes(domain)
        _require_unseen(images, domain)
    return ProbeDomains(settings, labelled, scored)


def probe_rows(
    probe: ProbeDomains, model: CrossEarthSAR, seed: int, on_image: Callable[[], None] = lambda: None
) -> list[ProbeRow]:
    """The frozen linear probe on `model`, on the same architecture untrained, and on what is named beside."""
    settings = probe.settings
    encoders: dict[str, Encoder] = {
        THIS_RUN: model_encoder(model),
        **{name: model_encoder(_beside(name, folder)) for name, folder in settings.beside.items()},
        RANDOM: random_twin(model, seed=seed),
    }
    return probe_table(
        encoders,
        probe.labelled,
        {domain.name: domain for domain in probe.scored},
        settings.labels,
        range(settings.seeds),
        methods=("linear",),
        on_image=on_image,
    )


def probe_lines(rows: Sequence[ProbeRow]) -> list[str]:
    """Markdown: a table for each domain, mIoU in percent with its interval, a column a number of labels."""
    lines: list[str] = []
    for test in dict.fromkeys(row.test for row in rows):
        here = [row for row in rows if row.test == test]
        columns = list(dict.fromkeys(row.labels for row in here))
        lines += [
            f"## Frozen linear probe on {test}: mIoU by labelled images",
            "",
            "| features of | " + " | ".join(columns) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for name in dict.fromkeys(row.encoder for row in here):
            cells = {row.labels: _cell(row) for row in here if row.encoder == name}
            lines.append(f"| {name} | " + " | ".join(cells[labels] for labels in columns) + " |")
        lines.append("")
    return lines


def _cell(row: ProbeRow) -> str:
    interval = row.interval
    if interval is None:
        return f"{100 * row.miou:.1f}"
    return f"{100 * row.miou:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _beside(name: str, folder: str) -> CrossEarthSAR:
    try:
        return load_model(folder)
    except InputError as error:
        raise InputError(
            f"probe.beside: {name!r} cannot be read", got=str(error), fix="train it first, or leave it out"
        ) from error


def _require_unseen(images: Domain, scored: Domain) -> None:
    """InputError where the run trains on an image that is scored: not even its pixels should be known."""
    trained = {images.origin(index)[0] for index in range(len(images))}
    shared = next((o[0] for i in range(len(scored)) if (o := scored.origin(i))[0] in trained), None)
    if shared is not None:
        raise InputError(
            f"domain {scored.name!r} is scored on what {images.name!r} trains on",
            got=f"{shared[0]}, in both",
            expected="images that the run does not see, not even without their labels",
            fix="part with names, exclude, where, another folder or seed, or part: train and test",
        )
