"""Encoders for probes, by the names that a report calls them, and their rows, kept encoder by encoder.

Beside the models that are asked for stand two floors: the same architectures with random weights, and image
statistics. A finished encoder is kept in OUTPUT/parts until encoder, domains or settings differ.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crossearth_sar.cli.own_config import OwnConfig
from crossearth_sar.cli.parts import file_name, model_sha256, read_part, write_part
from crossearth_sar.cli.process import look_in_working_folder
from crossearth_sar.config import to_mapping
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain, require_held_out
from crossearth_sar.data.domain_labels import require_labels, tell_absent_classes
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.probe.encoder import Encoder, WhichMaps, model_encoder, random_twin
from crossearth_sar.evaluation.probe.finetune import FineTuning
from crossearth_sar.evaluation.probe.floors import CELL, statistics_encoder
from crossearth_sar.evaluation.probe.report import write_probe_report
from crossearth_sar.evaluation.probe.row import ProbeRow
from crossearth_sar.evaluation.probe.subsets import image_counts
from crossearth_sar.evaluation.probe.table import FROZEN, probe_table
from crossearth_sar.evaluation.protocol import load_adapter
from crossearth_sar.folder_lock import FolderLock
from crossearth_sar.model import load_model
from crossearth_sar.provenance import provenance

FORMAT = 1
"""Of the files in OUTPUT/parts: another number, and they are made anew."""

MANY = 10**9
"""More images than any domain has."""

LABELS = (2, 8, 64)
"""Where nothing else is asked for: those of them that the domain has, else all of its images."""

RANDOM, STATISTICS = "random weights", "image statistics"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How it is probed; labels None: LABELS. max_images: of each test domain, evenly spaced."""

    labels: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = FROZEN
    maps: WhichMaps = "last"
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    max_images: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Contender:
    """An encoder that is made when its turn comes. known_by: what its result depends on."""

    name: str
    known_by: Mapping[str, Any]
    make: Callable[[], Encoder]


def contenders(folders: Mapping[str, Path], adapters: Sequence[str], options: Options) -> list[Contender]:
    """Models, adapters, then the floors: random weights first.

    Raises:
        InputError: a model or adapter cannot be loaded.
    """
    found, twins, spacings = [], dict[str, list[str]](), dict[float | None, None]()
    for name, folder in folders.items():
        config = load_model(folder).config
        found.append(_of_model(name, folder, options))
        same = json.dumps({**to_mapping(config), "num_classes": 0, "decoder": None}, sort_keys=True)
        twins.setdefault(same, []).append(name)
        spacings[config.pixel_m] = None
    for path in adapters:
        spacings[adapter_encoder(path, True, options.device).pixel_m] = None
        found.append(_of_adapter(path, True, path, options))
    several = len(twins) + len(adapters) > 1
    for names in twins.values():
        title = f"{RANDOM} of {', '.join(names)}" if several else RANDOM
        found.append(_twin(title, folders[names[0]], options))
    for path in adapters:
        found.append(_of_adapter(f"{RANDOM} of {path}" if several else RANDOM, False, path, options))
    for pixel_m in spacings:
        at = "the images' spacing" if pixel_m is None else f"{pixel_m:g} m"
        title = f"{STATISTICS} at {at}" if len(spacings) > 1 else STATISTICS
        found.append(_statistics(title, pixel_m))
    return found


def adapter_encoder(path: str, pretrained: bool, device: str) -> Encoder:
    """What the function at `module:function` gives for pretrained= and device=: an Encoder, or a callable
    as `encoder.Maps`, which is then seen in windows of 512 at any spacing.

    Raises:
        InputError: there is no such function, it does not take these, or gives something else.
    """
    look_in_working_folder()
    factory = load_adapter(path)
    try:
        inspect.signature(factory).bind(pretrained=pretrained, device=device)
    except TypeError as error:
        raise InputError(
            f"the adapter {path} cannot be called",
            got=str(error),
            expected="a function of pretrained= (False: with random weights, the floor) and device=",
        ) from error
    made: Any = factory(pretrained=pretrained, device=device)
    if isinstance(made, Encoder):
        return made
    if not callable(made):
        raise InputError(
            f"the adapter {path} gives no encoder",
            got=type(made).__name__,
            expected="an Encoder, or a callable of image, db_mean and db_std",
        )

    def maps(image: Tensor, db_mean: Tensor, db_std: Tensor) -> Any:
        return made(image, db_mean, db_std)

    return Encoder(maps=maps, device=device, module=made if isinstance(made, nn.Module) else None)


class ProbeDomains:
    """The labelled domain and the test domains, opened once for each ground spacing."""

    def __init__(self, config: OwnConfig, max_images: int | None) -> None:
        if config.train is None:
            raise InputError(
                "no domain gives the labels that probes are fitted on",
                expected="train: {name: …, folder: {…}} beside domains, or a training run's file",
            )
        self.root, self.train = config.data_root, config.train
        self.tests = [
            domain if max_images is None else replace(domain, max_samples=max_images)
            for domain in config.domains
        ]
        self._opened: dict[float | None, tuple[Domain, dict[str, Domain]]] = {}

    def at(self, pixel_m: float | None) -> tuple[Domain, dict[str, Domain]]:
        if pixel_m not in self._opened:
            train = self._open(self.train, pixel_m)
            tests = {config.name: self._open(config, pixel_m) for config in self.tests}
            if not self._opened:  # the same images at every spacing
                require_labels(train)
                require_held_out(train, list(tests.values()))
                for test in tests.values():
                    tell_absent_classes(test)
            self._opened[pixel_m] = train, tests
        return self._opened[pixel_m]

    def _open(self, config: DomainConfig, pixel_m: float | None) -> Domain:
        return open_domain(config, self.root, pixel_m)


