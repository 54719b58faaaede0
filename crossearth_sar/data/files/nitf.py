"""Reading NITF: SICD and SIDD, the complex and the derived images of Umbra, Capella and others, by sarkit.

Any other NITF goes through rasterio. Metres per pixel and the corners on the ground come from the file's own
XML. What this is not: a projection onto the ground; images stay in the plane that they are stored in.

C bands, H W pixels, h w pixels of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crossearth_sar.data.files.raster import raster_block_rows, read_raster, require_extra
from crossearth_sar.data.files.stored import StoredImage, Window
from crossearth_sar.errors import InputError

_XML_WITHIN = 1 << 25
"""The XML stands at the end of the file, after the pixels; so many bytes are searched for its name."""

_CORNERS = ("1:FRFC", "2:FRLC", "3:LRLC", "4:LRFC")

Kind = Literal["SICD", "SIDD"]


def nitf_kind(path: Path) -> Kind | None:
    """Which of the two it is; None: neither."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _XML_WITHIN))
        tail = file.read()
    if b"urn:SIDD" in tail:  # which holds the XML of its SICD, too
        return "SIDD"
    return "SICD" if b"urn:SICD" in tail else None


def read_nitf(
    path: Path, array_key: str | None, *, decode: bool, window: Window | None = None
) -> StoredImage:
    """A SICD as complex numbers, (H, W); the first product of a SIDD, or that of the number `array_key`.

    Raises:
        InputError: sarkit is not installed, or the image is a picture in colours.
    """
    kind = nitf_kind(path)
    if kind is None:
        return read_raster(path, array_key, decode=decode, window=window)
    with _opened(path, kind) as reader:
        number = int(array_key or 0) if kind == "SIDD" else 0
        xml = _xml(reader, kind, number, path)
        size, values = _size(xml, kind), None
        if decode:
            values = _sicd_values(reader, xml, window) if kind == "SICD" else reader.read_image(number)
            if values.dtype.names or values.ndim != 2:
                raise InputError(
                    f"{path} is a picture in colours",
                    got=xml.findtext("{*}Display/{*}PixelType"),
                    expected="one band: MONO8I, MONO8LU or MONO16I",
                    fix="give the measurements themselves: the SICD, or a GeoTIFF",
                )
            if kind == "SIDD" and window is not None:
                values = values[window.slices]
            values = values.astype(values.dtype.newbyteorder("="))
        shape = size if window is None else (window.height, window.width)
        return StoredImage(shape, values, pixel_m=_pixel_m(xml, kind))


def nitf_block_rows(path: Path) -> int | None:
    """Rows that are decoded at least; None where that is all of them, of a SIDD."""
    kind = nitf_kind(path)
    if kind is None:
        return raster_block_rows(path)
    return 1 if kind == "SICD" else None


def nitf_corners(path: Path, array_key: str | None = None) -> list[tuple[float, float, float, float]]:
    """(row, column, latitude, longitude) of the corners of a SICD or SIDD; none for another NITF."""
    kind = nitf_kind(path)
    if kind is None:
        return []
    with _opened(path, kind) as reader:
        xml = _xml(reader, kind, int(array_key or 0), path)
    height, width = _size(xml, kind)
    pixels = dict(
        zip(_CORNERS, ((0, 0), (0, width - 1), (height - 1, width - 1), (height - 1, 0)), strict=True)
    )
    found = []
    for corner in xml.findall("{*}GeoData/{*}ImageCorners/{*}ICP"):
        row, column = pixels[corner.get("index")]
        found.append(
            (row + 0.5, column + 0.5, float(corner.findtext("{*}Lat")), float(corner.findtext("{*}Lon")))
        )
    return found


@contextmanager
def _opened(path: Path, kind: Kind) -> Iterator[Any]:
    require_extra(path, "sarkit", "sicd")
    import sarkit.sicd
    import sarkit.sidd

    reader = sarkit.sicd.NitfReader if kind == "SICD" else sarkit.sidd.NitfReader
    with path.open("rb") as file, reader(file) as opened:
        yield opened


def _xml(reader: Any, kind: Kind, number: int, path: Path) -> Any:
    if kind == "SICD":
        return reader.metadata.xmltree.getroot()
    images = reader.metadata.images
    if number >= len(images):
        raise InputError(
            f"{path} has no product image {number}",
            expected=f"0 to {len(images) - 1}",
            fix="correct array_key",
        )
    return images[number].xmltree.getroot()


def _size(xml: Any, kind: Kind) -> tuple[int, int]:
    names = ("ImageData/NumRows", "ImageData/NumCols")
    if kind == "SIDD":
        names = ("Measurement/PixelFootprint/Row", "Measurement/PixelFootprint/Col")
    height, width = (int(_text(xml, name)) for name in names)
    return height, width


def _sicd_values(reader: Any, xml: Any, window: Window | None) -> np.ndarray:
    """(h, w) complex64, whichever way the numbers are stored."""
    w = window
    part = () if w is None else (w.top, w.left, w.top + w.height, w.left + w.width)
    values = reader.read_sub_image(*part)[0]
    names = values.dtype.names
    if names is None:
        return np.asarray(values)
    first, second = (values[name].astype(np.float32) for name in names)
    if "real" in names[0].lower():
        return np.asarray(first + 1j * second)
    table = {
        int(a.get("index")): float(a.text) for a in xml.iterfind("{*}ImageData/{*}AmpTable/{*}Amplitude")
    }
    if table:
        first = np.array([table[i] for i in range(256)], np.float32)[values[names[0]]]
    return np.asarray(first * np.exp(2j * np.pi * second / 256), np.complex64)


def _pixel_m(xml: Any, kind: Kind) -> float | None:
    """Metres on the ground, the geometric mean of both sides; None where the XML does not say."""
    if kind == "SIDD":
        texts = [
            xml.findtext(f"{{*}}Measurement/{{*}}PlaneProjection/{{*}}SampleSpacing/{{*}}{side}")
            for side in ("Row", "Col")
        ]
        return math.sqrt(float(texts[0]) * float(texts[1])) if all(texts) else None
    row, column = float(_text(xml, "Grid/Row/SS")), float(_text(xml, "Grid/Col/SS"))
    if _text(xml, "Grid/ImagePlane") == "SLANT":
        row /= math.sin(math.radians(float(_text(xml, "SCPCOA/IncidenceAng"))))
    return math.sqrt(row * column)


def _text(xml: Any, name: str) -> str:
    text = xml.findtext("/".join(f"{{*}}{part}" for part in name.split("/")))
    if text is None:
        raise ValueError(f"its XML lacks {name}")
    return str(text)
