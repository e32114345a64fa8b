"""A run over a class without test images: everything that shows accuracies says so."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.finished_pages import Page
from helpers.tiny_run import distill, smaller
from PIL import Image
from torch import nn

import ltdd
from ltdd.cli.main import main
from ltdd.config import DistillConfig
from ltdd.engine.storage.files import read_json
from ltdd.errors import UserError
from ltdd.results.card import write_card
from ltdd.results.pages.comparison import write_comparison
from ltdd.results.pages.report import write_report
from ltdd.results.tables import architecture_tables
from ltdd.results.terminal import accuracy_table
from ltdd.results.verify import verify
from ltdd.studies.ablate import Outcome
from ltdd.studies.ablate import page as ablation_page
from ltdd.studies.check_teacher import check_run
from ltdd.studies.switches import Variant

SENTENCE = (
    "1 of 3 classes have no test images and are not measured (2); all accuracies are of the other 2"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[DistillConfig, Path]:
    """A run on digits as strips of 8x12 pixels, of which class 2 is never tested."""
    root = tmp_path_factory.mktemp("unmeasured")
    config = smaller(root / "data")
    shutil.rmtree(root / "data/test/2")
    for path in (root / "data").rglob("*.png"):
        pixels = np.asarray(Image.open(path))
        Image.fromarray(np.concatenate([pixels, pixels[:4]])).save(path)
    config = dataclasses.replace(config, incomplete_classes="keep", fit="pad", image_size=8)
    distill(root / "run", config=config)
    return config, root / "run"


def test_the_default_refuses(place: tuple[DistillConfig, Path], tmp_path: Path) -> None:
    config = dataclasses.replace(place[0], incomplete_classes="fail")
    with pytest.raises(UserError, match=r"test images of every class, got none of '2'; --incomp"):
        distill(tmp_path / "run", config=config)
    assert list(tmp_path.iterdir()) == []


def test_results_have_null_and_means_over_the_others(place: tuple[DistillConfig, Path]) -> None:
    results = read_json(place[1] / "results.json")
    rows = [results["student"], results["teacher"], *results["baselines"].values()]
    assert len(rows) == 4
    for row in rows:
        first, second, third = row["per_class"]
        assert third is None
        assert row["accuracy"]["mean"] == pytest.approx((first + second) / 2)
        assert (row["head"]["mean"], row["medium"]["mean"]) == pytest.approx((first, second))
        assert row["tail"] is None
        assert row["few_shot"]["mean"] == pytest.approx(second)
    assert results["confusion"]["student"][2] == {}
    assert results["originals"]["fit"] == "pad"
    assert [found for found in verify(place[1]) if found.problem] == []


def test_every_page_and_table_says_so(place: tuple[DistillConfig, Path], tmp_path: Path) -> None:
    config, run = place
    results = read_json(run / "results.json")
    page = write_report(run).read_text()
    assert SENTENCE in Page(page).words
    assert "found 8x12, padded with black to a square" in Page(page).words
    assert "nan" not in Page(page).words.lower().split()
    for drawing in (run / "report").glob("*.svg"):
        assert "nan" not in drawing.read_text().lower()
    card = write_card(ltdd.load(run), tmp_path).read_text()
    assert SENTENCE in card.replace("\\", "")
    assert "found 8x12, padded with black to a square" in card
    assert accuracy_table(results).endswith(f"note: {SENTENCE}")
    tables = architecture_tables({"convnet3": results})
    assert tables.endswith(SENTENCE)
    assert "| 2     |      2 |        - |" in tables
    shutil.copytree(run, tmp_path / "again")
    compared = write_comparison([run, tmp_path / "again"], tmp_path / "both.html").read_text()
    assert Page(compared).words.count(SENTENCE) == 2
    assert "nan" not in Page(compared).words.lower().split()
    outcome = Outcome(Variant({}, config), results, 1.0, ())
    assert SENTENCE in ablation_page([outcome])
    assert "      - (no test images)" in check_run(run).table()


def test_other_students_are_measured_likewise(
    place: tuple[DistillConfig, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(place[1]), "--seeds", "1"]) == 0
    assert SENTENCE in capsys.readouterr().out
    test = (torch.arange(192, dtype=torch.uint8).view(3, 1, 8, 8), torch.tensor([0, 0, 1]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    report = ltdd.train_student(place[1], model, test=test, quiet=True).report
    assert report is not None
    assert report["per_class"][2] is None
