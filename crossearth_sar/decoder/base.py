"""What every decoder does, whatever its output is.

B batch, H W pixels, C classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Decoder(nn.Module):
    """`decoder(feature_maps)` gives an output of the decoder's own kind, which these read."""

    def loss(self, output: Any, mask_BHW: Tensor, ignore_index: int = 255) -> dict[str, Tensor]:
        """The weighed losses by their names; their sum is the segmentation loss."""
        raise NotImplementedError

    def semantic_scores(self, output: Any, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W) scores of the classes at `size` = (H, W)."""
        raise NotImplementedError
