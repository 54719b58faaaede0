"""Domains of one's own to score models on: a file that lists them, or a training run's."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from crossearth_sar.cli.config_arguments import read_config
from crossearth_sar.config import from_mapping, layered, parse_overrides, require, to_mapping
from crossearth_sar.data.domain import DomainConfig, held_out_of
from crossearth_sar.engine.config import RunConfig, finetuning_settings
from crossearth_sar.errors import InputError


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """What `evaluate --config` reads where it is not a training run's file."""

    domains: tuple[DomainConfig, ...]
    """What is scored: domains as in training, with labels."""
    train: DomainConfig | None = None
    """What probes take their few labelled images from; evaluation alone does not look at it."""
    data_root: str = ""
    """What relative folder roots of the domains start from."""
    output: str = "runs/evaluate"
    """The folder of the report."""

    def __post_init__(self) -> None:
        names = [domain.name for domain in self.domains]
        require(len(set(names)) == len(names) > 0, "domains", names, "at least one, with distinct names")


def own_config(arguments: argparse.Namespace) -> OwnConfig:
    """The domains of the file; --set, --data-root and --output go over it.

    Raises:
        InputError: as `from_mapping`, or a training run's file names nothing to score.
    """
    content, over = read_config(arguments.config), parse_overrides(arguments.overrides)
    if "domains" in content:
        config = from_mapping(OwnConfig, layered(OwnConfig, content, over))
    else:
        run = from_mapping(RunConfig, layered(RunConfig, to_mapping(finetuning_settings()), content, over))
        train, held_out = run.train, run.validation
        if train is not None and held_out is None:
            train, held_out = held_out_of(train)
        domains = tuple(domain for domain in (held_out, *run.unseen) if domain is not None)
        if not domains:
            raise InputError(
                f"{arguments.config} names no domain to score",
                expected="domains: [{name: …, folder: {…}}], or a training run's train, validation or unseen",
            )
        config = OwnConfig(domains=domains, train=train, data_root=run.data_root)
    changes = {"data_root": arguments.data_root, "output": arguments.output}
    given = {key: value for key, value in changes.items() if value is not None}
    return from_mapping(OwnConfig, {**to_mapping(config), **given})
