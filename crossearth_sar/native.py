"""The compiled extension, built from csrc/ at install; backend.py says whether it can be used."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any


@cache
def native_extension() -> Any:
    """The module, which knows no torch: pointers, sizes and strides go in.

    Raises:
        ImportError: it is not built.
    """
    return importlib.import_module("crossearth_sar._descriptors")
