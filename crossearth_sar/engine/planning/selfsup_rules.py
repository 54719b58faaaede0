"""What a self-supervised run cannot be, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from crossearth_sar.engine.config import RunConfig
from crossearth_sar.errors import InputError


def check_selfsup(config: RunConfig) -> None:
    """InputError for settings of a self-supervised run that cannot work; any other run passes."""
    if config.selfsup is None:
        if config.probe is not None:
            raise InputError(
                "a probe is for self-supervised runs", got="probe, and selfsup null", fix="leave probe out"
            )
        return
    for broken, got, expected, fix in (*_of_ranks(config), *_of_data(config)):
        if broken:
            raise InputError(
                "self-supervised pre-training cannot be run so", got=got, expected=expected, fix=fix
            )


def _of_ranks(config: RunConfig) -> Iterator[tuple[bool, str, str, str]]:
    parallel = config.parallel
    yield (
        parallel.zero_stage == 3,
        "parallel.zero_stage 3",
        "0 to 2: the key network follows whole weights at every step, and stage 3 keeps them nowhere",
        "--set parallel.zero_stage=2",
    )
    yield (
        parallel.ep_size not in ("auto", 1),
        f"parallel.ep_size {parallel.ep_size}",
        "1: the key network has all experts on every rank, and so must the query network that it follows",
        "--set parallel.ep_size=1",
    )
    yield (
        config.mode != "full",
        f"mode {config.mode}",
        "full: the whole backbone learns",
        "--set mode=full",
    )


def _of_data(config: RunConfig) -> Iterator[tuple[bool, str, str, str]]:
    assert config.selfsup is not None
    length, batch = config.selfsup.method.queue_length, config.batch_size
    scored = config.validation is not None or bool(config.unseen)
    yield (
        length % batch != 0,
        f"selfsup.method.queue_length {length} with batch_size {batch}",
        "a multiple of batch_size: the keys of a batch take the place of the oldest",
        f"--set selfsup.method.queue_length={-(-length // batch) * batch}",
    )
    yield (
        scored and config.probe is None,
        "validation or unseen, and no probe",
        "probe: {labelled: …}: nothing else of such a run has a score",
        "add probe, or leave validation and unseen out",
    )
    yield (
        config.probe is not None and not scored,
        "probe, and neither validation nor unseen",
        "labelled images that it is scored on",
        "add validation, or leave probe out",
    )
