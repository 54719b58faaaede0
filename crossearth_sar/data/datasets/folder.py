"""Where a folder's images and labels lie: its settings, and the pairs they name, by patterns or an index.

What this is not: a reader of pixels; that is `folder_scenes.py`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from crossearth_sar.config import require
from crossearth_sar.data.datasets.folder_split import FolderPart, keep_part
from crossearth_sar.data.datasets.index_file import listed, read_index
from crossearth_sar.data.datasets.places import what_is_at
from crossearth_sar.data.datasets.tasks import class_table
from crossearth_sar.data.files.amplitude import ValueKind
from crossearth_sar.data.files.labels import RGB, label_table
from crossearth_sar.data.files.names import (
    image_path,
    is_image,
    is_remote,
    matching,
    missing_files,
    plain_name,
)
from crossearth_sar.data.files.readers import BandAxis, Reading, Valid
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.ground_scale import MAX_PIXEL_M, require_pixel_m
from crossearth_sar.network_input import MAX_BANDS

_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """A folder of images and labels: where they lie, what their values are, which classes the task has.

    In `images` and `labels` a '*' stands for any part of one file or folder name. What the stars of `images`
    match is put in place of those of `labels`, in order: `S1/*_S1Hand.tif` and `Labels/*_LabelHand.tif`.
    Braces in `images` name the files of one image, its bands in that order: `S1/*_{vv,vh}.tif`.
    """

    root: str
    """The folder that every other path starts from."""
    values: ValueKind
    """What the numbers are: amplitude, intensity, db, complex, or complex_bands: I and Q as two bands."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their indices; none for images without labels."""
    images: str | None = None
    """Pattern of the images below root: images/*.tif, *_{vv,vh}.tif for images of two files, *.SAFE."""
    labels: str | None = None
    """Pattern of their label maps, with as many '*'; null: a set without labels."""
    index: str | None = None
    """Instead of patterns: a CSV file with a header line; all its paths start from root."""
    image_column: str = "image"
    """Column of the index that names images."""
    label_column: str | None = "label"
    """Column that names labels; an empty cell: no label; null: no labels at all."""
    pixel_m_column: str | None = None
    """Column with the ground spacing of each image, metres per pixel; an empty cell: as without."""
    where: dict[str, str] = field(default_factory=dict)
    """Keeps the rows of the index whose columns have these values."""
    names: tuple[str, ...] = ()
    """Keeps only images whose file name contains one of these; each must match."""
    exclude: tuple[str, ...] = ()
    """Drops images whose file name contains one of these; each must match."""
    part: FolderPart = "all"
    """Side of a split by test_share and split_seed: train or test; all: no split."""
    test_share: float = 0.2
    """Share of the images on the test side, on average; each side gets at least one."""
    split_seed: int = 0
    """Another seed, another split."""
    bands: tuple[int, ...] | None = None
    """Which bands of an image, one to three, or of complex_bands I and Q of each; null: all."""
    band_axis: BandAxis = "auto"
    """Where the bands are in an array of three axes: first, last, or auto."""
    nodata: float | None = None
    """The number of a pixel without a measurement; null: what the file says."""
    scale: float | None = None
    """Stored numbers are multiplied by it; null: by what a TIFF's metadata say."""
    offset: float | None = None
    """And this is added; null: what a TIFF's metadata say. Nodata is of the stored numbers."""
    valid: Valid = "all"
    """A pixel is measured where all of its bands are, or any; then a missing band has another's numbers."""
    clip_negative: bool = False
    """Takes negative amplitudes or intensities, which noise subtraction leaves, for 0."""
    array_key: str | None = None
    """Which array of an NPZ or HDF5 file, by the end of its name; {HHHH,HVHV}: several, as bands."""
    pixel_m: float | None = None
    """Ground spacing of the images, metres per pixel; null: what a GeoTIFF's tags say, else not known."""
    label_values: dict[int, str] = field(default_factory=dict)
    """Raw label value: class name or ignore; without, value i is class i, 255 is ignored."""
    label_palette: dict[str, RGB | tuple[RGB, ...]] = field(default_factory=dict)
    """Class name or ignore: its colour, or colours, where labels are RGB."""
    label_tolerance: int = 0
    """Colours so near to one of label_palette (sum over R, G and B) are it, others ignored; 0: refused."""
    palette: tuple[RGB, ...] | None = None
    """Colours of the classes in pictures."""
    tile: int | None = None
    """Cuts images into squares of this many pixels, the last shifted inward; null: whole."""

    def __post_init__(self) -> None:
        if (self.images is None) == (self.index is None):
            raise InputError(
                "a folder dataset needs either images or index",
                got="both" if self.images else "neither",
                fix="give images (a pattern like 'S1/*.tif') or index (a CSV file)",
            )
        if self.images is None:
            require(self.labels is None, "labels", self.labels, "null beside index: they are a column there")
        else:
            require(self.pixel_m_column is None, "pixel_m_column", self.pixel_m_column, "null beside images")
            require(not self.where, "where", self.where, "nothing beside images: it filters rows of an index")
            _require_patterns(self.images, self.labels)
        require(0 < self.test_share < 1, "test_share", self.test_share, "a share between 0 and 1")
        require_pixel_m(self.pixel_m)
        require(self.scale is None or self.scale != 0, "scale", self.scale, "another number than 0, or null")
        require(self.tile is None or self.tile >= 16, "tile", self.tile, "at least 16 pixels, or null")
        require(
            self.bands is None or 1 <= len(self.bands) / self.band_step <= MAX_BANDS,
            "bands",
            self.bands,
            f"at least one band and at most {MAX_BANDS}, of complex_bands twice as many, or null",
        )
        require(
            bool(self.classes) or not self.has_labels,
            "classes",
            self.classes,
            "names, or labels: null (beside index label_column: null) for images without labels",
        )
        class_table(self.classes, self.palette)
        label_table(self.classes, self.label_values, self.label_palette, self.label_tolerance)

    @property
    def has_labels(self) -> bool:
        """Whether images may have labels."""
        return self.labels is not None or (self.index is not None and self.label_column is not None)

    def without_labels(self) -> FolderConfig:
        """The same images; their labels are neither looked for nor read."""
        return replace(
            self,
            classes=(),
            labels=None,
            label_column=None,
            label_values={},
            label_palette={},
            label_tolerance=0,
            palette=None,
        )

    @property
    def band_step(self) -> int:
        """Bands of a file that make one of an image: I and Q, or itself."""
        return 2 if self.values == "complex_bands" else 1

    @property
    def reading(self) -> Reading:
        """How its images are read."""
        return {
            "band_axis": self.band_axis,
            "nodata": self.nodata,
            "bands": self.bands,
            "scale": self.scale,
            "offset": self.offset,
            "array_key": self.array_key,
            "valid": self.valid,
            "complex_bands": self.values == "complex_bands",
        }


