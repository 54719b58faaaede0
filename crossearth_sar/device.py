"""The device that a command was told to use, tried before any work is done."""

from __future__ import annotations

import torch

from crossearth_sar.errors import InputError


def checked_device(name: str) -> torch.device:
    """The device called `name`.

    Raises:
        InputError: torch knows no such device, or cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a CPU build of torch asserts that it is none
        raise InputError(
            f"device {name!r} cannot be used",
            got=str(error).partition("\n")[0],
            expected="cpu, or a device that torch sees: cuda, cuda:1",
            fix="give --device cpu; a GPU needs a CUDA build of torch, see python -m crossearth_sar",
        ) from error
    return device
