"""What names an image, as one Path: a file, several of them, a product's folder or zip, an address.

`S1/a_{vv,vh}.tif` are two files of one image, in that order. A Sentinel-1 SAFE folder, or its zip, is the
files of its polarizations. `s3://bucket/a.tif` is `/vsis3/bucket/a.tif`, the name that GDAL has for it. What
this is not: a reader.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from crossearth_sar.data.files.safe import is_safe, measurements
from crossearth_sar.errors import InputError

_BRACES = re.compile(r"\{([^{}]*)\}")
_STORES = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
_ARCHIVE = re.compile(r"(/vsi(?:zip|tar|gzip|7z|rar)/)(.*)")
_SHOWN = 8


def image_path(text: str | Path) -> Path:
    """The Path of an image as a user names it; addresses by the names GDAL has for them.

    Raises:
        InputError: an address of a kind that GDAL is not asked for.
    """
    text = str(text)
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text).expanduser()
    if scheme in ("http", "https") and "//" not in rest:
        return Path(f"/vsicurl/{text}")  # a Path makes one slash of two: gdal_name puts it back
    if scheme in _STORES:
        return Path(f"{_STORES[scheme]}{rest}")
    raise InputError(
        f"cannot read {text}: unknown kind of address",
        got=f"{scheme}://",
        expected=f"https://, {', '.join(f'{name}://' for name in _STORES)}, or a path of GDAL's: /vsizip/…",
    )


def is_remote(path: Path) -> bool:
    """Whether it is one of GDAL's own paths, /vsicurl/, /vsis3/, /vsizip/ …, which GDAL alone reads."""
    return str(path).startswith("/vsi")


def gdal_name(path: Path) -> str:
    """What rasterio is to open: with the two slashes that a Path makes one."""
    text = re.sub(r"(https?):/(?!/)", r"\1://", str(path))
    archive = _ARCHIVE.match(text)
    if archive and (archive[2].startswith("vsi") or _archive_file(path) == _archive_file(path, "/")):
        return f"{archive[1]}/{archive[2]}"
    return text


def members(path: Path) -> tuple[Path, ...]:
    """The files that make up an image, in the order of its bands; of a plain file itself.

    Raises:
        InputError: braces hold a '/' or one name, or a SAFE folder has no measurements of one size.
    """
    if _BRACES.search(str(path)) and not path.exists():
        return tuple(Path(text) for text in expanded(str(path)))
    if not is_remote(path) and is_safe(path):
        return tuple(measurements(path).values())
    return (path,)


def is_image(path: Path) -> bool:
    """Whether there is something to read: its files, a product's folder; of what is remote is not asked."""
    return not missing_files(path)


def missing_files(path: Path) -> list[Path]:
    """Those of an image's files that are not there."""
    return [file for file in members(path) if not (is_remote(file) or file.is_file() or is_product(file))]


def is_product(path: Path) -> bool:
    """Whether it is a folder that GDAL, or `safe.py`, reads as one image: with product.xml, RADARSAT-2's."""
    return path.is_dir() and (is_safe(path) or (path / "product.xml").is_file())


def plain_name(path: Path) -> str:
    """The file name without its suffix and braces: `a_{vv,vh}.tif` is `a_vv_vh`."""
    name = _BRACES.sub(lambda found: found[1].replace(",", "_"), path.name)
    if name.lower().endswith((".safe", ".safe.zip")):
        return name[: name.lower().rindex(".safe")]
    return Path(name).stem


def state(path: Path) -> list[int]:
    """Bytes and time of change of each of an image's local files: another image, another list."""
    local = [_on_disk(file) for file in members(path)]
    found = [file.stat() for file in local if file is not None]
    return [number for about in found for number in (about.st_size, about.st_mtime_ns)]


def matching(pattern: str, find: Callable[[str], Iterable[str]]) -> list[str]:
    """The images that a pattern names, sorted: paths, with braces where the pattern has some.

    Args:
        find: the paths that match a pattern without braces.

    Raises:
        InputError: an image lacks some of the files that the braces name.
    """
    if not _BRACES.search(pattern):
        return sorted(find(pattern))
    every = expanded(pattern)
    there: dict[tuple[str, ...], set[int]] = {}
    for i, one in enumerate(every):
        stars = re.compile("([^/]*)".join(map(re.escape, one.split("*"))))
        for path in find(one):
            match = stars.fullmatch(path)
            if match is None:
                raise InputError(f"{pattern!r} has braces beside '**', '?' or '['", expected="'*' alone")
            there.setdefault(match.groups(), set()).add(i)
    absent = [
        _filled(every[i], matched)
        for matched, have in sorted(there.items())
        for i in range(len(every))
        if i not in have
    ]
    if absent:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise InputError(
            f"images of {pattern!r} lack files that its braces name",
            got=f"no {', '.join(absent[:_SHOWN])}{more}",
            expected="every file of every image: the braces name the files of one",
            fix="fetch them, or take them out of the pattern",
        )
    return [_filled(pattern, matched) for matched in sorted(there)]


def expanded(pattern: str, *, forbidden: str = "/*") -> list[str]:
    """`a_{vv,vh}.tif` as `a_vv.tif` and `a_vh.tif`.

    Raises:
        InputError: braces hold one name, or a `forbidden` character.
    """
    parts = _BRACES.split(pattern)  # text, what braces hold, text, …
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    for held in choices[1::2]:
        if len(set(held)) < 2 or any({*name} & {*forbidden} for name in held):
            raise InputError(
                f"{pattern!r} has braces that name no files of one image",
                got="{" + ",".join(held) + "}",
                expected="two names or more, without '/' and '*': {vv,vh}",
            )
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _filled(pattern: str, matched: tuple[str, ...]) -> str:
    given = iter(matched)
    return re.sub(r"\*", lambda _: next(given), pattern)


def _on_disk(path: Path) -> Path | None:
    """The local file that holds it, of /vsizip/a.zip/b.tif the zip; None where it is elsewhere."""
    return _archive_file(path) if is_remote(path) else path


def _archive_file(path: Path, *roots: str) -> Path | None:
    """The local archive in /vsizip/a.zip/b.tif, from here or from the root."""
    archive = _ARCHIVE.match(str(path))
    for root in roots or (".", "/") if archive else ():
        inside = Path(root, archive[2] if archive else "")
        for part in (inside, *inside.parents):
            if part.is_file():
                return part
    return None
