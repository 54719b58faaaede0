"""Label files to class indices: raw values or colours, through a table that has to know every one of them.

A value the table does not know is an error, never a guess: a label map read one class off trains quietly and
scores badly. `ignore` in a table means the pixel neither trains nor counts.

C bands, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossearth_sar.config import require
from crossearth_sar.data.files.georeference import Place, label_flips
from crossearth_sar.data.files.readers import LabelParts, read_label_parts
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.ground_scale import row_blocks

IGNORE = "ignore"
"""The name that stands for IGNORE_INDEX in label_values and label_palette."""

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class LabelTable:
    """How raw labels become class indices.

    codes: raw values, ascending; a colour is packed as R * 65536 + G * 256 + B.
    indices: the class index, or IGNORE_INDEX, of each code.
    names: the class name, or "ignore", of each code.
    is_rgb: whether labels are colours.
    tolerance: a colour is the nearest of the table where |dR| + |dG| + |dB| is at most so much; what is
        farther from all is IGNORE_INDEX. 0: other colours are refused.
    """

    codes: tuple[int, ...]
    indices: tuple[int, ...]
    names: tuple[str, ...]
    is_rgb: bool
    tolerance: int = 0

    def describe(self) -> str:
        """`0 (other), 1 (water), -1 (ignore)`, for messages."""
        pairs = zip(self.codes, self.names, strict=True)
        return ", ".join(f"{show_code(code, self.is_rgb)} ({name})" for code, name in pairs)


def label_table(
    classes: Sequence[str],
    values: Mapping[int, str] | None = None,
    palette: Mapping[str, RGB | Sequence[RGB]] | None = None,
    tolerance: int = 0,
) -> LabelTable:
    """The table for label files of `classes`.

    Args:
        classes: class names; their order is the order of the indices.
        values: raw label value -> class name or "ignore".
        palette: class name or "ignore" -> its RGB colour, or several. Neither: label value i is class i
            and 255 is ignored.
        tolerance: of colours, as in LabelTable, for labels that went through a lossy compression.

    Raises:
        InputError: both are given; a class name is unknown; a colour is no colour or stands twice; there is a
            tolerance and no palette, or it is so large that a colour could be near two.
    """
    if values and palette:
        raise InputError(
            "label_values and label_palette are both given",
            expected="one of them",
            fix="label_values for numbers, label_palette for RGB colours",
        )
    if IGNORE in classes:
        raise InputError(
            f"a class is named {IGNORE!r}, which means unlabelled here",
            got=tuple(classes),
            fix=f"leave it out of classes and map its value to {IGNORE!r}",
        )
    if palette:
        pairs = _palette_pairs(palette)
    elif values:
        pairs = list(values.items())
    else:
        pairs = [*enumerate(classes), (IGNORE_INDEX, IGNORE)]
    index_of = {name: i for i, name in enumerate(classes)} | {IGNORE: IGNORE_INDEX}
    _require_known([name for _, name in pairs], index_of, "label_palette" if palette else "label_values")
    pairs.sort()
    codes = tuple(code for code, _ in pairs)
    _require_tolerance(tolerance, codes if palette else None)
    indices, names = (tuple(index_of[name] for _, name in pairs), tuple(name for _, name in pairs))
    return LabelTable(codes, indices, names, bool(palette), tolerance)


def _require_tolerance(tolerance: int, colors: tuple[int, ...] | None) -> None:
    require(tolerance >= 0, "label_tolerance", tolerance, "0 or more")
    if tolerance == 0:
        return
    if colors is None:
        raise InputError(
            "label_tolerance is for labels that are colours",
            got=f"{tolerance}, and no label_palette",
            fix="give label_palette, or leave label_tolerance out",
        )
    apart = _distances(np.array(colors), np.array(colors)) + 2 * 765 * np.eye(len(colors), dtype=np.int64)
    if 2 * tolerance >= apart.min():
        raise InputError(
            "label_tolerance is so large that a colour could be near two of label_palette",
            got=tolerance,
            expected=f"below {apart.min() / 2:g}, half the distance |dR| + |dG| + |dB| of the nearest two",
            fix="lower it",
        )


def _require_known(names: Sequence[str], classes: Mapping[str, int], where: str) -> None:
    for name in names:
        if name not in classes:
            raise InputError(
                f"{where} names an unknown class {name!r}{nearest(name, classes)}",
                expected=f"one of {', '.join(classes)}",
                fix=f"correct {where} or classes",
            )


def _palette_pairs(palette: Mapping[str, RGB | Sequence[RGB]]) -> list[tuple[int, str]]:
    """(packed colour, name) of every colour; InputError where one stands twice."""
    pairs = [(_pack(color), name) for name, colors in palette.items() for color in _colors(name, colors)]
    repeated = {code for code, _ in pairs if sum(code == other for other, _ in pairs) > 1}
    if repeated:
        raise InputError(
            "label_palette has a colour twice",
            got=", ".join(show_code(code, True) for code in sorted(repeated)),
            expected="each colour once",
        )
    return pairs


def read_label(path: str | Path, table: LabelTable, *, onto: Place | None = None) -> np.ndarray:
    """The label file at `path` as (H, W) uint8 class indices, IGNORE_INDEX where nothing is to be learned.

    Args:
        onto: where its image lies; a label whose rows or columns run the other way is turned onto it.

    Raises:
        InputError: the file cannot be read, has the wrong number of bands, holds a value the table does not
            know (the message counts its pixels), or lies elsewhere than its image.
    """
    parts = read_label_parts(path, expand_colors=table.is_rgb)
    mask = decode_label_parts(parts, table, name=path)
    rows, columns = label_flips(onto, parts.place, path)
    mask = mask[::-1] if rows else mask
    return np.ascontiguousarray(mask[:, ::-1] if columns else mask)


def decode_label_parts(parts: LabelParts, table: LabelTable, *, name: object) -> np.ndarray:
    """`decode_label` of a file or a part of one; what is transparent or masked in it is IGNORE_INDEX, and so
    is its nodata value where the table knows no such value. Raises InputError as `read_label` does."""
    labelled, values = parts.labelled, parts.values
    if parts.nodata is not None and not table.is_rgb and parts.nodata not in table.codes and len(values) == 1:
        named = values[0] != parts.nodata
        labelled = named if labelled is None else labelled & named
    return decode_label(values, table, name=name, labelled=labelled)


def decode_label(
    values: np.ndarray, table: LabelTable, *, name: object = "label", labelled: np.ndarray | None = None
) -> np.ndarray:
    """(H, W) uint8 class indices of raw labels (C, H, W), C = 1 for values and 3 for RGB.

    NaN in a label of floats, or in a channel, is IGNORE_INDEX, and so is what is not `labelled`, (H, W)
    bool. Raises InputError as `read_label` does.
    """
    if len(values) != (3 if table.is_rgb else 1):
        raise InputError(
            f"label {name} has {len(values)} bands",
            expected="an RGB image" if table.is_rgb else "one band of class values",
            fix="declare label_values, not label_palette"
            if table.is_rgb
            else "for an RGB label declare label_palette",
        )
    if values.dtype.kind == "c":
        raise InputError(
            f"label {name} holds complex numbers", expected="class values or colours", fix="correct labels"
        )
    mask = np.empty(values.shape[1:], np.uint8)
    unknown = []
    for rows in row_blocks(slice(0, len(mask)), max(1, values.shape[2])):
        here = None if labelled is None else labelled[rows]
        mask[rows], others = _decoded_rows(values[:, rows], table, name, here)
        unknown.append(others)
    if any(map(len, unknown)):
        _refuse_unknown(np.concatenate(unknown), table, name)
    return mask


def _decoded_rows(
    values: np.ndarray, table: LabelTable, name: object, labelled: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Class indices, and the raw values that stand for none: some rows at a time, for a raw number has eight
    bytes and a label of a whole scene may have had one."""
    missing = np.zeros(values.shape[1:], bool) if labelled is None else ~labelled
    if values.dtype.kind == "f":
        missing |= np.isnan(values).any(0)
    raw = _snapped(_packed(values, missing, name) if table.is_rgb else values[0], table)
    mask, known = _looked_up(raw, table)
    mask[missing] = IGNORE_INDEX
    known |= missing
    if table.tolerance:
        mask[~known] = IGNORE_INDEX
        known |= True
    return mask, raw[~known]


