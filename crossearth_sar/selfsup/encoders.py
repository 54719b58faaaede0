"""What DI3CL takes from an encoder: a deep and a shallow map, an image vector, the routing.

| | ViT | ResNet |
|---|---|---|
| deep map | patch tokens after the final norm | the last stage |
| shallow map | the second of its blocks' maps, through a LayerNorm of its own | the third stage |

N images, D channels, h w cells, T tokens (1 + h*w).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from crossearth_sar.batch_norm import batch_norms
from crossearth_sar.errors import InputError
from crossearth_sar.model import CrossEarthSAR
from crossearth_sar.selfsup.config import DI3CLConfig
from crossearth_sar.vit import ViTConfig

RESNET_STAGE = 2
"""The third of a ResNet's maps, on which the published code computes its contour loss."""


class Features(NamedTuple):
    """deep (N, D, h, w), shallow (N, D', h', w') or None, vector (N, D) of the image, routing per sparse
    block."""

    deep: Tensor
    shallow: Tensor | None
    vector: Tensor
    routing: tuple[Any, ...]


class Encoder(nn.Module):
    """A model without a decoder, looked at as DI3CL needs it.

    Attributes:
        model: the model itself.
        deep_dim, shallow_dim: channels of the two maps. stride: pixels of a cell of the deep one.

    Raises:
        InputError: for a model with a decoder, a map that it has not, or a CLS token that it has not.
    """

    def __init__(self, model: CrossEarthSAR, config: DI3CLConfig) -> None:
        super().__init__()
        if model.decoder is not None:
            raise InputError(
                "self-supervised training has no use for a decoder",
                got=f"a model with decoder {type(model.decoder).__name__}",
                expected="a backbone alone",
                fix="build it with decoder null",
            )
        shape = model.config.backbone
        self.is_vit = isinstance(shape, ViTConfig)
        self.model, self.image_vector = model, config.image_vector
        self.shallow_index = _shallow_index(model, config.contour_map)
        self.deep_dim, self.stride = shape.map_channels[-1], shape.map_strides[-1]
        self.shallow_dim = shape.map_channels[self.shallow_index]
        if self.image_vector == "cls" and not self.is_vit:
            raise InputError(
                "a ResNet has no CLS token", got="image_vector cls", expected="image_vector mean"
            )
        # A block's map is the residual stream before any norm, whose scale grows from block to block.
        self.shallow_norm: nn.Module | None = None
        if config.contour_weight:
            self.shallow_norm = nn.LayerNorm(self.shallow_dim) if self.is_vit else nn.Identity()

    def forward(self, image_NCHW: Tensor, db_mean: Tensor, db_std: Tensor) -> Features:
        """Arguments as of `CrossEarthSAR.features`."""
        output = self.model.features(image_NCHW, db_mean, db_std)
        shallow = None
        if self.shallow_norm is not None:
            cells = output.feature_maps[self.shallow_index].movedim(1, -1)
            shallow = self.shallow_norm(cells).movedim(-1, 1)
        deep, cls = output.feature_maps[-1], None
        if output.tokens is not None:
            cls = output.tokens[:, 0]
            deep = output.tokens[:, 1:].unflatten(1, deep.shape[-2:]).movedim(-1, 1)
        vector = cls if cls is not None and self.image_vector == "cls" else deep.mean((2, 3))
        return Features(deep, shallow, vector, tuple(r for r in output.routing if r is not None))


def has_batch_norm(module: nn.Module) -> bool:
    """Whether what comes out of it, in training, for an image depends on the others of its pass."""
    return any(norm.training for norm in batch_norms(module))


def _shallow_index(model: CrossEarthSAR, wanted: int | None) -> int:
    shape = model.config.backbone
    number = len(shape.map_channels)
    if wanted is None:
        return len(shape.stem) + 1 if isinstance(shape, ViTConfig) else RESNET_STAGE
    if wanted >= number:
        raise InputError(
            "the backbone has no such feature map", got=f"contour_map {wanted}", expected=f"0 to {number - 1}"
        )
    return wanted
