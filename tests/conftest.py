"""Shared by all tests: one thread, a fixed seed, and `torch.empty` that is never zero by luck."""

from __future__ import annotations

import pytest
import torch

with torch.device("meta"):
    torch.empty(1)  # torch lists its constructors at first use of a device; that must not be the poisoned one


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_gpu_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the mark «gpu» runs on any machine as on one without: so do the processes it starts."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised floating memory holds NaN, so that reading a row nobody wrote shows."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        original = getattr(owner, name)

        def poisoned(*args: object, _original: object = original, **kwargs: object) -> torch.Tensor:
            tensor = _original(*args, **kwargs)  # type: ignore[operator]
            is_plain = tensor.device.type == "cpu" and tensor.is_floating_point()
            return tensor.fill_(float("nan")) if is_plain else tensor

        monkeypatch.setattr(owner, name, poisoned)
