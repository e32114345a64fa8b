"""An undisturbed run to compare with."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from faults.tiny_run import Forked, distill


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run; do not change it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert Forked(lambda: distill(out)).wait() == 0
    return out


@pytest.fixture(scope="session")
def run_seconds(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed run takes in a process that has everything imported."""
    start = time.monotonic()
    out = tmp_path_factory.mktemp("timed") / "run"
    assert Forked(lambda: distill(out)).wait() == 0
    return time.monotonic() - start
