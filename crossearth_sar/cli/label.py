"""Pseudo labels: a teacher looks at optical images, its classes become label maps of their SAR twins.

    crossearth-sar label --teacher FOLDER --map map.yaml --dataset SEN12 --data-root /data \\
        --output /data/pseudo/SEN12 --threshold 0.5
    crossearth-sar label --teacher FOLDER --data-root pairs --sar 'sar/*.*' --optical 'opt/*.*' \\
        --output runs/pseudo

--teacher is a folder that save_model or a training run wrote, a folder of transformers (config.json and
safetensors), or module:function: called with num_classes= and device=, it returns a callable from a
(B, 3, H, W) RGB image in 0..255 to logits (B, num_classes, h, w). The map gives each of the teacher's classes
one of seven. Run the same command again to go on after a stop; `crossearth-sar agreement` compares what
several teachers said. docs/PSEUDO_LABELS.md says more.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossearth_sar.cli.options import (
    add_data_file_option,
    add_data_root_option,
    add_device_option,
    data_changes,
)
from crossearth_sar.cli.process import look_in_working_folder
from crossearth_sar.config import read_yaml
from crossearth_sar.data.datasets.published import open_spec
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.protocol import load_adapter
from crossearth_sar.folder_lock import FolderLock
from crossearth_sar.pseudo_labels.labelling import (
    LabelSettings,
    check_pairs,
    teacher_class_map,
    write_pseudo_labels,
)
from crossearth_sar.pseudo_labels.pairs import (
    OPTICAL_TWINS,
    OpticalTwins,
    Pair,
    pairs_of,
    require_paired,
    source_pairs,
)
from crossearth_sar.pseudo_labels.teachers import Teacher, adapter_teacher, open_teacher
from crossearth_sar.spacing import evenly_spaced


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--teacher", required=True, metavar="FOLDER|MODULE:FUNCTION")
    add("--allow-download", action="store_true", help="--teacher may be a name on the Hugging Face hub")
    add("--map", metavar="YAML", help="the teacher's classes -> the seven; default: by equal names")
    add_data_root_option(parser, "the datasets' folders, or what the patterns name")
    add("--dataset", metavar="KEY", help=f"a source whose twins are known: {', '.join(OPTICAL_TWINS)}")
    add_data_file_option(parser)
    add("--sar", metavar="PATTERN", help="instead of --dataset: SAR images below the data root")
    add("--optical", metavar="PATTERN", help="optical images; twins are where the stars match the same")
    add("--rename", nargs="+", default=[], metavar="OPTICAL=SAR", help="differing parts of twins' names")
    add("--allow-unpaired", action="store_true", help="leave out files without a twin")
    add("--images", type=int, metavar="N", help="label N evenly spaced pairs only")
    add("--output", required=True, metavar="FOLDER")
    add("--threshold", type=float, default=0.0, metavar="P", help="255 where the probability is below P")
    add("--confidence", action="store_true", help="write confidence maps too, round(255 p)")
    add("--bands", type=int, nargs="+", metavar="I", help="red, green and blue of the optical file, from 0")
    add("--range", type=float, nargs=2, metavar=("BLACK", "WHITE"), help="of values that are not 8-bit")
    add("--resample", action="store_true", help="twins may differ in size")
    add("--crop", type=int, help="window of the slide inference; default: the model's own, or 512")
    add("--stride", type=int, help="its step; default: the model's own, or 341")
    add_device_option(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = LabelSettings(
        threshold=arguments.threshold,
        confidence=arguments.confidence,
        bands=None if arguments.bands is None else tuple(arguments.bands),
        value_range=None if arguments.range is None else (arguments.range[0], arguments.range[1]),
        resample=arguments.resample,
    )
    pairs, single, root = find_pairs(arguments)
    if not arguments.allow_unpaired:
        require_paired(single, root)
    pairs = chosen(pairs, arguments.images)
    check_pairs(pairs, settings)
    content = read_yaml(arguments.map) if arguments.map else None
    teacher = open_any_teacher(arguments, content)
    classes = teacher_class_map(teacher.classes, content)
    if classes.unmapped:
        fate = (content or {}).get("unmapped", "ignore")
        shown = ", ".join(classes.unmapped[:8]) + (" …" if len(classes.unmapped) > 8 else "")
        print(f"{len(classes.unmapped)} classes are not in the map and become {fate}: {shown}")
    for path in single:
        print(f"no twin: {path}", file=sys.stderr)
    started = time.perf_counter()
    bar = tqdm(pairs, unit="image", disable=not sys.stderr.isatty())
    output = Path(arguments.output)
    with FolderLock(output, "label"):
        manifest = write_pseudo_labels(
            pairs, output, teacher, classes, settings, unpaired=single, progress=bar
        )
    print_shares(manifest, {pair.name for pair in pairs}, output, time.perf_counter() - started)
    return 0


def find_pairs(arguments: argparse.Namespace) -> tuple[list[Pair], list[Path], Path]:
    """(pairs, files without a twin, the folder that label maps mirror)."""
    root, renamed = Path(arguments.data_root).expanduser(), renames(arguments.rename)
    if bool(arguments.dataset) == bool(arguments.sar):
        raise InputError("no images are named, or twice", fix="give --dataset, or --sar and --optical")
    if arguments.dataset:
        changes = data_changes(arguments.data_file).get(arguments.dataset)
        spec = open_spec(arguments.dataset, changes)
        root /= spec.folder
        own = OpticalTwins(optical=arguments.optical, renamed=renamed) if arguments.optical else None
        return *source_pairs(spec, root, own), root
    if not arguments.optical:
        raise InputError("--sar needs its twins", fix="give --optical 'opt/*.*'")
    return *pairs_of(root, arguments.sar, arguments.optical, renamed), root


def renames(rules: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for rule in rules:
        optical, equals, sar = rule.partition("=")
        if not equals or not optical:
            raise InputError(f"--rename {rule!r} is no rule", expected="OPTICAL=SAR, as in _s2_=_s1_")
        found[optical] = sar
    return found


def chosen(pairs: list[Pair], count: int | None) -> list[Pair]:
    if count is not None and count < 1:
        raise InputError("--images does not fit", got=count, expected="1 or more")
    if not pairs:
        raise InputError(
            "no SAR image has an optical twin",
            fix="correct the patterns, or say how names differ: --rename OPTICAL=SAR",
        )
    count = min(count or len(pairs), len(pairs))
    return [pairs[i] for i in evenly_spaced(len(pairs), count)]


def open_any_teacher(arguments: argparse.Namespace, content: dict[str, Any] | None) -> Teacher:
    named = (content or {}).get("teacher_classes")
    if named is not None and not isinstance(named, list):
        raise InputError("teacher_classes of the class map is no list", got=repr(named))
    names = None if named is None else [str(name) for name in named]
    size = {"crop": arguments.crop, "stride": arguments.stride, "device": arguments.device}
    if ":" in arguments.teacher and not Path(arguments.teacher).exists():
        look_in_working_folder()
        factory = load_adapter(arguments.teacher)
        return adapter_teacher(factory, arguments.teacher, classes=names or SEVEN_CLASSES.names, **size)
    return open_teacher(arguments.teacher, classes=names, download=arguments.allow_download, **size)


def print_shares(manifest: dict[str, Any], names: set[str], output: Path, seconds: float) -> None:
    counts: dict[str, int] = {}
    for name in names:
        for label_name, pixels in manifest["files"][name]["pixels"].items():
            counts[label_name] = counts.get(label_name, 0) + pixels
    total = sum(counts.values())
    shares = ", ".join(f"{name} {100 * pixels / total:.1f} %" for name, pixels in counts.items())
    print(f"{len(names)} label maps in {output / 'labels'}, {seconds:.1f} s; {shares}")
