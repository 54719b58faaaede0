"""Which file each image gives, and what lies beside it."""

from __future__ import annotations

import glob
import importlib.util
import logging
from itertools import takewhile
from pathlib import Path

from crossearth_sar.data.files.formats import WITHOUT_PLACE
from crossearth_sar.data.files.names import image_path, is_image, is_product, is_remote, matching, plain_name
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.maps.files import is_whole


def maps_of_images(patterns: list[str], output: Path) -> dict[Path, Path]:
    """Image -> the map it gives."""
    maps: dict[Path, Path] = {}
    for pattern in patterns:
        path = image_path(pattern)
        is_one = is_remote(path) or path.is_file() or is_product(path)
        images = [path] if is_one else [Path(p) for p in matching(str(path), _images_of)]
        if not images:
            fix = f"give '{path}/*.tif' or the like" if path.is_dir() else "correct the pattern, and quote it"
            raise InputError(f"--images {pattern!r} names no file", fix=fix)
        fixed = Path(*takewhile(lambda p: not glob.has_magic(p), path.parts))
        base = path.parent if is_one or fixed == path else fixed
        for image in sorted(images):
            maps[image] = output / image.relative_to(base).parent / f"{plain_name(image)}{map_suffix(image)}"
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
    if any(may_have_place(image) for image in maps) and not has_rasterio():
        logging.warning(
            "rasterio is not installed: maps of TIFFs and the like become PNG and lose their place on the "
            "ground; pip install 'crossearth-sar[geo]'"
        )
    return maps


def _images_of(pattern: str) -> list[str]:
    return [path for path in glob.glob(pattern, recursive=True) if is_image(Path(path))]


def may_have_place(image: Path) -> bool:
    """Whether it is a file that can say where it lies."""
    return is_remote(image) or image.suffix.lower() not in WITHOUT_PLACE


def has_rasterio() -> bool:
    return importlib.util.find_spec("rasterio") is not None


def map_suffix(image: Path) -> str:
    return ".tif" if may_have_place(image) and has_rasterio() else ".png"


def georeference_source(image: Path) -> Path | None:
    """The image, where rasterio can say where it lies."""
    return image if has_rasterio() and image.suffix.lower() not in (".npy", ".npz") else None


def scores_file(target: Path) -> Path:
    """Where the probabilities of a map lie: `NAME-scores.tif`."""
    return target.with_name(f"{target.stem}-scores.tif")


def page_files(target: Path) -> tuple[Path, Path]:
    """A map's page and its quick look: `NAME.html` and `NAME-quicklook.png`."""
    return target.with_suffix(".html"), target.with_name(f"{target.stem}-quicklook.png")


def files_beside(target: Path, *, scores: bool, page: bool) -> list[Path]:
    """What is to lie beside a map."""
    return [scores_file(target)] * scores + [*page_files(target)] * page


def require_free_names(targets: list[Path], *, scores: bool, page: bool) -> None:
    """InputError where a map has the name of what is to lie beside another."""
    for target in targets:
        taken = {*files_beside(target, scores=scores, page=page)} & {*targets}
        if taken:
            option = "--scores" if scores_file(target) in taken else "--page"
            raise InputError(
                f"{option} would write over the map {min(taken)}",
                fix="rename its image, or give it a run and an --output of its own",
            )


def is_there(target: Path, size: tuple[int, int], *, scores: bool, page: bool) -> bool:
    """Whether the map is finished and whole, and so is what is to lie beside it."""
    if scores and not is_whole(scores_file(target), size):
        return False
    if page and not all(path.is_file() and path.stat().st_size for path in page_files(target)):
        return False
    return is_whole(target, size)
