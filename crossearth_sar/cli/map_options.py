"""Options of `predict` that say what is written and how windows are run."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

from crossearth_sar.cli.map_names import require_free_names
from crossearth_sar.cli.shards import Shard
from crossearth_sar.data.sample import ClassTable
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.maps.vectors import require_vector_packages, write_polygons
from crossearth_sar.evaluation.scene_strips import Sliding


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What lies beside maps, how windows are blended, and which share of the images is taken."""
    add = parser.add_argument
    add("--scores", action="store_true", help="NAME-scores.tif: probability of each class, and entropy")
    add("--page", action="store_true", help="NAME.html, scene and map to swipe, and NAME-quicklook.png")
    add("--vector", metavar="FILE.gpkg", help="all maps as polygons, a layer each")
    add("--simplify", type=float, metavar="DISTANCE", help="outlines of --vector, in units of the map")
    add("--no-taper", dest="taper", action="store_false", help="windows count alike up to their edges")
    kinds = ("auto", "float32", "bfloat16")
    add("--precision", choices=kinds, default="auto", help="auto: bfloat16 on a GPU, else float32")
    add("--shard", metavar="I/N", help="every N-th image, from the I-th: one of N processes")


def how_to_slide(arguments: argparse.Namespace) -> Sliding:
    bf16 = None if arguments.precision == "auto" else arguments.precision == "bfloat16"
    return Sliding(taper=arguments.taper, bf16=bf16)


def check_output_options(arguments: argparse.Namespace, shard: Shard, targets: list[Path]) -> None:
    """InputError for options that do not go together or ask for what is not installed."""
    require_free_names(targets, scores=arguments.scores, page=arguments.page)
    if arguments.simplify is not None and not (arguments.vector and 0 < arguments.simplify < math.inf):
        raise InputError(
            "--simplify is a distance that outlines of --vector may move",
            got=f"{arguments.simplify:g}" + " without --vector" * (arguments.vector is None),
            expected="above 0, in units of the map",
        )
    if arguments.vector is None:
        return
    if Path(arguments.vector).suffix != ".gpkg":
        raise InputError("--vector is no GeoPackage", got=arguments.vector, expected="a name ending in .gpkg")
    if shard.count > 1:
        raise InputError(
            "--vector puts all maps into one file, but this process makes a part of them",
            got=f"part {shard.index} of {shard.count}",
            fix="run the same command in one process afterwards: finished maps are left alone",
        )
    require_vector_packages()


def write_vectors(arguments: argparse.Namespace, targets: list[Path], classes: ClassTable) -> None:
    """Writes --vector of finished maps; layers are called as the maps lie in --output."""
    output, file = Path(arguments.output).expanduser(), Path(arguments.vector).expanduser()
    names = [target.relative_to(output).with_suffix("").as_posix() for target in targets]
    twice = {name for name, count in Counter(names).items() if count > 1}
    maps = {
        f"{name}{target.suffix}" if name in twice else name: target
        for name, target in zip(names, targets, strict=True)
    }
    counts = write_polygons(maps, file, classes, simplify=arguments.simplify)
    print(f"{file}: {sum(counts.values())} patches of {len(counts)} maps", flush=True)
