"""`crossearth-sar evaluate --config`: saved models on the domains of a YAML file, side by side.

The file names `domains` (OwnConfig), or is a training run's: then what it holds out and its unseen domains
are scored. A finished (model, domain) is kept in OUTPUT/parts and not computed again unless model, domain or
settings differ; files of a domain that change under their names are not noticed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossearth_sar.cli.own_config import own_config
from crossearth_sar.cli.parts import called, file_name, model_sha256, progress, read_part, write_part
from crossearth_sar.cli.probing import Options, contenders, probe_all
from crossearth_sar.config import require, to_mapping
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.domain_labels import tell_absent_classes
from crossearth_sar.data.sample import Sample
from crossearth_sar.device import checked_device
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.evaluation.calibration import store_temperature
from crossearth_sar.evaluation.class_mapping import ClassMapping, map_classes, parse_counts_as, require_known
from crossearth_sar.evaluation.figures import prediction_figure
from crossearth_sar.evaluation.image_scores import ImageScores, score_images, temperature_of
from crossearth_sar.evaluation.own_report import OwnScore, write_own_report
from crossearth_sar.folder_lock import FolderLock
from crossearth_sar.model import CrossEarthSAR, load_model
from crossearth_sar.provenance import provenance
from crossearth_sar.shipped import WEIGHTS, model_folder
from crossearth_sar.spacing import evenly_spaced

FORMAT = 1
"""Of the files in OUTPUT/parts: another number, and they are made anew."""


class Plan:
    """What is scored, opened and checked: models by what they are called, domains by model and name."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.config = arguments, own_config(arguments)
        self.output = Path(self.config.output).expanduser()
        self.folders = called([model_folder(model) for model in arguments.model])
        if arguments.calibrate is not None:
            require_own(self.folders.values())
        self.said = parse_counts_as(arguments.counts_as)
        self.mappings: dict[tuple[str, str], ClassMapping] = {}
        self._opened: dict[tuple[str, float | None], Domain] = {}
        of_models: list[Sequence[str]] = []
        for name, folder in self.folders.items():
            model = load_model(folder, device="cpu")
            of_models.append(model.class_names or ())
            for domain in self.config.domains:
                classes = self.domain(domain, model.config.pixel_m).classes.names
                count = model.config.num_classes
                mapped = map_classes(name, model.class_names, count, domain.name, classes, self.said)
                self.mappings[name, domain.name] = mapped
        require_known(self.said, of_models, [domain.classes.names for domain in self._opened.values()])
        if self.fitted_on is not None:
            for (label, _), opened in self._opened.items():
                if label == self.fitted_on and len(self.indices(opened)) < 2:
                    raise InputError(
                        f"domain {label!r} cannot both fit a temperature and test it",
                        got="one sample",
                        expected="two or more: every second one is fitted on",
                    )

    @cached_property
    def fitted_on(self) -> str | None:
        """The domain that --calibrate means; None without it."""
        names = [domain.name for domain in self.config.domains]
        asked: str | None = self.arguments.calibrate
        if asked == "":
            return names[0]
        if asked is not None and asked not in names:
            raise InputError(
                f"--calibrate: no domain {asked!r}{nearest(asked, names)}",
                expected=f"one of {', '.join(names)}",
            )
        return asked

    def domain(self, config: DomainConfig, pixel_m: float | None) -> Domain:
        """Opened once for each ground spacing of a model."""
        key = (config.name, pixel_m)
        if key not in self._opened:
            self._opened[key] = open_domain(config, self.config.data_root, pixel_m)
            tell_absent_classes(self._opened[key])
        return self._opened[key]

    def indices(self, domain: Domain) -> list[int]:
        """The samples of a domain that are scored."""
        return evenly_spaced(len(domain), self.arguments.max_images or len(domain))

    def settings(self, model: str, config: DomainConfig, **more: Any) -> dict[str, Any]:
        """What a part was made with: others, and it is made anew."""
        return {
            "format": FORMAT,
            "model_sha256": model_sha256(self.folders[model]),
            "domain": to_mapping(config),
            "data_root": str(Path(self.config.data_root).expanduser().absolute()),
            "max_images": self.arguments.max_images,
            "to_domain": list(self.mappings[model, config.name].to_domain),
            **more,
        }


def run_own(arguments: argparse.Namespace) -> int:
    """Scores every model on every domain; 1 where one could not be."""
    device = checked_device(arguments.device)
    plan = Plan(arguments)
    with FolderLock(plan.output, "evaluate"):
        return scored_all(plan, device)


