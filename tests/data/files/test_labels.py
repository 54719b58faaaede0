"""Raw label values and colours to class indices; nothing unknown passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from crossearth_sar.data.files.labels import count_values, decode_label, label_table, read_label
from crossearth_sar.data.files.readers import LabelParts
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError

CLASSES = ("other", "water")
FLOODS = {-1: "ignore", 0: "other", 1: "water"}


def test_values_in_any_integer_type_and_floats() -> None:
    table = label_table(CLASSES, FLOODS)
    for dtype in (np.int8, np.int16, np.int64, np.float32, np.float64):
        mask = decode_label(np.array([[[-1, 0, 1], [1, 1, 0]]], dtype), table)
        assert mask.dtype == np.uint8
        assert mask.tolist() == [[IGNORE_INDEX, 0, 1], [1, 1, 0]]
    assert decode_label(np.array([[[0, 1]]], np.uint8), table).tolist() == [[0, 1]]
    assert decode_label(np.array([[[np.nan, 1.0]]]), table).tolist() == [[IGNORE_INDEX, 1]]


def test_many_values_may_be_one_class_in_any_order() -> None:
    table = label_table(CLASSES, {60: "water", 10: "other", -7: "ignore", 20: "other"})
    assert decode_label(np.array([[[10, 20, 60, -7]]]), table).tolist() == [[0, 0, 1, IGNORE_INDEX]]


def test_without_a_table_values_are_indices_and_255_is_ignored() -> None:
    assert decode_label(np.array([[[0, 1, 255]]]), label_table(CLASSES)).tolist() == [[0, 1, IGNORE_INDEX]]


TOLERANT = {"other": (255, 0, 0), "water": ((0, 0, 255), (0, 255, 255)), "ignore": (255, 255, 255)}


def test_colours_near_those_of_the_table_are_them() -> None:
    colors = [
        (255, 0, 0),
        (240, 7, 8),
        (239, 7, 8),
        (0, 10, 235),
        (9, 250, 240),
        (250, 240, 240),
        (90, 90, 90),
    ]
    values = np.array([colors], np.uint8).transpose(2, 0, 1)
    expected = [0, 0, IGNORE_INDEX, 1, 1, IGNORE_INDEX, IGNORE_INDEX]
    table = label_table(CLASSES, palette=TOLERANT, tolerance=30)
    assert decode_label(values, table).tolist() == [expected], "30 is near, 31 is not"
    with pytest.raises(InputError, match=r"\[240, 7, 8\] \(1 pixels\)"):
        decode_label(values, label_table(CLASSES, palette=TOLERANT))
    found = count_values(LabelParts(values, None, None, None), table)
    packed = {"other": 255 << 16, "far": 239 << 16 | 7 << 8 | 8, "blue": 255, "cyan": 255 << 8 | 255}
    assert {name: found[code] for name, code in packed.items()} == {
        "other": 2,
        "far": 1,
        "blue": 1,
        "cyan": 1,
    }


def test_tolerances_that_cannot_be() -> None:
    with pytest.raises(InputError, match="for labels that are colours"):
        label_table(CLASSES, FLOODS, tolerance=3)
    with pytest.raises(InputError, match="label_tolerance"):
        label_table(CLASSES, palette=TOLERANT, tolerance=-1)
    label_table(CLASSES, palette=TOLERANT, tolerance=127)
    with pytest.raises(InputError, match=r"near two of label_palette[\s\S]*below 127.5"):
        label_table(CLASSES, palette=TOLERANT, tolerance=128)


def test_unknown_values_are_counted_and_the_remedy_named() -> None:
    values = np.zeros((1, 4, 5))
    values[0, 0, :3], values[0, 1, 1], values[0, 2, 2] = 7, 1.5, np.inf
    with pytest.raises(InputError) as error:
        decode_label(values, label_table(CLASSES, FLOODS), name="Labels/a.tif")
    message = str(error.value)
    for part in (
        "Labels/a.tif",
        "7 (3 pixels)",
        "1.5 (1 pixels)",
        "-1 (ignore), 0 (other), 1 (water)",
        "add them to label_values",
    ):
        assert part in message
    with pytest.raises(InputError, match="and 45 more"):
        decode_label(np.arange(52).reshape(1, 4, 13), label_table(CLASSES, FLOODS))


def test_colours(tmp_path: Path) -> None:
    table = label_table(
        CLASSES, palette={"water": (0, 0, 255), "other": ((0, 0, 0), (255, 0, 0)), "ignore": ((1, 2, 3),)}
    )
    colours = np.array([[[0, 0, 255], [0, 0, 0]], [[255, 0, 0], [1, 2, 3]]], np.uint8)
    expected = [[1, 0], [0, IGNORE_INDEX]]
    assert decode_label(colours.transpose(2, 0, 1), table).tolist() == expected
    big = colours.repeat(8, 0).repeat(8, 1)
    Image.fromarray(big).save(tmp_path / "rgb.png")
    Image.fromarray(big).convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(big).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "paletted.png")
    tifffile.imwrite(tmp_path / "rgb.tif", big, photometric="rgb")
    for name in ("rgb.png", "rgba.png", "paletted.png", "rgb.tif"):
        assert read_label(tmp_path / name, table)[::8, ::8].tolist() == expected, name
    colours[0, 0] = 9, 9, 9
    with pytest.raises(InputError, match=r"(?s)a\.png has colours.*\[9, 9, 9\] \(1 pixels\).*label_palette"):
        decode_label(colours.transpose(2, 0, 1), table, name="a.png")


def test_band_counts_that_fit_the_other_kind_of_table() -> None:
    with pytest.raises(InputError, match=r"(?s)has 3 bands.*label_palette"):
        decode_label(np.zeros((3, 4, 4)), label_table(CLASSES, FLOODS))
    with pytest.raises(InputError, match=r"(?s)has 1 bands.*RGB.*label_values"):
        decode_label(np.zeros((1, 4, 4)), label_table(CLASSES, palette={"water": (0, 0, 255)}))


def test_tables_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"label_values names an unknown class 'watr' \(did you mean"):
        label_table(CLASSES, {1: "watr"})
    with pytest.raises(InputError, match="label_palette names an unknown class 'road'"):
        label_table(CLASSES, palette={"road": (0, 0, 0)})
    with pytest.raises(InputError, match="both given"):
        label_table(CLASSES, {1: "water"}, {"water": (0, 0, 0)})
    with pytest.raises(InputError, match=r"(?s)a colour twice.*\[1, 2, 3\]"):
        label_table(CLASSES, palette={"water": (1, 2, 3), "other": ((1, 2, 3), (0, 0, 0))})
    with pytest.raises(InputError, match=r"(?s)no colour.*0 to 255"):
        label_table(CLASSES, palette={"water": (1, 2, 300)})
    with pytest.raises(InputError, match="means unlabelled"):
        label_table(("ignore", "water"))


@pytest.mark.parametrize(
    ("color", "dtype"),
    [
        ((254, 256, 0), np.uint16),
        ((255.9, 0, 0), np.float32),
        ((-1, 0, 0), np.int16),
        ((0, 0, np.inf), float),
    ],
)
def test_colours_that_would_wrap_are_refused(color: tuple[float, ...], dtype: type) -> None:
    table = label_table(CLASSES, palette={"other": (255, 0, 0), "water": (0, 0, 255)})
    values = np.array([[255, 0, 0], color], dtype).T[:, None]
    for decode in (
        lambda: decode_label(values, table, name="a.tif"),
        lambda: count_values(LabelParts(values, None, None, None), table),
    ):
        with pytest.raises(InputError, match=r"(?s)colours that are none.*1 pixels.*0 to 255"):
            decode()
    labelled = np.array([[True, False]])
    assert decode_label(values, table, labelled=labelled).tolist() == [[0, IGNORE_INDEX]]


def test_a_colour_with_a_nan_is_no_label() -> None:
    table = label_table(CLASSES, palette={"other": (255, 0, 0), "water": (0, 0, 255)})
    values = np.array([[[255, np.nan, 0]], [[0, 0, np.nan]], [[0, 255, 255]]])
    assert decode_label(values, table).tolist() == [[0, IGNORE_INDEX, IGNORE_INDEX]]
    found = count_values(LabelParts(values, None, None, None), table)
    assert found == {255 << 16: 1}


def test_complex_numbers_are_no_labels() -> None:
    with pytest.raises(InputError, match="complex"):
        decode_label(np.zeros((1, 2, 2), complex), label_table(CLASSES))
