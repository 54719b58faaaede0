"""The model that the tests of `predict` share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from saved_model import SMALL

from crossearth_sar import build_model, save_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of three classes, as initialised; not to be written into."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("predict") / "model"
    model = build_model("crossearth_sar_tiny", 3, changes=SMALL)
    model.name_classes(["sea", "land", "ice"], [(0, 0, 200), (90, 60, 0), (255, 255, 255)])
    save_model(model, folder)
    return folder
