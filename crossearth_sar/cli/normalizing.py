"""How `predict` brings images to what its model was trained on: kind of values, bands, dB statistics.

A map must not depend on which other files are in the command. So the statistics are those of training,
where the model's contract (`input_contract.py`) holds them and the values are of the same kind, and else the
image's own; those of all images together are taken when they are asked for.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossearth_sar.data.domain_statistics import part_of
from crossearth_sar.decibels import UNEVEN_DB, DomainStatistics
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.scene import Scene
from crossearth_sar.input_contract import InputContract
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.network_input import as_tensor, require_statistics

Measure = Callable[[argparse.Namespace, list[Path], float | None], tuple[list[float], list[float]]]

KINDS = ("model", "domain", "image")


def add_normalizing_options(parser: Any) -> None:
    """--normalize and --normalize-by."""
    add = parser.add_argument
    kinds = "dB statistics of training, of all images, or of each; without: model, or else image"
    add("--normalize", choices=KINDS, help=kinds)
    parts = "with domain: images whose names share a part, as vv, share statistics"
    add("--normalize-by", nargs="+", metavar="PART", help=parts)


def chosen_normalize(arguments: argparse.Namespace, contract: InputContract | None) -> str:
    """What --normalize says; without it `model` where its contract fits the values, else `image`. Said aloud.

    Raises:
        InputError: model is asked for and keeps no statistics, or --normalize-by goes with another.
    """
    asked: str | None = arguments.normalize
    has = contract is not None and contract.has_statistics
    fits = contract is not None and has and contract.values == arguments.values
    if asked == "model" and not has:
        raise InputError(
            "--normalize model: the model keeps no dB statistics of its training domain",
            got="none, or several domains, or images that were normalised one by one",
            expected="domain or image",
        )
    if arguments.normalize_by and asked != "domain":
        raise InputError("--normalize-by needs --normalize domain", got=asked or "no --normalize")
    if contract is not None and contract.values not in (None, arguments.values):
        logging.warning(
            "the model was trained on values of %s, these are declared %s: its dB statistics %s",
            contract.values,
            arguments.values,
            "may not fit them" if asked == "model" else "are not taken",
        )
    chosen = asked or ("model" if fits else "image")
    of = {
        "model": f"of training, on {contract.domain if contract else ''}",
        "domain": "of all images of this command",
        "image": "of each image by itself",
    }
    print(f"dB statistics: {of[chosen]} (--normalize {chosen})", flush=True)
    return chosen


def declared_values(arguments: argparse.Namespace, contract: InputContract | None) -> str | None:
    """--values, else what the model was trained on, which is said; None: nobody says."""
    if arguments.values is not None or contract is None or contract.values is None:
        return None if arguments.values is None else str(arguments.values)
    logging.warning("the numbers are taken for %s, as in training: else give --values", contract.values)
    return contract.values


def checked_bands(
    asked: Sequence[int] | None, count: int, model: CrossEarthSAR, image: Path
) -> Sequence[int] | None:
    """Which bands of an image of `count` the model sees; None: all of them.

    Raises:
        InputError: it was trained on another number, and which are meant is not clear.
    """
    contract = model.contract or InputContract()
    wanted = model.config.bands or contract.bands
    if wanted is None or (asked is None and count == wanted):
        return asked
    if asked is None and count > wanted:
        trained = contract.band_indices or ()
        fits = len(trained) == wanted and max(trained) < count
        bands = [*(trained if fits else range(wanted))]
        logging.warning(
            "%s has %d bands, the model was trained on %d: --bands %s are taken",
            image, count, wanted, " ".join(map(str, bands)),
        )  # fmt: skip
        return bands
    found = count if asked is None else len(asked)
    if found != wanted:
        names = f" ({', '.join(contract.band_names)})" if contract.band_names else ""
        raise InputError(
            f"{image} has other bands than the model was trained on",
            got=f"{found}",
            expected=f"{wanted}{names}",
            fix="choose as many: --bands 0 1 …, or another model",
        )
    return asked


def statistics_to_keep(
    arguments: argparse.Namespace, model: CrossEarthSAR, images: list[Path], measure: Measure
) -> tuple[Any, Any]:
    """Mean and deviation for the record: a list each, one for each part of names, or None: each image's own.

    Args:
        measure: takes the arguments, images and the model's ground spacing.
    """
    if arguments.normalize == "model":
        assert model.contract is not None, "chosen_normalize looked"
        return model.contract.db_mean, model.contract.db_std
    if arguments.normalize == "image":
        return None, None
    if not arguments.normalize_by:
        return measure(arguments, images, model.config.pixel_m)
    groups: dict[str, list[Path]] = {}
    for image in images:
        groups.setdefault(part_of(str(image), arguments.normalize_by), []).append(image)
    found = {part: measure(arguments, some, model.config.pixel_m) for part, some in groups.items()}
    return {part: mean for part, (mean, _) in found.items()}, {part: std for part, (_, std) in found.items()}


def kept_statistics(record: Mapping[str, Any], image: Path) -> tuple[Tensor, Tensor] | None:
    """(C,) each, of the record of --output for this image; None: the image's own are to be measured.

    Raises:
        InputError: the image's name has none of the parts, or one that came with no image of the first time.
    """
    mean, std = record["db_mean"], record["db_std"]
    if mean is None:
        return None
    if record["normalize_by"]:
        part = part_of(str(image), record["normalize_by"])
        if part not in mean:
            raise InputError(f"no image of {part!r} was there when --output was begun", fix="give another")
        mean, std = mean[part], std[part]
    return torch.tensor(mean), torch.tensor(std)


def require_kept_statistics(mean: Any, std: Any) -> None:
    """InputError unless both are what `statistics_to_keep` gives."""
    if mean is None and std is None:
        return
    pairs = [(mean, std)]
    if isinstance(mean, Mapping) and isinstance(std, Mapping) and mean.keys() == std.keys():
        pairs = [(mean[part], std[part]) for part in mean]
    for one, other in pairs:
        means, deviations = as_tensor(one, "db_mean"), as_tensor(other, "db_std")
        require_statistics(means, deviations)
        if means.shape != deviations.shape or means.ndim != 1:
            raise InputError("db_mean and db_std are no pair", got=f"{one} and {other}")


def warn_of_level(scene: Scene, model: CrossEarthSAR, mean: Tensor) -> None:
    """A warning where the scene's mean lies far from that of the domain whose statistics are taken."""
    statistics = DomainStatistics()
    for block in scene.blocks(model.config.pixel_m):
        statistics.add(block, scene.raw.path)
    own, _ = statistics.result()
    apart = (own - mean).abs()
    if len(own) == len(mean) and float(apart.max()) > UNEVEN_DB:
        band = int(apart.argmax())
        logging.warning(
            "%s has a mean of %.1f dB, the model's training domain %.1f dB: if that is calibration or sensor "
            "and not the ground, give --normalize image",
            scene.raw.path,
            float(own[band]),
            float(mean[band]),
        )
