"""Class maps of your own images: a folder of them, or whole scenes.

    crossearth-sar predict --images scene.tif                           # seven classes, without training
    crossearth-sar predict --model runs/finetune/model --images 'scenes/*/s1_*.tif' --values db --output maps
    crossearth-sar predict --model runs/finetune/model --images scene.npy --values complex --output maps

Each image gives a map of class indices, 255 where nothing was measured: a TIFF gives a GeoTIFF with its own
transform and CRS where rasterio is installed (pip install 'crossearth-sar[geo]'); all else, and without
rasterio a TIFF too, gives a PNG in the classes' colours. Maps lie in --output as the images lie below the
first '*' of their pattern. Run the same command again to go on after a stop: finished maps are left alone.
--scores adds how sure each pixel is. docs/PREDICTION.md says more.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from crossearth_sar.cli.normalizing import (
    add_normalizing_options,
    checked_bands,
    chosen_normalize,
    declared_values,
    kept_statistics,
    statistics_to_keep,
    warn_of_level,
)
from crossearth_sar.cli.options import add_device_option
from crossearth_sar.data.datasets.tasks import class_table
from crossearth_sar.data.domain_statistics import MEASURED_SAMPLES
from crossearth_sar.data.files.amplitude import ValueKind
from crossearth_sar.data.files.doubts import FillDoubts
from crossearth_sar.data.files.readers import BandAxis, read_image, read_pixel_m, read_shape
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.device import checked_device
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.map_files import write_class_map, write_percent_map
from crossearth_sar.evaluation.scene import Scene, measure_scenes, predict_scene, predict_scene_confidence
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE, CrossEarthSAR, load_model
from crossearth_sar.provenance import provenance
from crossearth_sar.shipped import model_folder, shipped_models
from crossearth_sar.spacing import evenly_spaced, sliding_windows

RECORD = "prediction.json"
"""In the folder of maps: what they were made with. The same command reads it and goes on."""

SETTINGS = (
    "model_sha256", "values", "normalize", "nodata", "bands", "band_axis", "array_key", "pixel_m",
    "normalize_by", "scale", "offset", "clip_negative",
)  # fmt: skip
"""What must be the same for all maps of a folder."""

_SHOWN_PROBLEMS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    known = ", ".join(shipped_models())
    add("--model", metavar="FOLDER", default="tiny", help=f"that a run wrote, or a shipped model: {known}")
    add("--images", metavar="PATTERN", nargs="+", required=True, help="files, or quoted patterns with '*'")
    kinds = get_args(ValueKind)
    add("--values", choices=kinds, help="what the images' numbers are; without, the first image decides")
    add("--output", metavar="FOLDER", default="maps", help="for maps and prediction.json")
    add_normalizing_options(parser)
    add("--nodata", type=float, metavar="VALUE", help="over what the tag of a TIFF says")
    add("--scale", type=float, metavar="FACTOR", help="of stored numbers, over what a TIFF's metadata say")
    add("--offset", type=float, metavar="VALUE", help="added after the scale")
    add("--clip-negative", action="store_true", help="negative amplitudes or intensities become 0")
    add("--bands", type=int, nargs="+", metavar="I", help="indices from 0 of at most three bands")
    add("--band-axis", choices=get_args(BandAxis), default="auto")
    add("--array-key", metavar="NAME", help="which array of an .npz")
    add("--pixel-m", "--pixel_m", type=float, metavar="METRES", help="ground spacing, over a GeoTIFF's tags")
    add("--scores", action="store_true", help="beside each map NAME-scores: how sure it is, in percent")
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    device = checked_device(arguments.device)
    maps = maps_of_images(arguments.images, Path(arguments.output).expanduser())
    if arguments.scores:
        require_free_names(list(maps.values()))
    model = load_model(arguments.model, device=device)
    check_headers(arguments, list(maps), model)
    arguments.values = declared_values(arguments, model.contract) or guessed_values(
        arguments, next(iter(maps))
    )
    arguments.normalize = chosen_normalize(arguments, model.contract)
    arguments.doubts = FillDoubts("--nodata {}")
    tell_unknown_spacing(arguments, model, list(maps))
    record = open_record(arguments, model, list(maps))
    waiting = {image: target for image, target in maps.items() if not is_there(target, arguments.scores)}
    if len(waiting) < len(maps):
        print(f"{len(maps) - len(waiting)} of {len(maps)} maps are there already", flush=True)
    failed = 0
    for image, target in waiting.items():
        try:
            predict(arguments, model, record, image, target)
        except InputError as error:
            failed += 1
            print(f"\nno map: {error}\n", file=sys.stderr, flush=True)
    print(f"{len(maps) - failed} of {len(maps)} maps in {arguments.output}")
    return 1 if failed else 0


def is_there(target: Path, scores: bool) -> bool:
    """Whether the map is finished, and the one of its scores where that is wanted."""
    return target.is_file() and (not scores or scores_file(target).is_file())


def require_free_names(targets: list[Path]) -> None:
    """InputError where a map has the name that another's scores would get."""
    taken = {scores_file(target) for target in targets} & {*targets}
    if taken:
        raise InputError(
            f"--scores would write over the map {min(taken)}",
            fix="rename its image, or give it a run and an --output of its own",
        )


