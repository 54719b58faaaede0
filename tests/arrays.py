"""What the tests of formats, readers and amplitude share: arrays of every dtype, and the check of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crossearth_sar.data.files.readers import read_image, read_shape

DTYPES = ["uint8", "uint16", "int16", "int32", "float16", "float32", "float64", "complex64", "complex128"]

_RNG = np.random.default_rng(0)
GREY = _RNG.integers(0, 255, (20, 31), dtype=np.uint8)
TWO_BANDS = _RNG.normal(size=(2, 20, 31)).astype(np.float32)


def of_dtype(dtype: str) -> np.ndarray:
    values = np.random.default_rng(1).integers(1, 200, (2, 20, 31))
    return (values + 1j * values[::-1] if dtype.startswith("complex") else values).astype(dtype)


def assert_reads_as(path: Path, expected: np.ndarray, **how: object) -> None:
    raw = read_image(path, **how)  # type: ignore[arg-type]
    assert raw.values.dtype == expected.dtype
    assert raw.values.shape == expected.shape
    assert np.array_equal(raw.values, expected, equal_nan=expected.dtype.kind in "fc")
    assert raw.path == path
    assert raw.valid.shape == expected.shape[1:]
    if "bands" not in how:
        how.pop("nodata", None)
        assert read_shape(path, **how) == expected.shape  # type: ignore[arg-type]
