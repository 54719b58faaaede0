"""Class maps of your own images: a folder of them, or whole scenes.

    crossearth-sar predict --images scene.tif                           # seven classes, without training
    crossearth-sar predict --model runs/finetune/model --images 'scenes/*/s1_*.tif' --values db --output maps
    crossearth-sar predict --model runs/finetune/model --images scene.npy --values complex --output maps

Each image gives a map of class indices, 255 where nothing was measured: a TIFF gives a GeoTIFF with its own
transform and CRS where rasterio is installed (pip install 'crossearth-sar[geo]'); all else, and without
rasterio a TIFF too, gives a PNG in the classes' colours. Maps lie in --output as the images lie below the
first '*' of their pattern. Run the same command again to go on after a stop: finished maps are left alone,
an unfinished one goes on where it was. --scores, --page and --vector add probabilities, pages to look at and
polygons; --shard 1/4 … 4/4 share the images among four processes, as torchrun does by itself.
docs/PREDICTION.md says more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from tqdm import tqdm

from crossearth_sar.cli.map_making import Predictor, make_map
from crossearth_sar.cli.map_names import is_there, maps_of_images
from crossearth_sar.cli.map_options import (
    add_output_options,
    check_output_options,
    how_to_slide,
    write_vectors,
)
from crossearth_sar.cli.normalizing import (
    add_normalizing_options,
    checked_bands,
    chosen_normalize,
    declared_values,
    kept_statistics,
    require_kept_statistics,
    statistics_to_keep,
    warn_of_level,
)
from crossearth_sar.cli.options import add_device_option
from crossearth_sar.cli.shards import device_of_rank, shard_of
from crossearth_sar.data.datasets.tasks import class_table
from crossearth_sar.data.domain_statistics import MEASURED_SAMPLES
from crossearth_sar.data.files.amplitude import ValueKind
from crossearth_sar.data.files.doubts import FillDoubts
from crossearth_sar.data.files.on_disk import open_image
from crossearth_sar.data.files.readers import BandAxis, Reading, Valid, read_pixel_m, read_shape
from crossearth_sar.data.sample import IGNORE_INDEX, ClassTable
from crossearth_sar.device import checked_device
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.scene import Scene, measure_scenes
from crossearth_sar.folder_lock import FolderLock
from crossearth_sar.ground_scale import row_blocks
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE, CrossEarthSAR, load_model
from crossearth_sar.provenance import provenance
from crossearth_sar.shipped import model_folder, shipped_models
from crossearth_sar.spacing import evenly_spaced
from crossearth_sar.whole import write_text

RECORD = "prediction.json"
"""In the folder of maps: what they were made with. The same command reads it and goes on."""

SETTINGS = (
    "model_sha256", "values", "normalize", "nodata", "bands", "band_axis", "array_key", "pixel_m", "taper",
    "normalize_by", "scale", "offset", "clip_negative", "valid",
)  # fmt: skip
"""What must be the same for all maps of a folder."""

_SHOWN_PROBLEMS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    known = ", ".join(shipped_models())
    add("--model", metavar="FOLDER", default="tiny", help=f"that a run wrote, or a shipped model: {known}")
    images = "files, addresses, or quoted patterns with '*'; '*_{vv,vh}.tif': two files of one image"
    add("--images", metavar="PATTERN", nargs="+", required=True, help=images)
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
    add("--array-key", metavar="NAME", help="which array of an .npz or HDF5 file, {A,B}: several as bands")
    add("--valid", choices=get_args(Valid), default="all", help="measured where all bands are, or any")
    add("--pixel-m", "--pixel_m", type=float, metavar="METRES", help="ground spacing, over a GeoTIFF's tags")
    add_output_options(parser)
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        return make_maps(arguments)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on", file=sys.stderr, flush=True)
        return 130


def make_maps(arguments: argparse.Namespace) -> int:
    shard = shard_of(arguments.shard)
    device = checked_device(device_of_rank(arguments.device))
    maps = maps_of_images(arguments.images, Path(arguments.output).expanduser())
    check_output_options(arguments, shard, list(maps.values()))
    model = load_model(arguments.model, device=device)
    model.require_decoder()
    arguments.values = declared_values(arguments, model.contract)
    check_headers(arguments, list(maps), model)
    arguments.values = arguments.values or guessed_values(arguments, next(iter(maps)))
    arguments.normalize = chosen_normalize(arguments, model.contract)
    arguments.doubts = FillDoubts("--nodata {}")
    tell_unknown_spacing(arguments, model, list(maps))
    with FolderLock(Path(arguments.output).expanduser(), "predict", shared=True) as folder:
        with folder.alone():
            record = open_record(arguments, model, list(maps))
        failed = make_mine(arguments, model, record, dict(shard.of(list(maps.items()))), str(shard))
    shard.wait_for_others()
    return 1 if failed else 0


def make_mine(
    arguments: argparse.Namespace,
    model: CrossEarthSAR,
    record: dict[str, Any],
    mine: dict[Path, Path],
    shard: str,
) -> int:
    """Makes those maps of this process that are not there; how many could not be made."""

    def is_done(image: Path) -> bool:
        size = image_size(arguments, image)
        return is_there(mine[image], size, scores=arguments.scores, page=arguments.page)

    waiting = [image for image in mine if not is_done(image)]
    if len(waiting) < len(mine):
        print(f"{shard}{len(mine) - len(waiting)} of {len(mine)} maps are there already", flush=True)
    failed = 0
    for image in waiting:
        try:
            predict(arguments, model, record, image, mine[image])
        except InputError as error:
            failed += 1
            print(f"\nno map: {error}\n", file=sys.stderr, flush=True)
    print(f"{shard}{len(mine) - failed} of {len(mine)} maps in {arguments.output}", flush=True)
    if arguments.vector is not None:
        whole = [target for image, target in mine.items() if is_done(image)]
        write_vectors(arguments, whole, record_classes(record))
    return failed


def image_size(arguments: argparse.Namespace, image: Path) -> tuple[int, int]:
    return read_shape(image, band_axis=arguments.band_axis, array_key=arguments.array_key)[1:]


def check_headers(arguments: argparse.Namespace, images: list[Path], model: CrossEarthSAR) -> None:
    """Refuses images of too many bands, or of fewer than in training; of more, unless told, training's."""
    problems: list[str] = []
    for image in images:
        try:
            count, _, _ = read_shape(image, band_axis=arguments.band_axis, array_key=arguments.array_key)
            if arguments.values == "complex_bands":  # I and Q of each
                count = len(arguments.bands or range(count)) // 2
                checked_bands(range(count), count, model, image)
            else:
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
    unknown = [image for image in images if read_pixel_m(image, array_key=arguments.array_key) is None]
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
    raw = open_image(image, **how_to_read(arguments))
    kind: ValueKind = "amplitude"
    for rows in row_blocks(slice(0, raw.size[0]), raw.size[1]):
        values, valid = raw.rows(rows)
        if np.iscomplexobj(values):
            kind = "complex"
        elif (values[:, valid] < 0).any():
            kind = "db"
        if kind != "amplitude":
            break  # the rest of a large scene says no more
    logging.warning(
        "the numbers of %s are taken for %s: give --values where they are something else", image, kind
    )
    return kind


