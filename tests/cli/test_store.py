"""``ltdd store``: what runs share is listed and pruned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ltdd.cli.main import main
from ltdd.engine.storage.files import fingerprint
from ltdd.engine.storage.stage_store import StageStore


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two results of experts, one of them only in the store, and one of recovery."""
    store = tmp_path / "store"
    for number, stage in enumerate(("experts", "experts", "recovery")):
        own = StageStore(tmp_path / f"run{number}", store)
        own.put(stage, fingerprint(number), {"x": torch.zeros(250)}, {})
        own.share(stage, fingerprint(number))
    StageStore(tmp_path / "run0").path("experts", fingerprint(0)).unlink()
    return store


def test_the_store_is_listed_and_pruned(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "--store", str(store)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines[1:4]] == [["experts", "2"], ["recovery", "1"], ["all", "3"]]
    assert main(["store", "--store", str(store), "--prune", "0"]) == 0
    assert capsys.readouterr().out.startswith("removed: 1 files")
    assert len(list(store.iterdir())) == 2
    old = next(store.glob("recovery-*"))
    os.utime(old, (0, 0))
    assert main(["store", f"--store={store}", "--unused-days", "30"]) == 0
    assert not old.exists()
    assert len(list(store.parent.rglob("recovery-*"))) == 1  # the run keeps its own


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "none"], "expected a store of stage results, got none"),
        (["--prune", "-1"], "expected --prune >= 0, got -1"),
        (["--unused-days", "-0.5"], "expected --unused-days >= 0, got -0.5"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], said: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["store", "--store", str(store), *words]) == 2
    assert said in capsys.readouterr().err
