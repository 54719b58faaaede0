"""The report of fine-tuning on real images: AIRSAR channels of known scatterers, rows from a run's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from bench.experiments import finetune_real  # bench/ is on the path, see pyproject.toml

SIZE = (6, 8)


def coherency(hh: float, vv: float, hv: float) -> dict[str, np.ndarray]:
    """T3 of one scatterer with these real amplitudes: k = (HH + VV, HH - VV, 2 HV) / sqrt 2, T = k k^T."""
    pauli = np.array([hh + vv, hh - vv, 2 * hv]) / np.sqrt(2)
    t11, t22, t33 = pauli**2
    correlation = np.sign(pauli[0] * pauli[1])
    values = {"T11": t11, "T22": t22, "T33": t33, "rho12_re": correlation}
    return {name: np.full(SIZE, value, np.float32) for name, value in values.items()}


def test_channels_of_known_scatterers(tmp_path: Path) -> None:
    label = np.arange(8, dtype=np.uint8)[None].repeat(6, 0)
    Image.fromarray(label).save(tmp_path / "label_common4.png")
    for hh, vv, hv in ((1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.5, -1.5, 0.25), (1.0, 1.0, 3.0)):
        np.savez(tmp_path / "t3.npz", **coherency(hh, vv, hv))  # type: ignore[arg-type]
        finetune_real.write_airsar(tmp_path, tmp_path / "airsar")
        for name, amplitude in (("HH", hh), ("VV", vv), ("HV", hv)):
            got = np.load(tmp_path / "airsar" / f"{name}.npy")
            np.testing.assert_allclose(got, np.full(SIZE, abs(amplitude)), atol=1e-3)
    labels = {
        name: np.asarray(Image.open(tmp_path / "airsar" / f"label_{name}.png"))
        for name in ("all", "left", "right")
    }
    assert np.array_equal(labels["all"], label)
    assert labels["left"][0].tolist() == [0, 1, 2, 3, 255, 255, 255, 255]
    assert labels["right"][0].tolist() == [255, 255, 255, 255, 4, 5, 6, 7]


def test_rows_of_a_finished_run(tmp_path: Path) -> None:
    scores = {"miou": 0.5, "iou": {"other": 0.75, "water": 0.25}}
    domains = {
        "sentinel1-VV-other-regions": {"model": scores, "majority": {"miou": 0.4}, "otsu": {"miou": 0.3}},
        "elsewhere": {
            "model": {"miou": 0.1, "iou": {"other": 0.1, "water": None}},
            "majority": {"miou": 0.2},
        },
    }
    (tmp_path / "metrics.json").write_text(json.dumps({"domains": domains, "steps": 7}), encoding="utf-8")
    (tmp_path / "parameters.txt").write_text("frozen: 1,234 of 5,678 parameters train", encoding="utf-8")
    (tmp_path / "cpu_seconds.txt").write_text("13\n", encoding="utf-8")
    first, second = finetune_real.table_rows("water", "frozen", 3, tmp_path)
    assert (first["gap"], first["mIoU"], first["majority"], first["Otsu"]) == (
        "held out",
        "50.0",
        "40.0",
        "30.0",
    )
    assert first["random forest"] == finetune_real.FOREST["sentinel1-VV-other-regions"]
    assert (second["gap"], second["Otsu"], second["random forest"]) == ("unseen", "", "")
    assert second["IoU per class"] == "other 10.0; water –"
    assert (first["trained parameters"], first["steps"], first["CPU seconds"]) == ("1,234", 7, "13")