def scores_file(target: Path) -> Path:
    """Where the scores of a map lie: beside it, `NAME-scores`."""
    return target.with_stem(f"{target.stem}-scores")


def maps_of_images(patterns: list[str], output: Path) -> dict[Path, Path]:
    """Image -> the map it gives."""
    maps: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        images = [path] if path.is_file() else [Path(p) for p in glob.glob(str(path), recursive=True)]
        images = [image for image in images if image.is_file()]
        if not images:
            fix = f"give '{path}/*.tif' or the like" if path.is_dir() else "correct the pattern, and quote it"
            raise InputError(f"--images {pattern!r} names no file", fix=fix)
        base = (
            path.parent if path.is_file() else Path(*takewhile(lambda p: not glob.has_magic(p), path.parts))
        )
        for image in sorted(images):
            maps[image] = output / image.relative_to(base).with_suffix(map_suffix(image))
    images_of: dict[Path, Path] = {}
    for image, target in maps.items():
        if image.resolve().is_relative_to(output.resolve()):
            raise InputError(f"{image} lies in --output", fix="give the maps a folder of their own")
        if target in images_of:
            raise InputError(
                f"two images would give {target}",
                got=f"{images_of[target]} and {image}",
                fix="give one pattern whose first '*' lies above both, or two runs with an --output each",
            )
        images_of[target] = image
    if any(is_tiff(image) for image in maps) and not has_rasterio():
        logging.warning(
            "rasterio is not installed: maps of TIFFs become PNG and lose their place on the ground; "
            "pip install 'crossearth-sar[geo]'"
        )
    return maps


def is_tiff(image: Path) -> bool:
    return image.suffix.lower() in (".tif", ".tiff")


def has_rasterio() -> bool:
    return importlib.util.find_spec("rasterio") is not None


def map_suffix(image: Path) -> str:
    return ".tif" if is_tiff(image) and has_rasterio() else ".png"


def check_headers(arguments: argparse.Namespace, images: list[Path], model: CrossEarthSAR) -> None:
    """Refuses images of too many bands, or of fewer than in training; of more, unless told, training's."""
    problems: list[str] = []
    for image in images:
        try:
            count, _, _ = read_shape(image, band_axis=arguments.band_axis, array_key=arguments.array_key)
            arguments.bands = checked_bands(arguments.bands, count, model, image)
            count = len(arguments.bands) if arguments.bands else count
            if count > 3:
                raise InputError(f"{image} has {count} bands", expected="1 to 3", fix="choose: --bands 0 1")
        except InputError as error:
            problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - _SHOWN_PROBLEMS} more"] * (len(problems) > _SHOWN_PROBLEMS)
        lines = [*problems[:_SHOWN_PROBLEMS], *more]
        raise InputError("\n".join([f"{len(problems)} of {len(images)} images cannot be used", *lines]))


def tell_unknown_spacing(arguments: argparse.Namespace, model: CrossEarthSAR, images: list[Path]) -> None:
    """Once: that images are taken as they are, since nothing says how long their pixels are on the ground."""
    working_m = model.config.pixel_m
    if working_m is None or arguments.pixel_m is not None:
        return
    unknown = [image for image in images if read_pixel_m(image) is None]
    if unknown:
        logging.warning(
            "%d of %d images, %s first, do not say their ground spacing and are taken as they are; "
            "the model works at %g m a pixel: give --pixel-m METRES if theirs is another",
            len(unknown),
            len(images),
            unknown[0],
            working_m,
        )


def guessed_values(arguments: argparse.Namespace, image: Path) -> ValueKind:
    """What the numbers look like, said aloud: complex, dB where one is negative, else amplitude."""
    raw = read_image(
        image,
        band_axis=arguments.band_axis,
        nodata=arguments.nodata,
        array_key=arguments.array_key,
        scale=arguments.scale,
        offset=arguments.offset,
    )
    measured = raw.values[:, raw.valid]
    kind: ValueKind = "amplitude"
    if np.iscomplexobj(measured):
        kind = "complex"
    elif measured.size and measured.min() < 0:
        kind = "db"
    logging.warning(
        "the numbers of %s are taken for %s: give --values where they are something else", image, kind
    )
    return kind


