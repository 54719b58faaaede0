"""The negatives: keys of earlier steps, the oldest overwritten first.

K keys, M new ones, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossearth_sar.errors import InputError


class KeyQueue:
    """K unit vectors, random directions at first; float32."""

    def __init__(self, dim: int, length: int) -> None:
        self.keys_KD = F.normalize(torch.randn(length, dim), dim=1)
        self.pointer = 0
        """Row that the next key overwrites."""

    @torch.no_grad()
    def push(self, keys_MD: Tensor) -> None:
        """Overwrites the M oldest.

        Raises:
            InputError: unless M divides K: else the ranks' shares of a batch would be overwritten unevenly.
        """
        length, number = len(self.keys_KD), len(keys_MD)
        if length % number:
            multiple = max(round(length / number), 1) * number
            raise InputError(
                "the queue does not hold a whole number of batches",
                got=f"queue_length {length}, {number} keys a step",
                expected=f"a multiple of {number}",
                fix=f"queue_length={multiple}",
            )
        self.keys_KD[self.pointer : self.pointer + number] = keys_MD.to(self.keys_KD)
        self.pointer = (self.pointer + number) % length
