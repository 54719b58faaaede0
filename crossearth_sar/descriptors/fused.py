"""The fused form of the descriptors: csrc's one pass over the image, as a torch custom op.

The extension knows no torch; here tensors become pointers, sizes and strides. Importing this needs no
extension, computing does: backend.py says whether it is there.

B batch, H W pixels, h w patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossearth_sar.native import native_extension

PIXEL_TYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.uint8: 4,
    torch.uint16: 5,
    torch.int16: 6,
    torch.int32: 7,
    torch.complex64: 8,
}
"""Pixel types read as they are, under their numbers in csrc/descriptor_math.h; others are converted first."""

MAX_BINS = 252


def unsupported(image_BHW: Tensor, num_bins: int) -> str | None:
    """Why this form cannot describe such images, or None where it can; the reference can all."""
    kind = image_BHW.device.type
    if kind not in ("cpu", "cuda"):
        return f"images on {kind}"
    if kind == "cuda" and not native_extension().has_cuda:
        return "images on a GPU: the extension was built without CUDA (CROSSEARTH_BUILD=cuda needs nvcc)"
    if num_bins % 4 or num_bins > MAX_BINS:
        return f"num_bins {num_bins}: not divisible by 4, or above {MAX_BINS}"
    return None


def unsupported_map(image_BHW: Tensor, num_bins: int) -> str | None:
    """As `unsupported`, of the map: it has no CUDA form."""
    if image_BHW.device.type != "cpu":
        return f"a map of images on {image_BHW.device.type}: it has a CPU form only"
    return unsupported(image_BHW, num_bins)


def fused_descriptors(
    image_BHW: Tensor, *, num_bins: int, block_size: int, flat_pixels: str
) -> tuple[Tensor, Tensor]:
    """(B, 3) float32 descriptors and (B,) int64 numbers of NaN or inf pixels, found in the same pass.

    On a GPU asynchronous on the current stream, without synchronisation.
    """
    return _describe(readable(image_BHW), num_bins, block_size, flat_pixels == "include")


def fused_descriptor_map(
    image_BHW: Tensor, patch_size: int, *, num_bins: int, flat_pixels: str
) -> tuple[Tensor, Tensor]:
    """(B, 3, h, w) float32 descriptors of every whole patch and (B,) int64 numbers of NaN or inf pixels."""
    return _describe_map(readable(image_BHW), patch_size, num_bins, flat_pixels == "include")


@torch.library.custom_op("crossearth_sar::describe", mutates_args=(), device_types="cpu")
def _describe(image_BHW: Tensor, num_bins: int, block_size: int, include_flat: bool) -> tuple[Tensor, Tensor]:
    descriptors_B3, nonfinite_B = _outputs(image_BHW)
    extension = native_extension()
    options = extension.Options(num_bins, block_size, include_flat)
    extension.describe_cpu(
        image_batch(image_BHW), options, torch.get_num_threads(),
        descriptors_B3.data_ptr(), nonfinite_B.data_ptr(),
    )  # fmt: skip
    return descriptors_B3, nonfinite_B


@_describe.register_kernel("cuda")
def _(image_BHW: Tensor, num_bins: int, block_size: int, include_flat: bool) -> tuple[Tensor, Tensor]:
    descriptors_B3, nonfinite_B = _outputs(image_BHW)
    extension = native_extension()
    batch, options = image_batch(image_BHW), extension.Options(num_bins, block_size, include_flat)
    scratch = image_BHW.new_empty(extension.cuda_scratch_bytes(batch, options), dtype=torch.uint8)
    with torch.cuda.device(image_BHW.device):
        stream = torch.cuda.current_stream().cuda_stream
        extension.describe_cuda(
            batch, options, scratch.data_ptr(), stream, descriptors_B3.data_ptr(), nonfinite_B.data_ptr()
        )
    return descriptors_B3, nonfinite_B


@_describe.register_fake
def _(image_BHW: Tensor, num_bins: int, block_size: int, include_flat: bool) -> tuple[Tensor, Tensor]:
    return _outputs(image_BHW)


@torch.library.custom_op("crossearth_sar::describe_map", mutates_args=(), device_types="cpu")
def _describe_map(
    image_BHW: Tensor, patch_size: int, num_bins: int, include_flat: bool
) -> tuple[Tensor, Tensor]:
    map_B3hw, nonfinite_B = _map_outputs(image_BHW, patch_size)
    extension = native_extension()
    options = extension.MapOptions(num_bins, patch_size, include_flat)
    extension.describe_map_cpu(
        image_batch(image_BHW), options, torch.get_num_threads(),
        map_B3hw.data_ptr(), nonfinite_B.data_ptr(),
    )  # fmt: skip
    return map_B3hw, nonfinite_B


@_describe_map.register_fake
def _(image_BHW: Tensor, patch_size: int, num_bins: int, include_flat: bool) -> tuple[Tensor, Tensor]:
    return _map_outputs(image_BHW, patch_size)


def readable(image_BHW: Tensor) -> Tensor:
    """The image in a pixel type that csrc reads."""
    if image_BHW.dtype in PIXEL_TYPES:
        return image_BHW
    return image_BHW.abs() if image_BHW.is_complex() else image_BHW.double()


def _map_outputs(image_BHW: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    images, height, width = image_BHW.shape
    return (
        image_BHW.new_empty(images, 3, height // patch_size, width // patch_size, dtype=torch.float32),
        image_BHW.new_empty(images, dtype=torch.int64),
    )


def _outputs(image_BHW: Tensor) -> tuple[Tensor, Tensor]:
    images = image_BHW.shape[0]
    return (
        image_BHW.new_empty(images, 3, dtype=torch.float32),
        image_BHW.new_empty(images, dtype=torch.int64),
    )


def image_batch(image_BHW: Tensor) -> Any:
    """Pointer, type, sizes and strides, as csrc takes them."""
    kind = PIXEL_TYPES[image_BHW.dtype]
    return native_extension().ImageBatch(image_BHW.data_ptr(), kind, *image_BHW.shape, *image_BHW.stride())
