"""What a model was trained on, kept in its folder: kind of values, bands, dB statistics of its domain.

The statistics are there where one domain of measured images was normalised by its own; images that are of it
can then be mapped one by one, whatever else is in the command. What this is not: the ground spacing and the
number of bands that a model insists on, which are its config's (`pixel_m`, `bands`).

C bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossearth_sar.config import from_mapping, require
from crossearth_sar.errors import InputError

MAX_DB = 1000.0
"""float32 ends at 770 dB."""


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """The input of a model; None where nothing is known or parts of a mixture differ."""

    domain: str | None = None
    """What the training domain was called."""
    values: str | None = None
    """What the numbers of its files were: amplitude, intensity, db or complex."""
    bands: int | None = None
    """C, of its samples."""
    band_indices: tuple[int, ...] | None = None
    """Which bands of its files these are, where some were chosen."""
    band_names: tuple[str, ...] | None = None
    """Their polarizations, of a published dataset."""
    db_mean: tuple[float, ...] | None = None
    """(C,) mean of 20 log10 amplitude over the domain, at the model's ground spacing."""
    db_std: tuple[float, ...] | None = None
    """(C,) its standard deviation."""

    def __post_init__(self) -> None:
        require((self.db_mean is None) == (self.db_std is None), "db_mean, db_std", self.db_mean, "a pair")
        if self.db_mean is not None and self.db_std is not None:
            fits = len(self.db_mean) == len(self.db_std) == (self.bands or len(self.db_mean))
            require(fits, "db_mean", self.db_mean, "a number for each band")
            known = all(-MAX_DB <= mean <= MAX_DB for mean in self.db_mean)
            require(known, "db_mean", self.db_mean, f"decibels from {-MAX_DB:g} to {MAX_DB:g}")
            require(
                all(0 < std <= MAX_DB for std in self.db_std),
                "db_std",
                self.db_std,
                f"above 0, to {MAX_DB:g}",
            )

    @property
    def has_statistics(self) -> bool:
        return self.db_mean is not None


def joined(contracts: Sequence[InputContract], domain: str) -> InputContract:
    """Of a mixture: what all parts agree on; statistics of a single one."""
    first, *others = contracts
    if not others:
        return replace(first, domain=domain)
    same = {
        key: getattr(first, key) if all(getattr(c, key) == getattr(first, key) for c in others) else None
        for key in ("values", "bands", "band_indices", "band_names")
    }
    return InputContract(domain=domain, **same)


def checked_contract(value: Any, where: Path) -> InputContract | None:
    """What a model folder says under «input»; None where it says nothing, as older ones.

    Raises:
        InputError: it is no contract.
    """
    if value is None:
        return None
    try:
        return from_mapping(InputContract, value)
    except (InputError, TypeError, AttributeError) as error:
        raise InputError(
            f"«input» in {where} describes no input",
            got=str(error),
            expected="domain, values, bands, db_mean, db_std of the training domain",
            fix="remove it: images are then taken as they are declared",
        ) from error
