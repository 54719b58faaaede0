"""An image as a view shows it: power averaged over exactly the ground of each pixel.

The whole-pixel bins of `ground_scale` share no pixel, and so lie up to half a pixel aside of where a view's
pixel is; a box would then show other ground in one view than in the other. Here a source pixel that two
pixels of the view share counts in both by its parts. Where a view enlarges, source pixels are repeated.

C bands, H W pixels of the source, S pixels a side of the view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossearth_sar.errors import InputError
from crossearth_sar.selfsup.views import View

SMALLEST_SHARE = 1e-9
"""A pixel of which less was measured shows nothing: what is left is rounding."""


def render(image_CHW: Tensor, view: View, valid_HW: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Amplitude (C, H, W) as the view shows it, (C, S, S) float32; (S, S), the measured share of each pixel.

    Args:
        valid_HW: bool, which source pixels were measured: others are in no mean. A pixel of the view without
            a measured part is 0 and has share 0. None: all are.

    Raises:
        InputError: for a window that reaches beyond the image.
    """
    height, width = image_CHW.shape[-2:]
    x0, y0, x1, y1 = view.window
    if not (-1e-6 <= x0 < x1 <= width + 1e-6 and -1e-6 <= y0 < y1 <= height + 1e-6):
        raise InputError(
            "a view's window reaches beyond the image",
            got=f"{view.window} of {width} x {height} pixels",
            expected="x0, y0, x1, y1 inside the image",
        )
    rows, columns = (_edges(low, high, view.size) for low, high in ((y0, y1), (x0, x1)))
    power = image_CHW.double().square()
    if valid_HW is None:
        share = torch.ones(view.size, view.size, dtype=torch.float64)
    else:
        power = torch.where(valid_HW, power, 0)
        share = _means(_means(valid_HW.double(), rows, -2), columns, -1)
        share = torch.where(share < SMALLEST_SHARE, 0, share)
    power = _means(_means(power, rows, -2), columns, -1)
    amplitude = torch.where(share > 0, power / share.clamp(min=SMALLEST_SHARE), 0).clamp(min=0).sqrt()
    turned = [axis for axis, flip in ((-1, view.flip_x), (-2, view.flip_y)) if flip]
    return amplitude.float().flip(turned), share.float().flip(turned)


def _edges(low: float, high: float, size: int) -> Tensor:
    return low + (high - low) * torch.arange(size + 1, dtype=torch.float64) / size


def _means(values: Tensor, edges: Tensor, dim: int) -> Tensor:
    """Means of piecewise constant values between neighbouring edges along an axis, float64.

    Each is (integral up to the upper edge - up to the lower one) / distance, the integrals linear within a
    pixel.
    """
    length = values.shape[dim]
    first = min(max(int(edges[0]), 0), length - 1)  # nothing outside the window is read
    last = min(max(int(edges[-1].ceil()), first + 1), length)
    part = values.narrow(dim, first, last - first).movedim(dim, -1)
    sums = torch.cat([torch.zeros_like(part[..., :1]), part.cumsum(-1)], dim=-1)
    place = (edges - first).clamp(0, last - first)
    whole = place.floor().clamp(max=last - first - 1).long()
    integral = sums[..., whole] + part[..., whole] * (place - whole)
    return (integral.diff(dim=-1) / edges.diff()).movedim(-1, dim)
