"""`probe_table`: encoders x methods x numbers of labelled images x test domains, with intervals.

Every encoder sees the same labelled images and the same test images, and is scored at the pixels of the test
images themselves, by the confusion matrix that everything else here is scored by.

K classes of a draw, C classes of the domain, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from crossearth_sar.config import require
from crossearth_sar.data.domain import Domain, require_same_classes
from crossearth_sar.data.sample import Sample
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.metrics import ConfusionMatrix
from crossearth_sar.evaluation.probe.cells import encode, pixel_scores, working_sample
from crossearth_sar.evaluation.probe.encoder import Encoder
from crossearth_sar.evaluation.probe.finetune import FineTuning, fine_tuned
from crossearth_sar.evaluation.probe.fitting import Fitted, OnImage, draws_of, encode_labelled, fit
from crossearth_sar.evaluation.probe.row import ProbeRow as ProbeRow
from crossearth_sar.evaluation.probe.subsets import Labels
from crossearth_sar.ground_scale import classes_at

FROZEN = ("linear", "knn")
"""Methods that leave the encoder as it is."""

METHODS = (*FROZEN, "finetune")

Counts = dict[str, NDArray[np.int64]]
"""Image -> (C, C)."""


def probe_table(
    encoders: Mapping[str, Encoder],
    train: Domain,
    tests: Mapping[str, Domain],
    labels: Sequence[Labels] = (2, 8, 64),
    seeds: Sequence[int] = (0, 1, 2),
    *,
    methods: Sequence[str] = FROZEN,
    fine_tuning: FineTuning | None = None,
    on_image: OnImage = lambda: None,
) -> list[ProbeRow]:
    """Fits probes on few labelled images of `train` and scores them on each of `tests`.

    Args:
        encoders: by the names that rows call them; `encoder.random_twin` and `floors.statistics_encoder`
            are the floors to put beside.
        train, tests: domains of the same classes, opened for the encoders' ground spacing.
        labels: numbers of labelled images, or shares of all ("10%").
        seeds: each draws its own images; the same for all encoders. All images are one draw.
        methods: linear, knn, finetune; of the last there are rows of encoders that have a module.
        fine_tuning: how long and how fast; None: the defaults.
        on_image: called after each image that is encoded.

    Returns:
        Rows by test, number of labels, method, encoder.

    Raises:
        InputError: an unknown method, labels that cannot be drawn or show one class, domains of other
            classes or another spacing, an encoder that gives no finite maps, a test without labels.
    """
    _check(encoders, train, tests, methods, seeds)
    draws = draws_of(train, labels, seeds)
    cells = encode_labelled(encoders, train, draws, on_image)
    frozen = [method for method in FROZEN if method in methods]
    fitted = {
        name: [fit(method, draw, cells[name]) for method in frozen for draw in draws] for name in encoders
    }
    scored = {test: _score(encoders, fitted, domain, on_image) for test, domain in tests.items()}
    if "finetune" in methods:
        for name, encoder in encoders.items():
            for draw in draws if encoder.module is not None else ():
                start = fit("linear", draw, cells[name])
                with fine_tuned(name, encoder, start, train, fine_tuning or FineTuning()) as tuned:
                    for test, domain in tests.items():
                        alone = _score({name: encoder}, {name: [tuned]}, domain, on_image)
                        scored[test][name] += alone[name]
    return [
        _row(name, method, asked, test, domain, scored[test][name])
        for test, domain in tests.items()
        for asked in dict.fromkeys(draw.labels for draw in draws)
        for method in methods
        for name in encoders
        if method != "finetune" or encoders[name].module is not None
    ]


def _score(
    encoders: Mapping[str, Encoder],
    fitted: Mapping[str, Sequence[Fitted]],
    domain: Domain,
    on_image: OnImage,
) -> dict[str, list[tuple[Fitted, Counts]]]:
    """Of each encoder its probes, with the counts of every image of the domain."""
    found: dict[str, list[tuple[Fitted, Counts]]] = {
        name: [(probe, {}) for probe in probes] for name, probes in fitted.items()
    }
    for index in range(len(domain)):
        sample, unit = domain[index], "; ".join(domain.origin(index)[0])
        for name, encoder in encoders.items():
            for counts, (_, sums) in zip(
                image_counts_of(name, encoder, sample, fitted[name], len(domain.classes)),
                found[name],
                strict=True,
            ):
                sums[unit] = sums[unit] + counts if unit in sums else counts
        on_image()
    return found


def image_counts_of(
    name: str, encoder: Encoder, sample: Sample, probes: Iterable[Fitted], classes: int
) -> list[NDArray[np.int64]]:
    """(C, C) of each probe on one sample, at the sample's own pixels."""
    seen, mask = working_sample(encoder, sample), sample["mask"]
    windows, size = encode(name, encoder, seen), (seen["mask"].shape[0], seen["mask"].shape[1])
    found = []
    for probe in probes:
        scores_KHW = pixel_scores(windows, size, probe.probe.scores)
        predicted = probe.present[classes_at(scores_KHW, (mask.shape[0], mask.shape[1]))]
        matrix = ConfusionMatrix(classes)
        matrix.update(predicted, mask)
        found.append(matrix.counts.numpy())
    return found


def _row(
    name: str,
    method: str,
    asked: str,
    test: str,
    domain: Domain,
    scored: Sequence[tuple[Fitted, Counts]],
) -> ProbeRow:
    mine = [(p, counts) for p, counts in scored if (p.method, p.draw.labels) == (method, asked)]
    row = ProbeRow(
        encoder=name,
        method=method,
        labels=asked,
        images=len(mine[0][0].draw.images),
        test=test,
        classes=domain.classes.names,
        seeds=tuple(probe.draw.seed for probe, _ in mine),
        units=tuple(mine[0][1]),
        absent=tuple(_absent(probe, domain.classes.names) for probe, _ in mine),
        counts_SNCC=np.stack([np.stack(list(counts.values())) for _, counts in mine]),
    )
    if not row.counts_SNCC.any():
        raise InputError(
            f"test domain {test!r} has no labelled pixel to score",
            got=f"{len(domain)} samples without",
            fix="set labels or index of the folder, or leave the domain out",
        )
    return row


def _absent(probe: Fitted, names: Sequence[str]) -> tuple[str, ...]:
    present = set(probe.present.tolist())
    return tuple(name for index, name in enumerate(names) if index not in present)


def _check(
    encoders: Mapping[str, Encoder],
    train: Domain,
    tests: Mapping[str, Domain],
    methods: Sequence[str],
    seeds: Sequence[int],
) -> None:
    require(len(encoders) > 0, "encoders", list(encoders), "at least one")
    require(len(tests) > 0, "tests", list(tests), "at least one domain")
    require(len(set(seeds)) == len(seeds) > 0, "seeds", list(seeds), "at least one, each once")
    known = set(methods) <= set(METHODS) and len(set(methods)) == len(methods) > 0
    require(known, "methods", list(methods), f"some of {', '.join(METHODS)}")
    trains = any(encoder.module is not None for encoder in encoders.values())
    require(trains or "finetune" not in methods, "methods", list(methods), "an encoder with a module to tune")
    require_same_classes([train, *tests.values()])
    for name, encoder in encoders.items():
        for domain in (train, *tests.values()):
            require(
                domain.pixel_m == encoder.pixel_m,
                f"encoder {name!r} on domain {domain.name!r}: pixel_m",
                domain.pixel_m,
                f"{encoder.pixel_m}, the encoder's: open the domain for it",
            )