@dataclass(frozen=True)
class Scene:
    """An image file, its label map where it has one, and what to call them; metres per pixel by the index."""

    name: str
    image: Path
    label: Path | None
    pixel_m: float | None = None


def find_scenes(config: FolderConfig) -> list[Scene]:
    """The images that a config names, each with its label; all of them are there.

    Raises:
        InputError: nothing matches, files are missing, or the index does not say what the config asks of it.
    """
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise InputError(
            f"the dataset's root {root} is no folder",
            got=what_is_at(root),
            fix="correct root, or fetch the dataset",
        )
    pairs = _from_patterns(root, config) if config.index is None else _from_index(root, config)
    pairs = _keep_names(pairs, config)
    pairs = keep_part(pairs, root, config.part, config.test_share, config.split_seed)
    missing = [
        InputError(f"{what} {path} does not exist", got=what_is_at(path))
        for image, label in pairs
        for what, path in (*(("image", file) for file in missing_files(image)), ("label", label))
        if path is not None and not (is_remote(path) or is_image(path))
    ]
    if missing:
        raise_together(
            missing,
            f"dataset {root} of {len(pairs)} images",
            "correct the pattern or the index, or labels: null for a set without labels",
        )
    stems = Counter(plain_name(image) for image, _ in pairs)
    metres = _spacings(root, config)
    return [Scene(_scene_name(image, root, stems), image, label, metres.get(image)) for image, label in pairs]


def _scene_name(image: Path, root: Path, stems: Counter[str]) -> str:
    """The file name without its suffix; with its folders where that alone would stand for two images."""
    name = plain_name(image)
    if stems[name] == 1 or not image.is_relative_to(root):
        return name
    return "__".join((*image.relative_to(root).parent.parts, name))


def _from_patterns(root: Path, config: FolderConfig) -> list[tuple[Path, Path | None]]:
    assert config.images is not None
    images = [root / name for name in matching(Path(config.images).as_posix(), partial(_images_below, root))]
    if not images:
        raise InputError(
            f"no image matches {config.images!r} under {root}",
            got=what_is_at(root / config.images),
            fix="correct the pattern or root",
        )
    if config.labels is None:
        return [(image, None) for image in images]
    parts = [re.escape(part) for part in Path(config.images).as_posix().split("*")]
    pattern = re.compile("([^/]*)".join(parts), re.IGNORECASE)
    pairs: list[tuple[Path, Path | None]] = []
    for image in images:
        match = pattern.fullmatch(image.relative_to(root).as_posix())
        assert match is not None
        matched = iter(match.groups())
        pairs.append((image, root / re.sub(r"\*", lambda _: next(matched), config.labels)))  # noqa: B023
    return pairs


