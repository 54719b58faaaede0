"""Which images of a domain are labelled: few, drawn by a seed, a smaller draw part of a larger one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from crossearth_sar.config import require
from crossearth_sar.errors import InputError

Labels = int | str
"""So many images, or a share of them: 8, "10%"."""

ATTEMPTS = 100
"""Orders that are drawn for one whose first images show more than one class."""


def image_counts(labels: Sequence[Labels], length: int) -> dict[str, int]:
    """What was asked for -> images of a domain of `length`; at least one for a share.

    Raises:
        InputError: for none, fewer than one image, or more than there are.
    """
    require(
        len(set(map(str, labels))) == len(labels) > 0, "labels", list(labels), "numbers of images, each once"
    )
    return {str(asked): _image_count(asked, length) for asked in labels}


def _image_count(asked: Labels, length: int) -> int:
    text = str(asked).strip()
    try:
        is_share = text.endswith("%")
        number = float(text[:-1]) if is_share else int(text)
    except ValueError as error:
        raise InputError("labels say no number of images", got=repr(asked), expected="8, or 10%") from error
    if is_share and not 0 < number <= 100:
        raise InputError("labels say no share of the images", got=text, expected="above 0%, at most 100%")
    count = max(1, round(length * number / 100)) if is_share else int(number)
    if not 1 <= count <= length:
        raise InputError("so many labelled images cannot be drawn", got=text, expected=f"1 to {length}")
    return count


def drawn_order(
    length: int, smallest: int, seed: int, classes_of: Callable[[int], frozenset[int]]
) -> list[int]:
    """All images in an order that the seed decides, of which the first n are the n labelled ones.

    Args:
        smallest: the fewest images that will be taken.
        classes_of: which classes an image's labels show.

    Raises:
        InputError: in no order tried do the first images show two classes: nothing can be learnt of them.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ATTEMPTS):
        order: list[int] = torch.randperm(length, generator=generator).tolist()
        if len(frozenset().union(*map(classes_of, order[:smallest]))) > 1:
            return order
    raise InputError(
        f"no {smallest} of {length} training images show two classes",
        got=f"{ATTEMPTS} draws of seed {seed}",
        expected="labels of at least two classes among the images drawn",
        fix="take more images (--labels), or look at the labels of the training domain",
    )
