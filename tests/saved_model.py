"""A small model for the tests of `predict`, whose folder tests/cli/conftest.py writes."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "vit": {"dim": 32, "num_heads": 2, "image_size": 64, "patch_size": 16, "depth": 4},
    "decoder": {"channels": 32, "num_queries": 8, "pixel_layers": 1, "query_layers": 1},
    "crop_size": 64,
    "crop_stride": 40,
}
