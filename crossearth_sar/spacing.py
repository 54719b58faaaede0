"""Where to look: windows that cover an image, and samples spread evenly over a set.

One place for both, so that training, evaluation and reports look at the same pixels and the same samples.
What this is not: a reader; it knows lengths and gives positions.
"""

from __future__ import annotations

from collections.abc import Iterator


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixels of windows of `crop` that cover `length`, the last shifted inward.

    `window_starts(10, 4, 4) == [0, 4, 6]`; one window, at 0, where the crop is as long or longer.
    """
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def sliding_windows(height: int, width: int, crop: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of windows of at most `crop` pixels that cover the image, row by row.

    The last of a row or column is shifted inward. Tiles side by side are `stride = crop`.
    """
    for top in window_starts(height, crop, stride):
        for left in window_starts(width, crop, stride):
            yield slice(top, min(top + crop, height)), slice(left, min(left + crop, width))


def evenly_spaced(length: int, count: int, *, ends: bool = False) -> list[int]:
    """`count` increasing indices into `length` samples, evenly spread; all where there are no more.

    By default the first of each of `count` equal parts: `evenly_spaced(10, 4) == [0, 2, 5, 7]`. With `ends`
    the first and the last sample are among them: `evenly_spaced(10, 4, ends=True) == [0, 3, 6, 9]`; so are
    chosen the samples that dB statistics are measured on.
    """
    count = min(count, length)
    if ends:
        return [round(i * (length - 1) / max(count - 1, 1)) for i in range(count)]
    return [i * length // count for i in range(count)]
