"""`sar_descriptors`: the public, validated door to the three SAR physical descriptors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from crossearth_sar.backend import FUSED_MEASURED_ON_GPU, log_once, resolve_descriptor_backend
from crossearth_sar.descriptors.fused import (
    MAX_BINS,
    fused_descriptor_map,
    fused_descriptors,
    unsupported,
    unsupported_map,
)
from crossearth_sar.descriptors.local import (
    BLOCKS_PER_SIDE,
    linear_number_of_looks_map,
    reference_descriptor_map,
)
from crossearth_sar.descriptors.reference import linear_number_of_looks, reference_descriptors
from crossearth_sar.errors import InputError

DESCRIPTOR_NAMES = ("directional entropy", "equivalent number of looks", "local roughness")
MIN_SIDE = 3
UNTRIED_ON_GPU = "images on a GPU: the CUDA half has run on none yet; backend='fused' asks for it"


class Options(TypedDict):
    num_bins: int
    block_size: int
    flat_pixels: str


@torch.no_grad()
def sar_descriptors(
    image: Tensor,
    *,
    num_bins: int = 36,
    block_size: int = 16,
    flat_pixels: str = "include",
    enl_domain: str = "log",
    backend: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """Three numbers of physics per image: [directional entropy (nats), ENL, local roughness].

    Low entropy means few dominant directions, high ENL weak speckle, high roughness varied texture.
    All are computed on X' = log(1 + |X|), of the image before any normalisation (METHOD eq. 1-7).

    Args:
        image: (B, 1, H, W) or (B, H, W), real of any dtype or complex (its magnitude counts); H, W >= 3.
        num_bins: direction bins N over [-pi, pi).
        block_size: side in pixels of the blocks whose means give the roughness.
        flat_pixels: "include" counts a pixel without gradient at angle 0, "exclude" leaves it out.
        enl_domain: "log" takes the ENL of X', as the router's descriptor is defined; "linear" that of |X| as
            it comes, in a pass of its own: of an intensity image it is the number of looks itself.
        backend: "auto" | "fused" (C++, one pass) | "reference" (torch).
        check_finite: refuse NaN and inf pixels; switch off where the data is known to be clean, to spare
            the pass and, on a GPU, the synchronisation.

    Returns:
        (B, 3) float32 on the image's device, finite for every finite image; no gradient flows through it.

    Raises:
        InputError (a ValueError): for another shape, an empty or too small image, a parameter out of
            range, or a NaN or inf pixel (with how many there are and where the first is).
    """
    image_BHW = _validated(image, num_bins, block_size, flat_pixels, enl_domain)
    chosen = _backend(backend, image_BHW, num_bins, unsupported)
    if chosen == "fused" and backend == "auto" and image_BHW.is_cuda and not FUSED_MEASURED_ON_GPU:
        log_once(f"descriptor backend: reference for {UNTRIED_ON_GPU}", logging.WARNING)
        chosen = "reference"
    if image_BHW.shape[0] == 0:
        return image_BHW.new_zeros(0, 3, dtype=torch.float32)
    options: Options = {"num_bins": num_bins, "block_size": block_size, "flat_pixels": flat_pixels}
    if chosen == "fused":
        descriptors_B3, nonfinite_B = fused_descriptors(image_BHW, **options)
        if check_finite and bool(nonfinite_B.any()):
            refuse_nonfinite(image_BHW)
    else:
        if check_finite:
            refuse_nonfinite(image_BHW)
        descriptors_B3 = reference_descriptors(image_BHW, **options)
    if enl_domain == "linear":
        descriptors_B3[:, 1] = linear_number_of_looks(image_BHW)
    return descriptors_B3


@torch.no_grad()
def sar_descriptor_map(
    image: Tensor,
    patch_size: int,
    *,
    num_bins: int = 36,
    flat_pixels: str = "include",
    enl_domain: str = "log",
    backend: str = "auto",
    check_finite: bool = True,
) -> Tensor:
    """The three descriptors of every whole patch: local physics on the token grid.

    Args:
        image: as in `sar_descriptors`; H and W of at least one patch.
        patch_size: pixels, a multiple of 4: a patch's roughness is that of 4 x 4 blocks in it.
        num_bins, flat_pixels, enl_domain, check_finite: as in `sar_descriptors`.
        backend: "auto" | "fused" (C++, one pass, CPU only) | "reference" (torch).

    Returns:
        (B, 3, H // patch_size, W // patch_size) float32. Gradients are those of the whole image; what is left
        over at the right and bottom is dropped.

    Raises:
        InputError: as `sar_descriptors`, and for a patch size that does not fit.
    """
    image_BHW = _validated(image, num_bins, 1, flat_pixels, enl_domain)
    side = min(image_BHW.shape[1:])
    if not isinstance(patch_size, int) or patch_size < 4 or patch_size % BLOCKS_PER_SIDE or patch_size > side:
        raise InputError(
            "patch_size does not fit",
            got=repr(patch_size),
            expected=f"a multiple of {BLOCKS_PER_SIDE}, at most the image's {side} pixels",
        )
    if _backend(backend, image_BHW, num_bins, unsupported_map) == "fused":
        map_B3hw, nonfinite_B = fused_descriptor_map(
            image_BHW, patch_size, num_bins=num_bins, flat_pixels=flat_pixels
        )
        if check_finite and bool(nonfinite_B.any()):
            refuse_nonfinite(image_BHW)
    else:
        if check_finite:
            refuse_nonfinite(image_BHW)
        map_B3hw = reference_descriptor_map(image_BHW, patch_size, num_bins=num_bins, flat_pixels=flat_pixels)
    if enl_domain == "linear":
        map_B3hw[:, 1] = linear_number_of_looks_map(image_BHW, patch_size)
    return map_B3hw


def _backend(
    requested: str, image_BHW: Tensor, num_bins: int, why_not: Callable[[Tensor, int], str | None]
) -> str:
    if requested == "auto" and torch.compiler.is_exporting():
        return "reference"  # plain torch: the program runs where this package is not
    chosen = resolve_descriptor_backend(requested)
    reason = why_not(image_BHW, num_bins) if chosen == "fused" else None
    if reason is None:
        return chosen
    if requested == "fused":
        raise InputError(
            "the fused descriptors do not take this",
            got=reason,
            expected=f"images on a CPU or a GPU, num_bins divisible by 4 and at most {MAX_BINS}",
            fix="backend='auto' takes the reference here",
        )
    log_once(f"descriptor backend: reference for {reason}", logging.WARNING)
    return "reference"


def _validated(image: Tensor, num_bins: int, block_size: int, flat_pixels: str, enl_domain: str) -> Tensor:
    image_BHW = validated_image(image)
    for name, value in (("num_bins", num_bins), ("block_size", block_size)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name} does not fit", got=repr(value), expected="an integer >= 1")
    if flat_pixels not in ("include", "exclude"):
        raise InputError(
            "flat_pixels has no such choice", got=repr(flat_pixels), expected="'include' or 'exclude'"
        )
    if enl_domain not in ("log", "linear"):
        raise InputError("enl_domain has no such choice", got=repr(enl_domain), expected="'log' or 'linear'")
    return image_BHW


def validated_image(image: Tensor) -> Tensor:
    """The image as (B, H, W); an InputError unless it is one band of at least 3 x 3 pixels."""
    if not isinstance(image, Tensor):
        raise InputError(
            "sar_descriptors reads a torch tensor",
            got=type(image).__name__,
            expected="(B, 1, H, W) or (B, H, W)",
            fix="torch.as_tensor(image)",
        )
    shape = tuple(image.shape)
    if image.ndim == 4 and shape[1] == 1:
        image = image[:, 0]
    elif image.ndim != 3:
        raise InputError(
            "sar_descriptors reads one band per image",
            got=f"shape {shape}",
            expected="(B, 1, H, W) or (B, H, W)",
            fix="add a batch axis with image[None], or choose one band with image[:, :1]",
        )
    if min(image.shape[1:]) < MIN_SIDE:
        raise InputError(
            "image too small for a 3x3 gradient",
            got=f"shape {shape}",
            expected=f"H and W of at least {MIN_SIDE}",
        )
    return image


def refuse_nonfinite(image_BHW: Tensor) -> None:
    """Raises an InputError that counts NaN and inf pixels and says where the first is."""
    if not (image_BHW.is_floating_point() or image_BHW.is_complex()):
        return
    bad = ~torch.isfinite(image_BHW)
    count = int(bad.sum())
    if count:
        b, y, x = bad.nonzero()[0].tolist()
        raise InputError(
            "image holds pixels that are NaN or inf",
            got=f"{count} of {bad.numel()}, the first at image {b}, row {y}, column {x}",
            expected="finite pixels",
            fix="put measured amplitudes there (data.fill.fill_unmeasured): zeros would be edges. "
            "check_finite=False skips this check",
        )
