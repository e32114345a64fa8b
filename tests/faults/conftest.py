"""An undisturbed run to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny_run import Forked, distill


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run; do not change it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert Forked(lambda: distill(out)).wait() == 0
    return out
