"""From an image's values in any of the usual forms to linear amplitude; what cannot be meant is refused.

C bands, H W pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from crossearth_sar.errors import InputError

ValueKind = Literal["amplitude", "intensity", "db", "complex"]

MAX_PLAUSIBLE_DB = 150.0
"""A dB value beyond this on either side is something else: a nodata number, or linear values."""


def to_amplitude(
    values: np.ndarray, kind: ValueKind, *, valid: np.ndarray | None = None, name: object = "image"
) -> np.ndarray:
    """Linear amplitude, float32, finite and >= 0, of values in any of the usual forms.

    "amplitude" as it is, "intensity" its square root, "db" 10**(dB/20) (dB of power: 10 log10 of
    intensity), "complex" its magnitude.

    Args:
        values: (C, H, W) or any shape ending in (H, W).
        kind: what the values are; a complex dtype must be declared "complex" and nothing else may.
        valid: (H, W) bool; other pixels are neither judged nor kept, they become 0. None: finite ones.
        name: what to call the image in a message, usually its path.

    Raises:
        InputError: for complex values under another kind and the reverse, negative amplitudes or
            intensities, dB values beyond 150 on either side, and what does not fit float32.
    """
    is_complex = np.iscomplexobj(values)
    if is_complex != (kind == "complex"):
        raise InputError(
            f"{name} is {'complex' if is_complex else 'real'} but its values are declared {kind!r}",
            got=f"dtype {values.dtype}",
            expected="values: complex for complex dtypes and for no other",
            fix="declare values: complex" if is_complex else "declare values: amplitude, intensity or db",
        )
    if valid is None:
        valid = np.isfinite(values).reshape(-1, *values.shape[-2:]).all(axis=0)
    values = np.where(valid, values, values.dtype.type(0))
    if kind == "complex":
        amplitude = np.abs(values)
    else:
        values = values.astype(np.result_type(values, np.float32), copy=False)
        _refuse_implausible(values, kind, name)
        if kind == "db":
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


def _refuse_implausible(values: np.ndarray, kind: ValueKind, name: object) -> None:
    wrong = np.abs(values) > MAX_PLAUSIBLE_DB if kind == "db" else values < 0
    count = int(np.count_nonzero(wrong))
    if not count:
        return
    low, high = values[wrong].min(), values[wrong].max()
    got = f"{count} of {values.size} values, from {low:g} to {high:g}"
    likely_nodata = f"if {low:g} marks pixels without a measurement, set nodata: {low:g}"
    if kind == "db":
        raise InputError(
            f"{name} has values that are no decibels",
            got=got,
            expected=f"dB between -{MAX_PLAUSIBLE_DB:g} and {MAX_PLAUSIBLE_DB:g}",
            fix=likely_nodata
            if low == high
            else "declare values: intensity or values: amplitude if the image is linear",
        )
    fix = "declare values: db if the image is in decibels"
    if low == high:
        fix = f"{likely_nodata}; {fix}"
    elif count < 0.01 * values.size:
        fix = f"{fix}; so few may also be left by noise subtraction: set them to a nodata value"
    raise InputError(
        f"{name} has negative values but is declared {kind!r}", got=got, expected="values >= 0", fix=fix
    )
