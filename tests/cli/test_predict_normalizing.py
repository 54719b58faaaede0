"""A map depends on its image and its model, not on which other files are in the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_model import SMALL

from crossearth_sar import build_model, load_model, save_model
from crossearth_sar.cli.main import main
from crossearth_sar.data.files.readers import read_bands, read_image
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.scene import Scene, measure_scenes
from crossearth_sar.input_contract import InputContract, joined

OF_TRAINING = InputContract(domain="mine", values="db", bands=1, db_mean=(-11.0,), db_std=(4.0,))


def decibels(level: float, seed: int) -> np.ndarray:
    power = np.random.default_rng(seed).gamma(4, 0.25, (64, 70)) * np.linspace(0.2, 3, 70)
    return (10 * np.log10(power) + level).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of two levels, VV and VH, and a model without a contract."""
    monkeypatch.chdir(tmp_path)
    for number, level in enumerate((-10, -12)):
        np.save(f"s1-{number}-vv.npy", decibels(level, number))
        np.save(f"s1-{number}-vh.npy", decibels(level - 8, 10 + number))
    torch.manual_seed(4)
    save_model(build_model("crossearth_sar_tiny", 3, changes=SMALL), "plain")
    return tmp_path


def with_contract(contract: InputContract, folder: str = "model") -> None:
    model = load_model("plain")
    model.contract = contract
    save_model(model, folder)


def run(*arguments: str, output: str = "maps", model: str = "model", values: str | None = "db") -> int:
    kind = [] if values is None else ["--values", values]
    return main(
        ["predict", "--model", model, "--output", output, "--device", "cpu", *kind, "--images", *arguments]
    )


def record(output: str = "maps") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(output, "prediction.json").read_text())
    return found


def test_a_contract_is_kept_with_the_model(place: Path) -> None:
    with_contract(OF_TRAINING)
    assert load_model("model").contract == OF_TRAINING
    assert load_model("plain").contract is None
    config = json.loads((place / "model" / "config.json").read_text())
    for wrong in (
        {"bands": 0.5},
        {"db_mean": [1.0]},
        {"db_mean": [1.0], "db_std": [0.0]},
        ["db"],
        {"kind": 1},
    ):
        (place / "model" / "config.json").write_text(json.dumps({**config, "input": wrong}))
        with pytest.raises(InputError, match=r"«input» in .*config\.json describes no input"):
            load_model("model")


def test_parts_of_a_mixture_agree_or_say_nothing() -> None:
    other = InputContract(domain="b", values="db", bands=2, db_mean=(1.0, 2.0), db_std=(1.0, 1.0))
    assert joined([OF_TRAINING], "all") == InputContract(
        domain="all", values="db", bands=1, db_mean=(-11.0,), db_std=(4.0,)
    )
    assert joined([OF_TRAINING, other], "all") == InputContract(domain="all", values="db")