def _images_below(root: Path, pattern: str) -> list[str]:
    """What matches below root, by paths from there; no hidden files."""
    found = (path for path in root.glob(pattern) if path.name[0] != "." and is_image(path))
    return [path.relative_to(root).as_posix() for path in found]


def _spacings(root: Path, config: FolderConfig) -> dict[Path, float]:
    """Image -> metres per pixel, as a column of the index says."""
    if config.index is None or config.pixel_m_column is None:
        return {}
    found: dict[Path, float] = {}
    for number, row in _index_rows(root / config.index, config):
        text = row[config.pixel_m_column]
        if not text:
            continue
        try:
            metres = float(text)
        except ValueError:
            metres = math.nan
        if not 0 < metres < MAX_PIXEL_M:
            raise InputError(
                f"the index {root / config.index} has a ground spacing that is none",
                got=f"row {number}: {text!r}",
                expected="metres per pixel, above 0, or an empty cell",
            )
        found[_below(root, row[config.image_column])] = metres
    return found


def _index_rows(path: Path, config: FolderConfig) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of the rows of an index that the config keeps."""
    columns = (config.image_column, config.label_column, config.pixel_m_column, *config.where)
    rows = read_index(path, [column for column in columns if column is not None])
    kept = [
        (number, row)
        for number, row in rows
        if all(row[column] == value for column, value in config.where.items())
    ]
    if not kept:
        present = "; ".join(f"{c}: {listed(sorted({row[c] for _, row in rows}))}" for c in config.where)
        raise InputError(
            f"no row of {path} has {config.where}", got=present or "no rows", fix="correct where"
        )
    return kept


def _from_index(root: Path, config: FolderConfig) -> list[tuple[Path, Path | None]]:
    assert config.index is not None
    path = root / config.index
    pairs: list[tuple[Path, Path | None]] = []
    known: set[tuple[Path, Path | None]] = set()
    for number, row in _index_rows(path, config):
        if not row[config.image_column]:
            raise InputError(f"the index {path} has a row without an image", got=f"row {number}: {row}")
        label = row[config.label_column] if config.label_column is not None else None
        image = _below(root, row[config.image_column])
        pairs.append((image, _below(root, label) if label else None))
        if pairs[-1] in known:
            raise InputError(
                f"the index {path} has a row twice",
                got=f"row {number}: {row}",
                fix="remove one",
            )
        known.add(pairs[-1])
    return pairs


def _below(root: Path, text: str) -> Path:
    """A file of the index, or what stands at an address."""
    path = root / image_path(text)
    try:
        path.exists()
    except OSError as error:
        raise InputError(
            f"{text[:80]} … is no name of a file", got=error.strerror, fix="correct it"
        ) from error
    return path


def _keep_names(
    pairs: list[tuple[Path, Path | None]], config: FolderConfig
) -> list[tuple[Path, Path | None]]:
    stems = [image.stem for image, _ in pairs]
    for key, parts in (("names", config.names), ("exclude", config.exclude)):
        for part in parts:
            if not any(part in stem for stem in stems):
                raise InputError(
                    f"{key}: no image name contains {part!r}{nearest(part, stems)}",
                    got=listed(stems),
                    fix=f"correct {key}: the case of letters counts",
                )
    kept = [
        pair
        for pair in pairs
        if (not config.names or any(part in pair[0].stem for part in config.names))
        and not any(part in pair[0].stem for part in config.exclude)
    ]
    if not kept:
        raise InputError(
            "exclude leaves no image",
            got=f"names: {config.names}, exclude: {config.exclude}",
            expected="at least one image kept",
        )
    return kept


def _require_patterns(images: str, labels: str | None) -> None:
    for key, pattern in (("images", images), ("labels", labels)):
        if pattern is None:
            continue
        if not pattern or "**" in pattern or re.search(r"[\[\]?]", pattern) or Path(pattern).is_absolute():
            raise InputError(
                f"{key} is no pattern known here",
                got=repr(pattern),
                expected="a path relative to root with '*' for parts of names",
                fix="name each folder level: 'train/*/sar/*.tif'",
            )
    if labels is not None and images.count("*") != labels.count("*"):
        raise InputError(
            "images and labels differ in their number of '*'",
            got=f"{images!r} and {labels!r}",
            expected="as many in both: what one matches is put into the other",
            fix="for instance 'S1/*_S1Hand.tif' and 'Labels/*_LabelHand.tif'",
        )


def raise_together(problems: Sequence[InputError], where: str, fix: str | None = None) -> None:
    if len(problems) == 1 and fix is None:
        raise problems[0]
    lines = [f"{i}. {problem}" for i, problem in enumerate(problems[:_SHOWN_PROBLEMS], 1)]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise InputError("\n".join([f"{where}: {count}", *lines]), fix=fix)