def scored_all(plan: Plan, device: torch.device) -> int:
    """`run_own` in its folder."""
    arguments, about = plan.arguments, provenance()
    scores: list[OwnScore] = []
    waiting = {
        f"{name} on {domain.name}": "not scored yet"
        for name in plan.folders
        for domain in plan.config.domains
    }
    failed: dict[str, str] = {}
    for name, folder in plan.folders.items():
        model = load_model(folder, device=device)
        if plan.fitted_on is not None:
            calibrate(plan, name, model)
        for domain in plan.config.domains:
            pair = f"{name} on {domain.name}"
            del waiting[pair]
            try:
                scores.append(scored(plan, name, model, domain))
            except InputError as error:
                failed[pair] = "; ".join(line.strip() for line in str(error).splitlines())
                print(f"\n{pair} is not scored: {error}\n", file=sys.stderr, flush=True)
            page = write_own_report(plan.output, scores, about=about, absent={**failed, **waiting})
    if arguments.probe:
        options = Options(max_images=arguments.max_images, device=arguments.device)
        rows, _ = probe_all(
            plan.config, contenders(plan.folders, (), options), options, plan.output / "probes"
        )
        page = write_own_report(plan.output, scores, about=about, absent=failed, probes=rows)
    print(f"\n{page.read_text(encoding='utf-8')}\nAll of it is in {plan.output}/")
    return 1 if failed else 0


def calibrate(plan: Plan, name: str, model: CrossEarthSAR) -> None:
    """Fits the model's temperature on every second sample of the domain, and keeps it in its folder."""
    (config,) = (domain for domain in plan.config.domains if domain.name == plan.fitted_on)
    path = plan.output / "parts" / f"{file_name(name, config.name)}-temperature.json"
    settings = plan.settings(name, config)
    kept = read_part(path, settings)
    if kept is None:
        domain = plan.domain(config, model.config.pixel_m)
        bar = progress(plan.indices(domain)[::2], f"temperature of {name}")
        found = temperature_of(model, domain, bar, plan.mappings[name, config.name])
        write_part(path, settings, kept := {"temperature": found})
    model.temperature = kept["temperature"]
    store_temperature(plan.folders[name], kept["temperature"])
    print(
        f"{name}: temperature {model.temperature:g}, fitted on every second sample of {config.name}",
        flush=True,
    )


def scored(plan: Plan, name: str, model: CrossEarthSAR, config: DomainConfig) -> OwnScore:
    """One model on one domain: kept from an earlier run, or computed, with its picture."""
    slug, mapping = file_name(name, config.name), plan.mappings[name, config.name]
    path = plan.output / "parts" / f"{slug}.json"
    fitted = plan.fitted_on == config.name
    settings = plan.settings(
        name, config, temperature=model.temperature, fitted=fitted, pictures=plan.arguments.pictures
    )
    domain = plan.domain(config, model.config.pixel_m)
    indices, picture = plan.indices(domain), plan.output / f"predictions-{slug}.png"
    shown = [indices[i] for i in evenly_spaced(len(indices), plan.arguments.pictures)]
    kept = read_part(path, settings)
    if kept is None or (shown and not picture.is_file()):
        drawn: list[tuple[Sample, Tensor]] = []
        found = score_images(
            model,
            domain,
            progress(indices, f"{name} on {config.name}"),
            mapping,
            temperature=model.temperature,
            fitted_on=set(indices[::2]) if fitted else (),
            on_image=lambda i, sample, classes: drawn.append((sample, classes)) if i in shown else None,
        )
        require_scores(found, config.name)
        if drawn:
            samples, predictions = zip(*drawn, strict=True)
            prediction_figure(samples, predictions, domain.classes, picture, f"{name} on {config.name}")
        write_part(path, settings, kept := found.to_mapping())
    else:
        print(f"{name} on {config.name} is there already", flush=True)
    score = OwnScore(
        model=name,
        domain=config.name,
        slug=slug,
        classes=domain.classes,
        scores=ImageScores.from_mapping(kept),
        mapping=mapping,
        temperature=model.temperature,
        fitted=fitted,
        picture=picture.name if shown else None,
    )
    print(f"{name} on {config.name}: mIoU {100 * score.scores.confusion().scores().miou:.1f}", flush=True)
    return score


def require_scores(found: ImageScores, domain: str) -> None:
    """InputError where no pixel had a label."""
    if not found.confusion().counts.any():
        raise InputError(
            f"domain {domain!r} has no labelled pixel to score",
            got=f"{len(found.names)} samples without",
            fix="set labels or index of the folder, or pseudo_labels",
        )


def require_own(folders: Iterable[Path]) -> None:
    """InputError where a temperature would be written into a model that comes with the package."""
    for folder in folders:
        require(
            folder.parent != WEIGHTS, "--calibrate", str(folder), "a model folder of yours: a copy of it, say"
        )
