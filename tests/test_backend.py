"""The chooser of backends: auto takes what works, a name that does not work says why."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys

import pytest
import torch

from crossearth_sar import PhysicsGuidedMoE, backend, sar_descriptors
from crossearth_sar.cli.info import report
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


@pytest.mark.parametrize(
    ("capability", "dim", "best"),
    [((9, 0), 64, "grouped_mm"), ((10, 0), 384, "grouped_mm"), ((9, 0), 90, "reference"),
     ((8, 0), 64, "reference"), ((12, 0), 64, "reference")],
)  # fmt: skip
def test_auto_takes_grouped_mm_only_where_torch_has_a_grouped_gemm(
    capability: tuple[int, int], dim: int, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert backend.resolve_moe_backend("auto", dim, 4 * dim) == best
    if dim == 90:
        with pytest.raises(InputError, match="widths that 8 divides, not 90 and 360"):
            backend.resolve_moe_backend("grouped_mm", dim, 4 * dim)


@pytest.mark.parametrize(
    ("resolved", "device", "dtype", "expected"),
    [
        ("grouped_mm", "cuda", torch.bfloat16, "grouped_mm"),
        ("grouped_mm", "cuda", torch.float32, "reference"),
        ("grouped_mm", "cuda", torch.float16, "reference"),
        ("grouped_mm", "cpu", torch.bfloat16, "reference"),
        ("triton", "cuda", torch.float32, "triton"),
        ("triton", "cuda", torch.float64, "reference"),
        ("reference", "cuda", torch.float64, "reference"),
    ],
)
def test_auto_leaves_a_call_to_the_reference_where_the_best_is_not_made_for_it(
    resolved: str, device: str, dtype: torch.dtype, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend.log_once.cache_clear()
    for _ in range(2):
        assert backend.auto_moe_backend_for_call(resolved, device, dtype) == expected
    dropped = device == "cuda" and expected != resolved
    assert [record.levelname for record in caplog.records] == ["WARNING"] * dropped


@pytest.mark.parametrize("has_cuda", [True, False])
def test_the_report_tells_images_and_tokens_on_a_gpu_apart(
    has_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    status = backend.ExtensionStatus(True, "any words", has_cuda)
    monkeypatch.setattr(backend, "extension_status", lambda: status)
    told = report()
    assert "SAR descriptors, images on a CPU: backend 'auto' is 'fused'" in told
    assert "SAR descriptors, images on a GPU: backend 'auto' is 'reference'" in told
    assert "MoE layer, tokens on a GPU: backend 'auto' is 'grouped_mm' in bfloat16, else 'reference'" in told
    monkeypatch.setattr(backend, "FUSED_MEASURED_ON_GPU", True)
    best = "fused" if has_cuda else "reference"
    assert f"SAR descriptors, images on a GPU: backend 'auto' is {best!r}" in report()


def test_a_slower_form_than_asked_for_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    backend.log_once.cache_clear()
    if not backend.extension_status()[0]:
        pytest.skip(backend.extension_status()[1])
    for _ in range(2):
        sar_descriptors(torch.rand(1, 8, 8), num_bins=6)
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "descriptor backend: reference for num_bins 6: not divisible by 4, or above 252"
    ]


def test_the_report_names_packages_backends_and_reasons() -> None:
    best = next(status.name for status in backend.moe_backend_status() if status.usable)
    done = subprocess.run(
        [sys.executable, "-m", "crossearth_sar"], capture_output=True, text=True, check=True
    )
    for word in (
        "torch",
        "transformers",
        "deepspeed",
        "megablocks",
        f"backend 'auto' is {best!r}",
        "triton",
    ):
        assert word in done.stdout


def test_an_amd_gpu_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.3")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend.resolve_moe_backend("auto", 64, 256) == "reference"
    if importlib.util.find_spec("triton") is not None:
        with pytest.raises(InputError, match="AMD"):
            backend.resolve_moe_backend("triton", 64, 256)


def test_more_experts_than_the_kernels_route_among_are_refused_where_the_layer_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from crossearth_sar.kernels.routing import MAX_EXPERTS

    assert MAX_EXPERTS == backend.KERNEL_MAX_EXPERTS
    PhysicsGuidedMoE(16, 16, num_experts=64, backend="triton")
    with pytest.raises(InputError, match="at most 64 experts, not 65"):
        PhysicsGuidedMoE(16, 16, num_experts=65, backend="triton")
    PhysicsGuidedMoE(16, 16, num_experts=65)


def test_a_missing_extension_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    status = backend.ExtensionStatus(False, "it is not built", False)
    monkeypatch.setattr(backend, "extension_status", lambda: status)
    backend.log_once.cache_clear()
    for _ in range(2):
        sar_descriptors(torch.rand(1, 8, 8))
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        "descriptors by the slower reference form: it is not built"
    ]
    backend.log_once.cache_clear()
    sar_descriptors(torch.rand(1, 8, 8), backend="reference")
    assert not [r for r in caplog.records[1:] if r.levelname == "WARNING"], "as was asked for"
