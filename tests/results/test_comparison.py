"""The page about several runs: what differs, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.finished_pages import Page, finished_run

from ltdd.cli.main import main
from ltdd.config import RecoveryConfig
from ltdd.engine.storage.files import read_json, write_json
from ltdd.errors import UserError
from ltdd.results.distilled_set import record_files
from ltdd.results.pages.comparison import write_comparison


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    first = finished_run(root / "plain")
    second = finished_run(root / "longer", recovery=RecoveryConfig(iterations=77), seed=5)
    results = read_json(second / "results.json")
    results["student"]["accuracy"]["mean"] = 0.987
    del results["baselines"]["full_long_tailed"]
    write_json(second / "results.json", results)
    record_files(second, ["results.json"])
    return [first, second]


def test_the_page_shows_what_differs(runs: list[Path], tmp_path: Path) -> None:
    page_file = tmp_path / "pages" / "both.html"
    assert main(["compare", *map(str, runs), "--to", str(page_file)]) == 0
    text = page_file.read_text()
    page = Page(text)
    assert page.open == []
    assert len(text) < 5_000_000
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object"})
    assert "http" not in text
    settings = page.words.split("setting plain longer ")[1].split("All other settings")[0]
    iterations = read_json(runs[0] / "manifest.json")["config"]["recovery"]["iterations"]
    assert settings == f"seed 0 5 recovery.iterations {iterations} 77 "
    assert "The best student, of longer, classifies 98.7 ±" in page.words
    rows = page.words.split("run overall head medium tail ")[1]
    for run, name in zip(runs, ("plain", "longer"), strict=True):
        student = read_json(run / "results.json")["student"]
        scores = [student[group] for group in ("accuracy", "head", "medium", "tail")]
        row = [f"{100 * score['mean']:.1f} ± {100 * score['std']:.1f}" for score in scores]
        assert f"{name} {' '.join(row)} " in rows
        assert str(run) in page.words
    # a picture of each run for each class
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert alts[:2] == [f"{n} images of class 0, 10 in a row" for n in ("plain", "longer")]
    assert len(alts) == 20
    assert "1 min 54 s" in page.words


def test_runs_over_other_classes_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", tuple("abcdefghij"))
    with pytest.raises(UserError, match=r"10 classes from '0' to '9' .* 10 from 'a' to 'j' in"):
        write_comparison([runs[0], other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("picked", "message"),
    [([0], "expected 2 to 8 runs, got 1"), ([0, 1] * 5, "got 10"), ([0, 0], "twice")],
)
def test_too_few_too_many_or_the_same(
    picked: list[int], message: str, runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_comparison([runs[i] for i in picked], tmp_path / "page.html")


def test_an_unfinished_run_is_named(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"distilled set in .*empty"):
        write_comparison([runs[0], tmp_path / "empty"], tmp_path / "page.html")


def test_runs_of_one_name_are_told_apart_by_their_path(runs: list[Path], tmp_path: Path) -> None:
    twin = finished_run(tmp_path / "plain", seed=1)
    page = Page(write_comparison([runs[0], twin], tmp_path / "page.html").read_text())
    assert f"run overall head medium tail {runs[0]}" in page.words
