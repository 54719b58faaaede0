"""No picture may leave matplotlib's settings changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from matplotlib import rcParams


@pytest.fixture(autouse=True)
def _nothing_global_changes() -> Iterator[None]:
    before = dict(rcParams)
    yield
    assert dict(rcParams) == before
