"""Commands that are compositions of runs, on several processes: the figures and bytes of one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.ranks import stage_hashes, with_ranks

from ltdd.cli.commands import reproduce as reproduce_command
from ltdd.cli.main import main
from ltdd.engine.storage.files import read_json
from ltdd.studies.published_tables import DataSet, Row

TINY = ["--experts.epochs", "1", "--evaluation.epochs", "2", "--evaluation.seeds", "2", "--quiet"]
SHORT = [*TINY, "--recovery.iterations", "2"]
DIGITS = ["--data", "digits", "--imbalance-factor", "50", "--ipc", "2", "--preset", "demo"]
ROW = Row(
    "digits", "test", DataSet("digits", "digits", "digits", 10, 8, "convnet3", {50: 364}),
    50, 2, "convnet3", published=100.0,
)  # fmt: skip
WORLD = 2


def on_ranks(words: Sequence[str], folder: Path, statuses: Sequence[int] = (0,) * WORLD) -> str:
    """Run a command on two ranks; return what the first one printed. The other prints nothing."""
    said = [folder / f"said{rank}" for rank in range(WORLD)]

    def work(rank: int) -> None:
        with said[rank].open("w") as file, contextlib.redirect_stdout(file):
            assert main(words) == statuses[rank]

    with_ranks(WORLD, work)
    assert said[1].read_text() == ""
    return said[0].read_text()


def given_experts(one: Path, several: Path) -> None:
    """Put the experts of a store into another: those of several ranks would differ by rounding."""
    several.mkdir(parents=True)
    for file in one.glob("experts-*.safetensors"):
        shutil.copy(file, several)


def figures(found: Any) -> Any:
    """Return JSON content without what measures or names the process."""
    if isinstance(found, list):
        return [figures(entry) for entry in found]
    if not isinstance(found, dict):
        return found
    left_out = ("provenance", "stages", "seconds", "peak_bytes", "files", "reused")
    return {name: figures(value) for name, value in found.items() if name not in left_out}


def test_evaluate(run: Path, tmp_path: Path) -> None:
    words = ["--arch", "convnet3,convnet1", "--seeds", "2", "--ars", "--store", "none", "--quiet"]
    one, several = (shutil.copytree(run, tmp_path / name) for name in ("one", "several"))
    assert main(["evaluate", str(one), *words]) == 0
    said = on_ranks(["evaluate", str(several), *words], tmp_path)
    assert said.strip() == str(several / "report.html")
    assert stage_hashes(several) == stage_hashes(one)
    files = [sorted(folder.glob("evaluations/*.json")) for folder in (several, one)]
    assert len(files[1]) == 2
    for found, wanted in zip(*files, strict=True):
        assert found.name == wanted.name
        assert figures(read_json(found)) == figures(read_json(wanted))


def test_systems(tmp_path: Path) -> None:
    words = ["systems", *DIGITS, *TINY, "--recipes", "random,k_center"]
    one, several = tmp_path / "one", tmp_path / "several"
    assert main([*words, "--out", str(one)]) == 0
    given_experts(one / "stages", several / "stages")
    assert on_ranks([*words, "--out", str(several)], tmp_path).strip().endswith("systems.html")
    assert figures(read_json(several / "systems.json")) == figures(read_json(one / "systems.json"))
    for recipe in ("random", "k_center"):
        assert stage_hashes(several / recipe) == stage_hashes(one / recipe)


def test_ablate(tmp_path: Path) -> None:
    words = ["ablate", *DIGITS, *SHORT, "--switch", "recovery=off"]
    one, several = tmp_path / "one", tmp_path / "several"
    assert main([*words, "--out", str(one)]) == 0
    given_experts(one / "stages", several / "stages")
    assert on_ranks([*words, "--out", str(several)], tmp_path).strip().endswith("ablation.md")
    found, wanted = (read_json(folder / "ablation.json") for folder in (several, one))
    assert len(found["variants"]) == 2
    assert figures(found) == figures(wanted)


def test_reproduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank alone says by its exit status that the figure is not reached."""
    monkeypatch.setitem(reproduce_command.ROWS, ROW.name, ROW)
    words = ["reproduce", ROW.name, "--preset", "demo", *SHORT]
    words += ["--evaluation.baselines", "[random_real]"]  # a network on all images is an expert
    one, several = tmp_path / "one", tmp_path / "several"
    assert main([*words, "--out", str(one)]) == 1
    given_experts(one / "stages", several / "stages")
    said = on_ranks([*words, "--out", str(several)], tmp_path, statuses=(1, 0))
    assert "outside" in said
    found, wanted = (stage_hashes(folder / ROW.name) for folder in (several, one))
    assert found == wanted
