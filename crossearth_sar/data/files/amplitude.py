"""From an image's values in any of the usual forms to linear amplitude; what cannot be meant is refused.

C bands, H W pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from crossearth_sar.errors import InputError

ValueKind = Literal["amplitude", "intensity", "db", "complex", "complex_bands"]
"""complex_bands: I and Q as two real bands, which the reader joins: `readers.Reading.complex_bands`."""

MAX_PLAUSIBLE_DB = 60.0
"""A dB value beyond this on either side is something else: a nodata number, or linear values."""

LINEAR_AT_MOST = 2.0
"""Numbers declared dB of which hardly any is beyond this on either side are linear, with what noise
subtraction leaves below 0: speckle alone spreads dB over more."""

_ENOUGH, _NEARLY_ALL = 64, 0.99


def to_amplitude(
    values: np.ndarray,
    kind: ValueKind,
    *,
    valid: np.ndarray | None = None,
    clip_negative: bool = False,
    name: object = "image",
) -> np.ndarray:
    """Linear amplitude, float32, finite and >= 0, of values in any of the usual forms.

    "amplitude" as it is, "intensity" its square root, "db" 10**(dB/20) (dB of power: 10 log10 of
    intensity), "complex" its magnitude, and so "complex_bands", whose pairs of bands are joined already.

    Args:
        values: (C, H, W) or any shape ending in (H, W).
        kind: what the values are; a complex dtype must be declared "complex" and nothing else may.
        valid: (H, W) bool; other pixels are neither judged nor kept, they become 0. None: finite ones.
        clip_negative: negative amplitudes and intensities, which noise subtraction leaves, become 0: no echo.
        name: what to call the image in a message, usually its path.

    Raises:
        InputError: for complex values under another kind and the reverse, negative amplitudes or
            intensities, dB values beyond 60 on either side or that are linear, and what does not fit float32.
    """
    is_complex = np.iscomplexobj(values)
    if is_complex != (kind in ("complex", "complex_bands")):
        raise InputError(
            f"{name} is {'complex' if is_complex else 'real'} but its values are declared {kind!r}",
            got=f"dtype {values.dtype}",
            expected="values: complex for complex dtypes and for no other",
            fix="declare values: complex" if is_complex else "declare values: amplitude, intensity or db",
        )
    if valid is None:
        valid = np.isfinite(values).reshape(-1, *values.shape[-2:]).all(axis=0)
    values = np.where(valid, values, values.dtype.type(0))
    if is_complex:
        amplitude = np.abs(values)
    else:
        values = values.astype(np.result_type(values, np.float32), copy=False)
        if clip_negative and kind != "db":
            values = values.clip(min=0)
        _refuse_implausible(values, kind, name)
        if kind == "db":
            _refuse_linear(values[..., valid], name)
            amplitude = np.where(valid, 10.0 ** (values / 20), 0.0)
        else:
            amplitude = np.sqrt(values) if kind == "intensity" else values
    return _as_float32(amplitude, name)


def _as_float32(amplitude: np.ndarray, name: object) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = amplitude.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise InputError(
            f"{name} has values that float32 cannot hold",
            got=f"amplitudes up to {amplitude.max():g}",
            expected="amplitudes below 3e38",
            fix="divide the image by a constant",
        )
    return narrow


def _refuse_linear(decibels: np.ndarray, name: object) -> None:
    """InputError where the valid numbers span what linear ones do; zeros, which may be fill, left out."""
    told = np.abs(decibels[decibels != 0])
    if told.size >= _ENOUGH and np.count_nonzero(told <= LINEAR_AT_MOST) >= _NEARLY_ALL * told.size:
        raise InputError(
            f"{name} is declared dB, but its values look linear",
            got=f"{_NEARLY_ALL:.0%} of {told.size} are between -{LINEAR_AT_MOST:g} and {LINEAR_AT_MOST:g}",
            expected="dB, which speckle alone spreads over more",
            fix="declare values: intensity (power) or values: amplitude",
        )


def _refuse_implausible(values: np.ndarray, kind: ValueKind, name: object) -> None:
    wrong = np.abs(values) > MAX_PLAUSIBLE_DB if kind == "db" else values < 0
    count = int(np.count_nonzero(wrong))
    if not count:
        return
    low, high = values[wrong].min(), values[wrong].max()
    got = f"{count} of {values.size} values, from {low:g} to {high:g}"
    likely_nodata = f"if {low:.9g} marks pixels without a measurement, set nodata: {low:.9g}"
    if kind == "db":
        fix = (
            "declare values: intensity or values: amplitude if the image is linear; give scale: if it is dB "
            "times a number, offset: if it is dB of numbers that were never calibrated"
        )
        raise InputError(
            f"{name} has values that are no decibels",
            got=got,
            expected=f"dB between -{MAX_PLAUSIBLE_DB:g} and {MAX_PLAUSIBLE_DB:g}",
            fix=likely_nodata if low == high else fix,
        )
    raise InputError(
        f"{name} has negative values but is declared {kind!r}",
        got=got,
        expected="values >= 0",
        fix=_fix_of_negative(values, count, likely_nodata if low == high else None),
    )


def _fix_of_negative(values: np.ndarray, count: int, likely_nodata: str | None) -> str:
    share = count / values.size
    if values.ndim == 3 and len(values) == 2 and 0.3 < share < 0.7:
        return (
            "two bands about 0 are the real and the imaginary part: declare values: complex_bands; declare "
            "values: db if the image is in decibels"
        )
    fix = "declare values: db if the image is in decibels"
    if likely_nodata is not None:
        return f"{likely_nodata}; {fix}"
    return f"{fix}; if noise subtraction left them, clip_negative: true makes them 0" if share < 0.5 else fix
