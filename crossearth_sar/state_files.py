"""Files of named tensors from elsewhere: read without building an object, and held against what is wanted."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crossearth_sar.errors import InputError

LISTED_KEYS = 12
"""Keys named per kind of fault; the others are counted."""

INNER = ("state_dict", "model")
"""Under which of these a training checkpoint keeps its network, beside optimizer, epoch and settings."""

CHANNELS = 3
"""Of the network's input: fewer bands are repeated cyclically (network_input.py)."""


def read_state_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file, on the CPU; of a checkpoint, those of its network.

    No object in it is built, save that a checkpoint's settings may be an argparse.Namespace, as those of
    MAE's code are: a bare holder of names, which is not looked at.

    Raises:
        InputError: no such file, another kind, damaged, or something else than named tensors.
    """
    require_state_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"weights {path} cannot be read",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected="named tensors alone: files that would run code when read are refused",
            fix="fetch the file again; export tensors only with torch.save(model.state_dict(), …)",
        ) from error
    return _named_tensors(state, path)


def require_state_file(path: Path) -> None:
    """InputError unless a file of a kind that `read_state_file` reads is at `path`; does not open it."""
    if not path.is_file():
        raise InputError(
            f"no weights at {path}",
            got="nothing there" if not path.exists() else "no file",
            expected="a .pth or .safetensors file, or a folder with config.json and model.safetensors",
            fix="give the path of a file already downloaded; nothing is fetched here",
        )
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise InputError(
            f"weights {path} are of no kind read here",
            got=path.suffix or "no suffix",
            expected=".pth, .pt, .safetensors",
            fix="rename it, if it is one of these",
        )


def require_fit(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    what: str,
    *,
    may_lack: Callable[[str], bool] = lambda key: False,
    fix: str | None = None,
) -> None:
    """One InputError that lists every unknown, missing and misshaped key of `state`, if there is any.

    Args:
        expected: a state dict with the keys and shapes wanted; its values are not looked at.
        what: the weights, for the message.
        may_lack: keys that the model keeps as they are when absent.
    """
    faults = {
        "unknown": [key for key in state if key not in expected],
        "missing": [key for key in expected if key not in state and not may_lack(key)],
        "misshaped": [
            f"{key} {tuple(value.shape)} for {tuple(expected[key].shape)}"
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    found = [f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in faults.items() if keys]
    if found:
        raise InputError(f"{what} do not fit the model", got="; ".join(found), fix=fix)


def for_three_channels(kernel_DCyx: Tensor, what: str) -> Tensor:
    """A first kernel of 1 to 3 channels as one of 3, (D, 3, y, x): on bands repeated cyclically it computes
    what the given one does on the bands, each of its channels shared among the copies of a band.

    Raises:
        InputError: for more channels, of which nothing says which are the bands.
    """
    channels = kernel_DCyx.shape[1]
    if not 1 <= channels <= CHANNELS:
        raise InputError(
            f"{what} are for images of other bands",
            got=f"{channels} channels",
            expected=f"1 to {CHANNELS}",
            fix="take weights trained on SAR (one band, or VV and VH) or on RGB images",
        )
    source = [band % channels for band in range(CHANNELS)]
    copies = torch.tensor([source.count(band) for band in source]).to(kernel_DCyx)
    return kernel_DCyx[:, source] / copies[:, None, None]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - LISTED_KEYS} more" if len(names) > LISTED_KEYS else ""
    return ", ".join(names[:LISTED_KEYS]) + more


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _named_tensors(state: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(state, Mapping):
        state = next((state[key] for key in INNER if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping):
        raise InputError(f"weights {path} hold no named tensors", got=type(state).__name__)
    other = [
        f"{key!r} ({type(value).__name__})" for key, value in state.items() if not torch.is_tensor(value)
    ]
    if other:
        raise InputError(
            f"weights {path} hold more than named tensors",
            got=listed(other),
            expected=f"a state dict at the top level, or under {' or '.join(map(repr, INNER))}",
            fix="save the inner mapping of the backbone's tensors as a file of its own",
        )
    return {str(key): value for key, value in state.items()}