@pytest.mark.parametrize("model", ["plain", "model"])
def test_company_changes_no_map(model: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_contract(OF_TRAINING)
    assert run("s1-0-vv.npy", model=model, output="alone") == 0
    assert run(*(path.name for path in place.glob("s1-*.npy")), model=model, output="together") == 0
    assert np.array_equal(read_bands("alone/s1-0-vv.png"), read_bands("together/s1-0-vv.png"))
    said = "of training, on mine (--normalize model)" if model == "model" else "of each image by itself"
    assert said in capsys.readouterr().out
    kept = load_model(model)
    amplitude = torch.from_numpy(10 ** (decibels(-10, 0) / 20))[None, None]
    statistics = ([-11.0], [4.0]) if model == "model" else (None, None)
    assert np.array_equal(read_bands("alone/s1-0-vv.png")[0], kept.predict(amplitude, *statistics)[0].numpy())


def test_company_counts_where_that_is_asked_for(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_contract(OF_TRAINING)
    images = sorted(path.name for path in place.glob("s1-*.npy"))
    assert run(*images, "--normalize", "domain") == 0
    assert "several polarizations are normalised together" in caplog.text
    assert "--normalize domain --normalize-by vh vv" in caplog.text
    pooled = measure_scenes([Scene(read_image(image), "db") for image in images])
    assert record()["db_mean"] == pytest.approx(pooled[0].tolist())
    caplog.clear()
    assert run(*images, "--normalize", "domain", "--normalize-by", "vv", "vh", output="parts") == 0
    assert "polarizations" not in caplog.text
    for part in ("vv", "vh"):
        some = [Scene(read_image(image), "db") for image in images if part in image]
        mean, std = measure_scenes(some)
        assert record("parts")["db_mean"][part] == pytest.approx(mean.tolist())
        amplitude = torch.from_numpy(10 ** (some[0].raw.values / 20))[None]
        expected = load_model("model").predict(amplitude, mean, std)[0].numpy()
        assert np.array_equal(read_bands(f"parts/{some[0].raw.path.stem}.png")[0], expected)


def test_values_of_another_kind_do_not_get_the_statistics_of_training(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_contract(OF_TRAINING)
    np.save("linear.npy", 10 ** (decibels(-10, 0) / 10))
    assert run("linear.npy", values="intensity") == 0
    assert "trained on values of db, these are declared intensity" in caplog.text
    assert record()["normalize"] == "image"
    caplog.clear()
    assert run("s1-0-vv.npy", values=None, output="others") == 0
    assert "taken for db, as in training" in caplog.text
    assert record("others")["normalize"] == "model"


def test_an_image_far_from_the_training_domain_is_named(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_contract(OF_TRAINING)
    assert run("s1-0-vv.npy", output="near") == 0
    assert "training domain" not in caplog.text
    assert run("s1-1-vh.npy", output="far") == 0
    assert "s1-1-vh.npy has a mean of -19" in caplog.text
    assert "training domain -11.0 dB" in caplog.text


def test_other_bands_are_refused_or_those_of_training_taken(
    place: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("two.npy", np.stack([decibels(-10, 0), decibels(-18, 1)]))
    with_contract(InputContract(domain="mine", values="db", bands=1, band_indices=(1,)))
    assert run("two.npy") == 0
    assert "--bands 1 are taken" in caplog.text
    assert record()["bands"] == [1]
    with_contract(InputContract(domain="mine", values="db", bands=2, band_names=("VV", "VH")), "dual")
    assert run("s1-0-vv.npy", model="dual", output="none") == 2
    assert "expected: 2 (VV, VH)" in capsys.readouterr().err
    assert run("two.npy", model="dual", output="both") == 0
    assert run("two.npy", "--bands", "0", model="dual", output="none") == 2


def test_what_does_not_go_together_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("s1-0-vv.npy", "--normalize", "model", model="plain") == 2
    assert "keeps no dB statistics" in capsys.readouterr().err
    assert run("s1-0-vv.npy", "--normalize-by", "vv", model="plain") == 2
    assert "--normalize-by needs --normalize domain" in capsys.readouterr().err
    assert run("s1-0-vv.npy", "--normalize", "domain", "--normalize-by", "hh", model="plain") == 2
    assert "s1-0-vv.npy is of none of the parts" in capsys.readouterr().err


def test_scale_offset_and_clipping_reach_the_image(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = np.round(decibels(-10, 0) * 100).astype(np.int16)
    np.save("scaled.npy", stored)
    assert run("s1-0-vv.npy", model="plain") == 0
    assert run("scaled.npy", "--scale", "0.01", model="plain", output="scaled") == 0
    agree = read_bands("maps/s1-0-vv.png") == read_bands("scaled/scaled.png")
    assert agree.mean() > 0.98
    assert run("scaled.npy", model="plain", output="unscaled") == 1, "no decibels"
    power = 10 ** (decibels(-10, 0) / 10)
    power[:3] = -0.01 * np.random.default_rng(0).random((3, 70))
    np.save("power.npy", power)
    assert run("power.npy", values="intensity", model="plain", output="negative") == 1
    assert run("power.npy", "--clip-negative", values="intensity", model="plain", output="clipped") == 0
    holed = decibels(-10, 0)
    holed[:, :9] = -55
    np.save("holed.npy", holed)
    assert run("holed.npy", model="plain", output="holed") == 0
    assert "set --nodata -55" in caplog.text