def _packed(values: np.ndarray, missing: np.ndarray, name: object) -> np.ndarray:
    """(3, H, W) as R * 65536 + G * 256 + B, 0 where a colour is missing.

    Raises:
        InputError: a channel is not one of 0, 1, … 255; packed, it would be another colour.
    """
    channels = np.where(missing, 0, values)
    if values.dtype != np.uint8:
        wrong = ((channels < 0) | (channels > 255) | (np.floor(channels) != channels)).any(0)
        if wrong.any():
            first = ", ".join(f"{channel:g}" for channel in values[:, wrong][:, 0])
            raise InputError(
                f"label {name} has colours that are none",
                got=f"[{first}] and others, {np.count_nonzero(wrong)} pixels",
                expected="three channels of whole numbers from 0 to 255",
                fix="write the colours as 8 bits, or declare label_values for class numbers",
            )
    red, green, blue = channels.astype(np.int64)
    return (red << 16) | (green << 8) | blue


def _snapped(raw: np.ndarray, table: LabelTable) -> np.ndarray:
    """Packed colours, those within the tolerance of one of the table replaced by it."""
    if not table.tolerance:
        return raw
    codes = np.array(table.codes, dtype=np.int64)
    others = ~np.isin(raw, codes)
    found, back = np.unique(raw[others], return_inverse=True)  # few pixels, of some thousand colours
    if not len(found):
        return raw
    apart = _distances(found, codes)
    snapped = raw.copy()
    snapped[others] = np.where(apart.min(1) <= table.tolerance, codes[apart.argmin(1)], found)[back]
    return snapped


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M): |dR| + |dG| + |dB| between packed colours."""
    channels = [np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1) for codes in (first, second)]
    return np.asarray(np.abs(channels[0][:, None] - channels[1][None]).sum(-1))


def _looked_up(raw: np.ndarray, table: LabelTable) -> tuple[np.ndarray, np.ndarray]:
    """Class indices of raw values or packed colours, and whether the table knows each."""
    codes, indices = np.array(table.codes, dtype=np.int64), np.array(table.indices, dtype=np.uint8)
    if raw.dtype == np.uint8:
        is_byte = (codes >= 0) & (codes <= 255)
        of_byte, is_known = np.zeros(256, np.uint8), np.zeros(256, bool)
        of_byte[codes[is_byte]], is_known[codes[is_byte]] = indices[is_byte], True
        return _translated(raw, of_byte), _translated(raw, is_known)
    position = np.minimum(np.searchsorted(codes, raw), len(codes) - 1)
    return indices[position], codes[position] == raw


def _translated(raw: np.ndarray, of_byte: np.ndarray) -> np.ndarray:
    """`of_byte[raw]` of bytes, many times as fast."""
    translated = bytearray(raw.tobytes()).translate(of_byte.tobytes())
    return np.frombuffer(translated, of_byte.dtype).reshape(raw.shape)


def count_values(parts: LabelParts, table: LabelTable, *, name: object = "file") -> Counter[int | float]:
    """How many pixels each raw value, or packed colour, has; those without a label are left out.

    Raises InputError for colours that are none, as `read_label`.
    """
    values, labelled = parts.values, parts.labelled
    missing = np.zeros(values.shape[1:], bool) if labelled is None else ~labelled
    if values.dtype.kind == "f":
        missing |= np.isnan(values).any(0)
    raw = _packed(values, missing, name) if table.is_rgb else values[0]
    raw = _snapped(raw[~missing], table)
    if raw.dtype == np.uint8:  # counting is much faster than sorting
        return Counter({i: int(n) for i, n in enumerate(np.bincount(raw, minlength=1)) if n})
    found, counts = np.unique(raw, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _refuse_unknown(unknown: np.ndarray, table: LabelTable, name: object) -> None:
    found, counts = np.unique(unknown, return_counts=True)
    order = np.argsort(-counts)
    shown = [f"{show_code(found[i], table.is_rgb)} ({counts[i]} pixels)" for i in order[:5]]
    if len(found) > 5:
        shown.append(f"and {len(found) - 5} more")
    where = "label_palette" if table.is_rgb else "label_values"
    raise InputError(
        f"label {name} has {'colours' if table.is_rgb else 'values'} that stand for no class",
        got=", ".join(shown),
        expected=table.describe(),
        fix=f"add them to {where}, with a class name or {IGNORE!r}",
    )


def _colors(name: str, colors: RGB | Sequence[RGB]) -> list[RGB]:
    listed = [colors] if colors and isinstance(colors[0], int) else list(colors)
    for color in listed:
        if not (isinstance(color, Sequence) and len(color) == 3 and all(0 <= c <= 255 for c in color)):
            raise InputError(
                f"label_palette {name!r} has something that is no colour",
                got=color,
                expected="[red, green, blue], each 0 to 255",
            )
    return listed  # type: ignore[return-value]


def _pack(color: RGB) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def show_code(code: int | float, is_rgb: bool) -> str:
    """A raw value, or a packed colour, as the settings write it."""
    return f"[{int(code) >> 16}, {int(code) >> 8 & 255}, {int(code) & 255}]" if is_rgb else f"{code:g}"