def how_to_read(arguments: argparse.Namespace) -> Reading:
    keys = ("band_axis", "nodata", "array_key", "scale", "offset", "valid")
    how = {key: getattr(arguments, key) for key in keys}
    return cast(Reading, how | {"complex_bands": arguments.values == "complex_bands"})


def read_scene(arguments: argparse.Namespace, image: Path) -> Scene:
    how = how_to_read(arguments)
    how["bands"] = tuple(arguments.bands) if arguments.bands else None
    raw = open_image(image, **how)
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
    write_text(path, json.dumps(record, indent=1) + "\n")
    return record


def checked_record(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        older = dict.fromkeys(("pixel_m", "taper", "normalize_by", "scale", "offset"))  # what they had not
        record = {
            **older,
            "clip_negative": False,
            "valid": "all",
            **json.loads(path.read_text(encoding="utf-8")),
        }
        require_kept_statistics(record["db_mean"], record["db_std"])
        record_classes(record)
        other = [key for key in SETTINGS if json.dumps(record[key]) != json.dumps(settings[key])]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged", got=str(error) or repr(error), fix="give another --output"
        ) from error
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
    scene = read_scene(arguments, image)
    kept = kept_statistics(record, image)
    mean, std = measure_scenes([scene], model.config.pixel_m) if kept is None else kept
    if record["normalize"] == "model":
        warn_of_level(scene, model, mean)
    made_of = {key: record[key] for key in SETTINGS} | {"statistics": [mean.tolist(), std.tolist()]}
    make_map(
        Predictor(model, scene, (mean, std), how_to_slide(arguments), arguments.scores, made_of),
        image,
        target,
        record_classes(record),
        page=arguments.page,
        array_key=arguments.array_key,
    )


def record_classes(record: dict[str, Any]) -> ClassTable:
    return ClassTable(names=tuple(record["classes"]), palette=tuple(map(tuple, record["palette"])))