def read_scene(arguments: argparse.Namespace, image: Path) -> Scene:
    raw = read_image(
        image,
        band_axis=arguments.band_axis,
        nodata=arguments.nodata,
        bands=tuple(arguments.bands) if arguments.bands else None,
        array_key=arguments.array_key,
        scale=arguments.scale,
        offset=arguments.offset,
    )
    arguments.doubts.look(raw)
    return Scene(raw, arguments.values, arguments.pixel_m, arguments.clip_negative)


def open_record(arguments: argparse.Namespace, model: CrossEarthSAR, images: list[Path]) -> dict[str, Any]:
    """The record of --output, written now unless it is there and was made with the same settings."""
    path = Path(arguments.output).expanduser() / RECORD
    known = {**vars(arguments), "model_sha256": model_sha256(model_folder(arguments.model))}
    settings = {key: known[key] for key in SETTINGS}
    if path.is_file():
        return checked_record(path, settings)
    classes = classes_of(model)
    mean, std = statistics_to_keep(arguments, model, images, measure)
    record = {
        "model": str(arguments.model),
        **settings,
        "db_mean": mean,
        "db_std": std,
        "not_measured": IGNORE_INDEX,
        "classes": classes.names,
        "palette": classes.palette,
        "provenance": provenance(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return record


def checked_record(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        older = {"pixel_m": None, "normalize_by": None, "scale": None, "offset": None, "clip_negative": False}
        record = {**older, **json.loads(path.read_text(encoding="utf-8"))}  # what they did not have
        other = [key for key in SETTINGS if json.dumps(record[key]) != json.dumps(settings[key])]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged", got=repr(error), fix="give another --output") from error
    if other:
        raise InputError(
            f"the maps in {path.parent} were made with other settings",
            got=", ".join(f"{key} {settings[key]!r}" for key in other),
            expected=", ".join(f"{key} {record[key]!r}" for key in other),
            fix="give another --output, or remove the folder",
        )
    return record


def model_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def classes_of(model: CrossEarthSAR) -> ClassTable:
    names = model.class_names or tuple(f"class {i}" for i in range(model.config.num_classes))
    palette = None if model.palette is None else tuple((r, g, b) for r, g, b in model.palette)
    return class_table(names, palette)


def measure(
    arguments: argparse.Namespace, images: list[Path], pixel_m: float | None
) -> tuple[list[float], list[float]]:
    """dB statistics of up to 32 images, evenly spaced, at the model's ground spacing."""
    count = min(len(images), MEASURED_SAMPLES)
    chosen = [images[i] for i in evenly_spaced(len(images), count, ends=True)]

    def scenes() -> Iterator[Scene]:
        for image in tqdm(chosen, unit="image", desc="statistics", disable=not sys.stderr.isatty()):
            try:
                yield read_scene(arguments, image)
            except InputError as error:  # a tile of nodata for instance; predict says it again
                logging.warning("not in the statistics: %s", error)

    mean, std = measure_scenes(scenes(), pixel_m)
    return mean.tolist(), std.tolist()


def predict(
    arguments: argparse.Namespace, model: CrossEarthSAR, record: dict[str, Any], image: Path, target: Path
) -> None:
    started = time.perf_counter()
    scene = read_scene(arguments, image)
    kept = kept_statistics(record, image)
    mean, std = measure_scenes([scene], model.config.pixel_m) if kept is None else kept
    if record["normalize"] == "model":
        warn_of_level(scene, model, mean)
    height, width = scene.size
    seen = scene.working_size(model.config.pixel_m)
    windows = len(list(sliding_windows(*seen, model.config.crop_size, model.config.crop_stride)))
    with tqdm(total=windows, unit="window", leave=False, disable=not sys.stderr.isatty()) as bar:
        like = image if target.suffix == ".tif" else None
        if arguments.scores:
            found, percent = predict_scene_confidence(
                model, scene, mean, std, on_window=lambda _: bar.update()
            )
            write_percent_map(percent, scores_file(target), like=like)
        else:
            found = predict_scene(model, scene, mean, std, on_window=lambda _: bar.update())
    classes = ClassTable(names=tuple(record["classes"]), palette=tuple(map(tuple, record["palette"])))
    write_class_map(found, target, classes, like=like)
    blocks = np.array_split(found, max(1, height // 512))  # bincount makes eight bytes of each
    pixels = np.sum([np.bincount(block.ravel(), minlength=IGNORE_INDEX + 1) for block in blocks], axis=0)
    shares = [f"{name} {n / found.size:.1%}" for name, n in zip(classes.names, pixels, strict=False) if n]
    shares += [f"not measured {pixels[IGNORE_INDEX] / found.size:.1%}"] * bool(pixels[IGNORE_INDEX])
    seconds = time.perf_counter() - started
    print(f"{target}: {height} x {width}, {seconds:.1f} s; {', '.join(shares)}", flush=True)
