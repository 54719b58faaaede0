"""Images as numpy masked arrays, which rasterio's `read(masked=True)` gives: what is masked is not measured.

B batch, C bands, H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossearth_sar.data.files.fill import fill_unmeasured
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.errors import InputError


def measured_pixels(image_BCHW: Any) -> np.ndarray | None:
    """(B, H, W) bool of a masked array (B, C, H, W), False where a band is masked; None for other images."""
    if not isinstance(image_BCHW, np.ma.MaskedArray) or image_BCHW.ndim != 4:
        return None
    return np.asarray(~np.ma.getmaskarray(image_BCHW).any(1))


def filled_images(image_BCHW: Any, measured_BHW: np.ndarray) -> np.ndarray:
    """Each image of the masked array with measured pixels of its own where it is masked.

    Raises:
        InputError: an image has no measured pixel.
    """
    if not measured_BHW.any((1, 2)).all():
        raise InputError(
            "an image of the masked array has no measured pixel",
            got=f"shape {image_BCHW.shape}, all of an image masked",
            expected="at least one pixel without a mask",
        )
    pairs = zip(np.asarray(image_BCHW.data), measured_BHW, strict=True)
    return np.stack([fill_unmeasured(image_CHW, measured_HW) for image_CHW, measured_HW in pairs])


def hide_unmeasured(classes_BHW: Tensor, measured_BHW: np.ndarray) -> Tensor:
    """Classes with IGNORE_INDEX where nothing was measured."""
    hidden = torch.from_numpy(~measured_BHW).to(classes_BHW.device)
    return classes_BHW.masked_fill(hidden, IGNORE_INDEX)