def probe_all(
    config: OwnConfig, who: Sequence[Contender], options: Options, output: Path
) -> tuple[list[ProbeRow], Path]:
    """All rows, and the report's README, which is written anew after each encoder."""
    domains, rows, about = ProbeDomains(config, options.max_images), list[ProbeRow](), provenance()
    floor = next((one.name for one in who if one.name.startswith(RANDOM)), None)
    page = output
    with FolderLock(output, "probe"):
        for found in _found(domains, who, options, output):
            rows += found
            shown = floor if any(row.encoder == floor for row in rows) else None
            page = write_probe_report(output, rows, floor=shown, about=about)
    return rows, page


def _found(
    domains: ProbeDomains, who: Sequence[Contender], options: Options, output: Path
) -> Iterator[list[ProbeRow]]:
    """The rows of one encoder after the other, kept from an earlier run or computed."""
    for one in who:
        encoder = one.make()
        train, tests = domains.at(encoder.pixel_m)
        labels = options.labels or default_labels(len(train))
        settings = {
            "format": FORMAT, "encoder": dict(one.known_by), "labels": labels, "seeds": options.seeds,
            "train": to_mapping(domains.train), "tests": [to_mapping(test) for test in domains.tests],
            "methods": options.methods, "fine_tuning": to_mapping(options.fine_tuning),
            "data_root": str(Path(domains.root).expanduser().absolute()),
        }  # fmt: skip
        path = output / "parts" / f"{file_name(one.name, 'probe')}.json"
        kept = read_part(path, settings)
        if kept is None:
            rows = _probed(one.name, encoder, train, tests, labels, options)
            write_part(path, settings, {"rows": [row.to_mapping() for row in rows]})
        else:
            print(f"{one.name} is probed already", flush=True)
            rows = [ProbeRow.from_mapping(row) for row in kept["rows"]]
        yield rows


def _probed(
    name: str,
    encoder: Encoder,
    train: Domain,
    tests: Mapping[str, Domain],
    labels: Sequence[str],
    options: Options,
) -> list[ProbeRow]:
    methods = [method for method in options.methods if method != "finetune" or encoder.module is not None]
    if not methods:
        print(f"{name} has nothing to fine-tune", flush=True)
        return []
    with tqdm(unit="image", desc=name, leave=False, disable=not sys.stderr.isatty()) as bar:
        rows = probe_table(
            {name: encoder}, train, tests, labels, options.seeds, methods=methods,
            fine_tuning=options.fine_tuning, on_image=bar.update,
        )  # fmt: skip
    for row in rows:
        print(f"{name} on {row.test}, {row.method}, {row.labels}: mIoU {100 * row.miou:.1f}", flush=True)
    return rows


def default_labels(length: int) -> tuple[str, ...]:
    """LABELS as far as there are images; all images where there are fewer than the most."""
    fits = [str(count) for count in LABELS if count <= length]
    return tuple(fits if len(fits) == len(LABELS) else [*fits, "100%"])


def checked_labels(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """As they were typed, looked at before anything is read."""
    if labels is not None:
        image_counts(labels, MANY)
    return None if labels is None else tuple(labels)


def _of_model(name: str, folder: Path, options: Options) -> Contender:
    known_by = {"model_sha256": model_sha256(folder), "maps": options.maps}
    return Contender(
        name, known_by, lambda: model_encoder(load_model(folder, device=options.device), options.maps)
    )


def _twin(name: str, folder: Path, options: Options) -> Contender:
    config = to_mapping(load_model(folder).config)
    known_by = {"random": config, "maps": options.maps}
    return Contender(
        name, known_by, lambda: random_twin(load_model(folder, device=options.device), options.maps)
    )


def _of_adapter(name: str, pretrained: bool, path: str, options: Options) -> Contender:
    def make() -> Encoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return adapter_encoder(path, pretrained, options.device)

    return Contender(name, {"adapter": path, "pretrained": pretrained}, make)


def _statistics(name: str, pixel_m: float | None) -> Contender:
    known_by = {"statistics": CELL, "pixel_m": pixel_m}
    return Contender(name, known_by, lambda: statistics_encoder(pixel_m=pixel_m))


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """How to probe: `options_of` reads them."""
    add = parser.add_argument
    add("--labels", nargs="+", metavar="N|N%", help="labelled images, or shares of all; default 2 8 64")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the draws of labelled images")
    add(
        "--methods",
        nargs="+",
        default=list(FROZEN),
        metavar="METHOD",
        help="linear, knn, finetune; default linear knn",
    )
    add(
        "--maps",
        choices=("last", "all"),
        default="last",
        help="features of a model: its last map, or all that a decoder gets",
    )
    add("--steps", type=int, default=FineTuning.steps, help="of fine-tuning")
    add("--seconds", type=float, help="of the processor, of fine-tuning, in place of steps")
    add("--max-images", type=int, metavar="N", help="score N evenly spaced images of each test domain only")


def options_of(arguments: argparse.Namespace) -> Options:
    return Options(
        labels=checked_labels(arguments.labels),
        seeds=tuple(arguments.seeds),
        methods=tuple(arguments.methods),
        maps=arguments.maps,
        fine_tuning=FineTuning(steps=arguments.steps, seconds=arguments.seconds),
        max_images=arguments.max_images,
        device=arguments.device,
    )
