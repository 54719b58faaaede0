"""What a domain says of its input to the model that trains on it, and statistics by parts of file names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossearth_sar.config import from_mapping
from crossearth_sar.data.domain import Domain, DomainConfig, open_domain
from crossearth_sar.data.domain_statistics import polarization_of
from crossearth_sar.errors import InputError

RNG = np.random.default_rng(0)
SIMULATED = {"length": 2, "image_size": 32}


def speckle(level: float) -> np.ndarray:
    return (10 * np.log10(RNG.gamma(4, 0.25, (40, 50))) + level).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product's four channels as files, and two-band images."""
    root = tmp_path_factory.mktemp("contract")
    for kind in ("one", "two"):
        (root / kind).mkdir()
    for number in (1, 2):
        for part, level in (("vv", -10), ("VH", -17)):
            np.save(root / "one" / f"s1a-{part}-{number}.npy", speckle(level))
        np.save(root / "two" / f"{number}.npy", np.stack([speckle(-10), speckle(-17)]))
    return root


def opened(root: Path, images: str = "one/*.npy", bands: list[int] | None = None, **settings: Any) -> Domain:
    folder = {
        "root": str(root),
        "images": images,
        "values": "db",
        "classes": ["land", "water"],
        "bands": bands,
    }
    return open_domain(from_mapping(DomainConfig, {"name": "x", "folder": folder, **settings}))


def test_a_folder_normalised_by_its_own_statistics_keeps_them(root: Path) -> None:
    domain = opened(root, "two/*.npy", [1])
    contract = domain.contract()
    assert (contract.domain, contract.values, contract.bands, contract.band_indices) == ("x", "db", 1, (1,))
    assert contract.db_mean is not None
    assert contract.db_mean == pytest.approx(domain[0]["db_mean"].tolist())
    assert contract.db_mean[0] == pytest.approx(-18, abs=1)
    assert contract.db_std == pytest.approx(domain[0]["db_std"].tolist())


def test_no_statistics_where_they_are_of_no_one_domain(root: Path) -> None:
    assert not opened(root, "two/*.npy", normalize="image").contract().has_statistics
    assert opened(root, "two/*.npy", normalize="image").contract().bands == 2
    assert not opened(root, normalize_by=["vv", "vh"]).contract().has_statistics
    simulated = open_domain(from_mapping(DomainConfig, {"name": "s", "simulated": SIMULATED}))
    assert not simulated.contract().has_statistics, "no sensor's levels are those of drawn scenes"
    folder = {"root": str(root), "images": "one/*.npy", "values": "db", "classes": ["land", "water"]}
    parts = [
        {"name": "a", "folder": {**folder, "names": ["vv"]}},
        {"name": "b", "folder": {**folder, "names": ["VH"]}},
    ]
    both = open_domain(from_mapping(DomainConfig, {"name": "both", "mixture": parts})).contract()
    assert (both.values, both.bands, both.has_statistics) == ("db", 1, False)
    one = open_domain(from_mapping(DomainConfig, {"name": "both", "mixture": parts[:1]})).contract()
    assert one.has_statistics


def test_polarizations_normalised_together_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened(root)
    assert "domain 'x': images of several polarizations are normalised together" in caplog.text
    assert "vh -17.5 dB, vv -10.6 dB" in caplog.text
    assert "normalize_by: [vh, vv]" in caplog.text


def test_each_part_has_its_own_statistics(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        domain = opened(root, normalize_by=["vv", "vh"])
    assert "polarizations" not in caplog.text
    levels = {
        sample["name"][4:6].lower(): float(sample["db_mean"]) for sample in map(domain.__getitem__, range(4))
    }
    for part in ("vv", "vh"):
        alone = opened(root, f"one/*{part if part == 'vv' else 'VH'}*.npy")
        assert levels[part] == pytest.approx(float(alone[0]["db_mean"]), abs=1e-5)
    assert levels["vv"] - levels["vh"] > 5


def test_parts_that_fit_no_name_or_no_folder_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"s1a-VH-1 is of none of the parts"):
        opened(root, normalize_by=["vv", "hh"])
    with pytest.raises(InputError, match="several of the parts"):
        opened(root, normalize_by=["s1a", "vv", "vh"])
    for settings in ({"normalize": "image"}, {"folder": None, "simulated": SIMULATED}):
        with pytest.raises(InputError, match="normalize_by"):
            opened(root, normalize_by=["vv"], **settings)


def test_polarizations_are_read_from_names() -> None:
    names = {
        "s1a-iw-grd-vv-x-001.tiff": "vv",
        "S1_VH_db.tif": "vh",
        "image hh2": "hh",
        "vv_vh.tif": None,
        "savvy.tif": None,
        "vv/a.tif": None,
    }
    assert {name: polarization_of(name) for name in names} == names
    assert polarization_of(Path("a/b-hv.tif")) == "hv"
