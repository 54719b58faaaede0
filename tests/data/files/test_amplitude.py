"""Every kind of value as linear amplitude, and every complaint by its words."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import DTYPES, of_dtype

from crossearth_sar.data.files.amplitude import to_amplitude
from crossearth_sar.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_amplitude_of_every_dtype(dtype: str) -> None:
    values = of_dtype(dtype)
    wide = values.astype(np.complex128)
    if np.iscomplexobj(values):
        expected = {"complex": np.abs(wide)}
    else:
        expected = {
            "amplitude": wide.real,
            "intensity": np.sqrt(wide.real),
            "db": 10 ** (np.minimum(wide.real, 60) / 20),
        }
    for kind, wanted in expected.items():
        given = np.minimum(values, values.dtype.type(60)) if kind == "db" else values
        amplitude = to_amplitude(given, kind)  # type: ignore[arg-type]
        assert amplitude.dtype == np.float32
        np.testing.assert_allclose(amplitude, wanted, rtol=2e-6)


def test_decibels_are_of_power() -> None:
    amplitude = to_amplitude(np.array([[[-20.0, 0.0, 6.0206]]]), "db")
    np.testing.assert_allclose(amplitude, [[[0.1, 1.0, 2.0]]], rtol=1e-6)


def test_invalid_pixels_become_zero_in_all_bands() -> None:
    values = np.full((2, 2, 3), -10.0)
    values[0, 0, 0], values[1, 1, 2] = np.nan, -9999
    valid = np.isfinite(values).all(0) & (values != -9999).all(0)
    amplitude = to_amplitude(values, "db", valid=valid)
    assert (amplitude[:, 0, 0] == 0).all()
    assert (amplitude[:, 1, 2] == 0).all()
    assert np.count_nonzero(amplitude) == 8
    assert to_amplitude(np.array([[[np.nan, 1.0]]]), "amplitude").tolist() == [[[0.0, 1.0]]]


def test_complex_and_its_declaration_go_together() -> None:
    values = np.ones((1, 2, 2), np.complex64)
    for kind in ("amplitude", "intensity", "db"):
        with pytest.raises(InputError, match=rf"(?s)scene\.tif is complex .*{kind}.*declare values: complex"):
            to_amplitude(values, kind, name="scene.tif")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"(?s)is real but .*'complex'.*declare values: amplitude"):
        to_amplitude(values.real, "complex")


def test_negative_amplitudes_name_file_count_and_remedy() -> None:
    decibels = RNG.normal(-12, 4, (1, 20, 31))
    with pytest.raises(InputError, match=r"(?s)a\.tif has negative values.*of 620 values.*values: db"):
        to_amplitude(decibels, "amplitude", name="a.tif")
    filled = np.abs(decibels)
    filled[0, :2] = -9999
    with pytest.raises(InputError, match=r"(?s)62 of 620.*set nodata: -9999"):
        to_amplitude(filled, "intensity")
    noisy = np.abs(decibels)
    noisy[0, 0, :3] = -0.1, -0.2, -0.3
    with pytest.raises(InputError, match=r"(?s)3 of 620 values, from -0.3 to -0.1.*noise subtraction"):
        to_amplitude(noisy, "intensity")


def test_decibels_that_are_none() -> None:
    with pytest.raises(InputError, match=r"(?s)no decibels.*declare values: intensity"):
        to_amplitude(RNG.uniform(0, 4000, (1, 20, 31)), "db")
    filled = np.full((1, 4, 4), -10.0)
    filled[0, 0, 0] = -9999
    with pytest.raises(InputError, match=r"(?s)1 of 16.*set nodata: -9999"):
        to_amplitude(filled, "db")


def test_what_float32_cannot_hold() -> None:
    with pytest.raises(InputError, match=r"(?s)float32 cannot hold.*1e\+300"):
        to_amplitude(np.full((1, 2, 2), 1e300), "amplitude")


@pytest.mark.parametrize("wrong", [-99.0, -60.5, 60.5, 255.0])
def test_decibels_no_sensor_measures(wrong: float) -> None:
    decibels = RNG.normal(-12, 4, (1, 20, 31))
    to_amplitude(decibels, "db")
    decibels[0, 3, 4] = wrong
    with pytest.raises(
        InputError, match=rf"(?s)a\.tif has values that are no decibels.*set nodata: {wrong:g}"
    ):
        to_amplitude(decibels, "db", name="a.tif")


def test_a_number_to_set_for_nodata_is_exact() -> None:
    lowest = np.finfo(np.float32).min
    values = np.full((1, 4, 4), -10, np.float32)
    values[0, 0] = lowest
    with pytest.raises(InputError) as caught:
        to_amplitude(values, "db")
    assert np.float32(str(caught.value).rsplit("nodata: ", 1)[1]) == lowest


def test_linear_values_declared_db_are_refused() -> None:
    power = RNG.gamma(4, 0.04, (1, 20, 31))
    power[0, 0, :3] = 7.0, 30.0, 55.0  # bright targets
    with pytest.raises(InputError, match=r"(?s)a\.tif is declared dB, but .*linear.*values: intensity"):
        to_amplitude(power, "db", name="a.tif")
    with pytest.raises(InputError, match="look linear"):
        to_amplitude(power - 0.1, "db")  # noise was subtracted
    to_amplitude(RNG.normal(-12, 4, (1, 20, 31)), "db")
    to_amplitude(RNG.normal(30, 4, (1, 20, 31)), "db")  # of numbers that were never calibrated
    to_amplitude(np.zeros((1, 20, 31)), "db")  # a margin, read by itself


def test_what_noise_subtraction_leaves_is_clipped_where_that_is_asked_for() -> None:
    power = np.array([[[0.04, -0.01, 0.09, -0.002, 0.16]]])
    with pytest.raises(InputError, match=r"clip_negative: true"):
        to_amplitude(power, "intensity")
    np.testing.assert_allclose(
        to_amplitude(power, "intensity", clip_negative=True), [[[0.2, 0, 0.3, 0, 0.4]]]
    )
    np.testing.assert_allclose(
        to_amplitude(power, "amplitude", clip_negative=True), [[[0.04, 0, 0.09, 0, 0.16]]]
    )
    np.testing.assert_allclose(
        to_amplitude(np.array([[[-20.0]]]), "db", clip_negative=True), [[[0.1]]], rtol=1e-6
    )


def test_real_and_imaginary_parts_as_two_bands_are_named() -> None:
    with pytest.raises(InputError, match=r"(?s)real and the imaginary part"):
        to_amplitude(RNG.integers(-300, 300, (2, 20, 31)), "amplitude")
