"""The chooser of backends: auto takes what works, a name that does not work says why."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from crossearth_sar import backend
from crossearth_sar.errors import InputError


@pytest.mark.parametrize("resolve", [backend.resolve_moe_backend, backend.resolve_descriptor_backend])
def test_auto_takes_the_best_that_works_and_says_so_once(
    resolve: object, caplog: pytest.LogCaptureFixture
) -> None:
    backend.log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="crossearth_sar"):
        name = resolve("auto")  # type: ignore[operator]
        assert resolve("auto") == name  # type: ignore[operator]
    assert len(caplog.records) == 1
    assert f"backend: {name}" in caplog.text


def test_the_first_usable_status_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = [
        backend.BackendStatus("slow-start", False, "missing"),
        backend.BackendStatus("good", True, "there"),
        backend.BackendStatus("reference", True, "always"),
    ]
    monkeypatch.setattr(backend, "moe_backend_status", lambda *widths: statuses)
    assert backend.resolve_moe_backend("auto") == "good"
    assert backend.resolve_moe_backend("reference") == "reference"
    with pytest.raises(InputError, match="missing"):
        backend.resolve_moe_backend("slow-start")


def test_every_named_backend_has_a_status_with_a_reason() -> None:
    assert {status.name for status in backend.moe_backend_status()} == set(backend.MOE_BACKENDS)
    assert {status.name for status in backend.descriptor_backend_status()} == set(backend.DESCRIPTOR_BACKENDS)
    assert all(status.reason for status in backend.moe_backend_status())


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'triton'"):
        backend.resolve_moe_backend("tritn")


def test_the_report_names_packages_backends_and_reasons() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "crossearth_sar"], capture_output=True, text=True, check=True
    )
    for word in (
        "torch",
        "transformers",
        "deepspeed",
        "megablocks",
        "backend 'auto' is 'reference'",
        "triton",
    ):
        assert word in done.stdout
