"""Sentinel-1 SAFE folders and their zips: which measurement file holds which polarization, and its spacing.

    NAME.SAFE/manifest.safe  measurement/s1a-iw-grd-vv-….tiff  annotation/s1a-iw-grd-vv-….xml

Files go by their names, as ESA's product specification has them. What this is not: calibration; what
annotation/calibration holds is not applied, and amplitudes are the numbers of the measurement files.
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from crossearth_sar.errors import InputError

_MEASUREMENT = re.compile(
    r".*/measurement/(?P<name>s1\w-(?P<swath>\w+)-\w+-(?P<pol>hh|hv|vh|vv)-[^/]*)\.tiff?", re.IGNORECASE
)
_CO_POLARIZED_FIRST = ("vv", "vh", "hh", "hv")


def is_safe(path: Path) -> bool:
    """Whether it is a SAFE folder, or a zip that holds one, by manifest.safe and names."""
    if path.is_dir():
        return path.suffix.lower() == ".safe" or (path / "manifest.safe").is_file()
    if path.suffix.lower() != ".zip" or not path.is_file():
        return False
    return any(_MEASUREMENT.fullmatch(f"/{name}") for name in _names(path))


def measurements(path: Path) -> dict[str, Path]:
    """Polarization -> its measurement file, the co-polarized first: vv, vh, or hh, hv.

    Files in a zip are /vsizip/ paths.

    Raises:
        InputError: there is none, or several swaths, whose files are of several sizes.
    """
    found = [match for name in _names(path) if (match := _MEASUREMENT.fullmatch(f"/{name}"))]
    swaths = sorted({match["swath"].lower() for match in found})
    polarizations = [match["pol"].lower() for match in found]
    if not found or len(swaths) > 1 or len({*polarizations}) < len(polarizations):
        raise InputError(
            f"{path} is not read as one image",
            got=f"swaths {', '.join(swaths)}, {len(found)} files" if found else "no measurement file",
            expected="one measurement/s1…-POLARIZATION-….tiff for each polarization",
            fix="join its bursts and swaths first (SNAP: S-1 TOPS Split, Deburst, Merge), or give single "
            "files by a pattern: 'measurement/*-iw1-slc-vv-*.tiff'"
            if found
            else "unpack the product anew: it is not whole",
        )
    root = f"/vsizip/{path.absolute().as_posix()}" if path.is_file() else path.as_posix()
    by_name = {match["pol"].lower(): Path(f"{root}{match.group()}") for match in found}
    return {name: by_name[name] for name in _CO_POLARIZED_FIRST if name in by_name}


def ground_pixel_m(path: Path) -> float | None:
    """Metres per pixel on the ground, the geometric mean of both sides, as the first annotation says.

    Of images in slant range their spacing over the sine of the incidence angle in the middle. None: no
    annotation, or one without these.
    """
    annotations = sorted(name for name in _names(path) if re.search(r"/annotation/s1[^/]*\.xml$", f"/{name}"))
    if not annotations:
        return None
    try:
        text = _read(path, annotations[0])
        information = ElementTree.fromstring(text).find(".//imageAnnotation/imageInformation")
        stated = {} if information is None else {part.tag: part.text for part in information}
        across, along = (float(stated[f"{way}PixelSpacing"] or "") for way in ("range", "azimuth"))
        projection = ElementTree.fromstring(text).findtext(".//productInformation/projection") or ""
        if "slant" in projection.lower():
            across /= math.sin(math.radians(float(stated["incidenceAngleMidSwath"] or "")))
    except (ElementTree.ParseError, KeyError, ValueError, ZeroDivisionError):
        return None
    return math.sqrt(across * along) if across * along > 0 else None


def _names(path: Path) -> list[str]:
    """Files of a folder, or members of a zip, by paths below it."""
    if path.is_dir():
        inside = (file for room in ("measurement", "annotation") for file in (path / room).glob("*"))
        return sorted(file.relative_to(path).as_posix() for file in inside if file.is_file())
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return []


def _read(path: Path, name: str) -> str:
    if path.is_dir():
        return (path / name).read_text(encoding="utf-8")
    with zipfile.ZipFile(path) as archive:
        return archive.read(name).decode("utf-8")
