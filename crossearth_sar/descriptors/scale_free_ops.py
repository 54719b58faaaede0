"""`scale_free_descriptors` and their map: the public door to the descriptors that no gain moves.

On a CPU csrc's form computes them. It has no CUDA half: images on a GPU are described there, in torch.

B batch, H W pixels, h w patches.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from crossearth_sar.backend import log_once, resolve_descriptor_backend
from crossearth_sar.descriptors.fused import image_batch, readable
from crossearth_sar.descriptors.ops import refuse_nonfinite, validated_image
from crossearth_sar.descriptors.scale_free import MIN_PATCH, reference_scale_free
from crossearth_sar.errors import InputError
from crossearth_sar.native import native_extension


@torch.no_grad()
def scale_free_descriptors(image: Tensor, *, backend: str = "auto", check_finite: bool = True) -> Tensor:
    """Four numbers of physics per image, the same at any gain, in the order of SCALE_FREE_DESCRIPTORS.

    direction_entropy: nats, 0 .. ln 8, of the directions of gradients above the speckle; ln 8 without any.
    looks: ln of the number of looks, the median over 8 x 8 blocks; at most ln 1000, 0 of an empty image.
    correlation: of the intensities of neighbouring pixels, -1 .. 1, the median over blocks.
    variation: standard deviation of ln block mean, nepers of intensity. METHOD sec. 1 has the formulas.

    Args:
        image: (B, 1, H, W) or (B, H, W), amplitude, real of any dtype or complex (its magnitude counts);
            H, W >= 3. Zeros are «nothing measured»: blocks without anything else do not count.
        backend: "auto" | "fused" (C++, CPU only) | "reference" (torch; images on a GPU take it).
        check_finite: refuse NaN and inf pixels; without it such an image has four NaN.

    Returns:
        (B, 4) float32 on the image's device, finite for every finite image; no gradient flows through it.

    Raises:
        InputError (a ValueError): for another shape, an image too small, or a NaN or inf pixel.
    """
    return _described(image, None, backend, check_finite)[0]


@torch.no_grad()
def scale_free_descriptor_map(
    image: Tensor, patch_size: int, *, backend: str = "auto", check_finite: bool = True
) -> Tensor:
    """The same four of every whole patch: (B, 4, H // patch_size, W // patch_size) float32.

    A patch's variation is that of its quarters; the noise floor of gradients is the image's; a patch where
    nothing was measured has the image's values.

    Args:
        image, backend, check_finite: as in `scale_free_descriptors`.
        patch_size: pixels, 4 or more, at most H and W.

    Raises:
        InputError: as `scale_free_descriptors`, and for a patch size that does not fit.
    """
    return _described(image, _checked_patch(patch_size), backend, check_finite)[1]


@torch.no_grad()
def scale_free_descriptors_and_map(
    image: Tensor, patch_size: int, *, backend: str = "auto", check_finite: bool = True
) -> tuple[Tensor, Tensor]:
    """`scale_free_descriptors` and `scale_free_descriptor_map` in one go."""
    return _described(image, _checked_patch(patch_size), backend, check_finite)


def _described(
    image: Tensor, patch_size: int | None, backend: str, check_finite: bool
) -> tuple[Tensor, Tensor]:
    image_BHW = validated_image(image)
    if patch_size is not None and patch_size > min(image_BHW.shape[1:]):
        _refuse_patch(patch_size, f"{MIN_PATCH} .. {min(image_BHW.shape[1:])}, the image's smaller side")
    if _backend(backend, image_BHW) == "fused":
        found = torch.ops.crossearth_sar.describe_scale_free(readable(image_BHW), patch_size or 0)
        image_B4, map_B4hw, nonfinite_B = found
        if check_finite and bool(nonfinite_B.any()):
            refuse_nonfinite(image_BHW)
        return image_B4, map_B4hw
    if check_finite:
        refuse_nonfinite(image_BHW)
    return reference_scale_free(image_BHW, patch_size)


def _backend(requested: str, image_BHW: Tensor) -> str:
    if requested == "auto" and torch.compiler.is_exporting():
        return "reference"  # plain torch: the program runs where this package is not
    chosen = resolve_descriptor_backend(requested)
    if chosen != "fused" or image_BHW.device.type == "cpu":
        return chosen
    reason = f"scale-free descriptors of images on {image_BHW.device.type}"
    if requested == "fused":
        raise InputError(
            "the fused descriptors do not take this",
            got=reason,
            expected="images on a CPU",
            fix="backend='auto' takes the reference here",
        )
    log_once(f"descriptor backend: reference for {reason}", logging.INFO)
    return "reference"


def _checked_patch(patch_size: int) -> int:
    if not isinstance(patch_size, int) or patch_size < MIN_PATCH:
        _refuse_patch(patch_size, f"an integer of at least {MIN_PATCH}")
    return patch_size


def _refuse_patch(patch_size: object, expected: str) -> None:
    raise InputError("patch_size does not fit", got=repr(patch_size), expected=expected)


@torch.library.custom_op("crossearth_sar::describe_scale_free", mutates_args=(), device_types="cpu")
def _describe(image_BHW: Tensor, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    image_B4, map_B4hw, nonfinite_B = _outputs(image_BHW, patch_size)
    native_extension().describe_scale_free_cpu(
        image_batch(image_BHW), patch_size, torch.get_num_threads(),
        image_B4.data_ptr(), map_B4hw.data_ptr(), nonfinite_B.data_ptr(),
    )  # fmt: skip
    return image_B4, map_B4hw, nonfinite_B


@_describe.register_fake
def _(image_BHW: Tensor, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(image_BHW, patch_size)


def _outputs(image_BHW: Tensor, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    images, height, width = image_BHW.shape
    rows, columns = (height // patch_size, width // patch_size) if patch_size else (0, 0)
    return (
        image_BHW.new_empty(images, 4, dtype=torch.float32),
        image_BHW.new_empty(images, 4, rows, columns, dtype=torch.float32),
        image_BHW.new_empty(images, dtype=torch.int64),
    )
