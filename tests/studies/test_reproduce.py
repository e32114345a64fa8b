"""Rows of published tables: their figures, their settings, the verdict and the record."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from helpers.refusal import command_refused

from ltdd.cli.commands.reproduce import request_of
from ltdd.cli.main import main
from ltdd.data.splitting.long_tail import exponential_counts
from ltdd.engine.storage.files import read_json
from ltdd.engine.watching.events import read_events
from ltdd.errors import UserError
from ltdd.models import ARCHITECTURES
from ltdd.studies.published_tables import CIFAR10, CIFAR100, ROWS, TINY, DataSet, Row
from ltdd.studies.reproduce import COLUMNS, Outcome, record

DIGITS = Row(
    "digits-if50-ipc2",
    "test",
    DataSet("digits", "digits", "digits", 10, 8, "convnet3", {50: 364}),
    50,
    2,
    "convnet3",
    published=9.0,
)
FAST = [
    "--preset", "demo", "--experts.epochs", "1", "--recovery.iterations", "1", "--quiet",
    "--evaluation.epochs", "1", "--evaluation.seeds", "2", "--evaluation.baselines",
    "[random_real]",
]  # fmt: skip


def outcome(accuracy: float, tolerance: float = 2.0) -> Outcome:
    """A finished row whose published figure is 9.0, without running it."""
    score = {"mean": accuracy / 100, "std": 0.004, "n": 2}
    scores = {"accuracy": score, "head": score, "medium": score, "tail": None}
    results: dict[str, Any] = {
        "student": scores,
        "teacher": scores,
        "baselines": {},
        "provenance": {
            "seconds": 12.3, "machine": "a | b", "threads": 2, "torch": "2.15.0", "commit": None,
            "preset": None, "date": "2026-11-23T12:00:00+00:00",
        },
    }  # fmt: skip
    return Outcome(dataclasses.replace(DIGITS, tolerance=tolerance), results)


def test_rows_have_the_splits_of_the_field() -> None:
    for data, largest in ((CIFAR10, 5000), (CIFAR100, 500), (TINY, 500)):
        for factor, images in data.images.items():
            assert sum(exponential_counts(data.classes, factor, largest)) == images


def test_rows_can_be_run_and_are_better_than_their_context() -> None:
    assert len(ROWS) == 43
    assert {row.student for row in ROWS.values()} <= set(ARCHITECTURES)
    for name, row in ROWS.items():
        assert name == row.name
        assert row.published > max(row.others.values(), default=0)
        config = request_of(row, "paper", "imagefolder:images", Path("out"), []).config
        assert config.ipc == row.ipc
        assert config.imbalance_factor == (row.imbalance_factor if row.data.cut else None)
        assert (config.data, config.image_size) == ("imagefolder:images", row.data.image_size)
        assert config.evaluation.student == row.student


def test_a_preset_is_that_of_the_data_set_wherever_its_images_lie() -> None:
    row = ROWS["cifar100-if50-ipc10"]
    local = request_of(row, "paper", "imagefolder:images", Path("out"), []).config
    downloaded = request_of(row, "paper", None, Path("out"), []).config
    assert dataclasses.replace(local, data="cifar100") == downloaded
    ten = request_of(ROWS["cifar10-if50-ipc10"], "paper", "imagefolder:images", Path("out"), [])
    assert ten.config.recovery != local.recovery


def test_data_that_come_long_tailed_are_not_cut_again() -> None:
    row = dataclasses.replace(DIGITS, data=dataclasses.replace(DIGITS.data, cut=False))
    assert request_of(row, "paper", None, Path("out"), []).config.imbalance_factor is None
    with pytest.raises(UserError, match="expected imbalance_factor None in the row"):
        request_of(row, "paper", None, Path("out"), ["--imbalance-factor", "50"])


def test_ablated_rows_differ_from_theirs_in_what_is_taken_away() -> None:
    base = request_of(ROWS["cifar100-if50-ipc10"], "paper", None, Path("out"), []).config
    row = ROWS["cifar100-if50-ipc10-no-debiasing"]
    config = request_of(row, "paper", None, Path("out"), []).config
    experts = dataclasses.replace(base.experts, debias_power=0, resampling_power=0)
    assert config == dataclasses.replace(base, experts=experts) != base


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "expected a row, as ltdd reproduce --list names them, got none"),
        (
            "cifar10-if100-ipc10-vgg",
            "'cifar10-if100-ipc10-vgg', did you mean cifar10-if100-ipc10-vgg11?",
        ),
        ("cifar10-if100-ipc10", "expected --out DIR, a folder for the results, got none"),
        ("tiny-imagenet-if10-ipc10 --out x", "where the images of Tiny-ImageNet-LT are"),
        ("cifar10-if100-ipc10 --out x --ipc 5", "expected ipc 10 in the row"),
        (
            "cifar10-if100-ipc10 --out x --recovery.iteration 5",
            "did you mean --recovery.iterations",
        ),
        ("cifar10-if100-ipc10 --out x --preset huge", "got 'huge'"),
        ("--list --filter imagenett", "got 'imagenett'"),
        ("nothing", "unknown row 'nothing'; ltdd reproduce --list shows all 43"),
        (
            "cifar100-if50-ipc10 --out x --data digits",
            "expected the 100 classes of CIFAR-100-LT, got 10",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in command_refused(capsys, "reproduce", *command.split())
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_every_row_and_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(ROWS)
    row = next(line for line in lines if "| cifar10-if100-ipc10 " in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "cifar10-if100-ipc10", "CIFAR-10-LT", "100", "10", "convnet3", "62.7", "53.4", "53.2",
    ]  # fmt: skip
    assert main(["reproduce", "--list", "--filter", "CROSS-arch"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3


def test_a_row_is_run_judged_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dataclasses.replace(DIGITS, name="digits-alexnet", student="alexnet", published=101.0)
    monkeypatch.setattr(
        "ltdd.cli.commands.reproduce.ROWS", {row.name: row for row in (DIGITS, other)}
    )
    page, out = tmp_path / "accuracy.md", tmp_path / "rows"
    words = [*FAST, "--out", str(out), "--record", str(page), "--data", "digits"]
    assert main(["reproduce", DIGITS.name, *words]) == 0
    assert "published 9.0" in capsys.readouterr().out
    assert main(["reproduce", other.name, *words]) == 1
    assert "outside (at most 2.0 below)" in capsys.readouterr().out
    events = read_events(out / other.name / "events.jsonl")
    ends = [e for e in events if e["event"] == "stage_end"]
    assert {e["stage"] for e in ends if not e["reused"]} == {"evaluation"}  # the rest is shared
    table = [line.strip("| ").split(" | ") for line in page.read_text().splitlines()[2:]]
    assert table[0] == list(COLUMNS)
    ids = [row[0] for row in table[2:]]
    assert ids[0].startswith(f"{DIGITS.name}-demo")
    assert ids[1].startswith(f"{other.name}-demo")
    results = read_json(out / DIGITS.name / "results.json")
    mean = 100 * results["student"]["accuracy"]["mean"]
    assert table[2][1].startswith(f"{mean:.1f} ± ")
    assert table[2][-1].startswith(f"`ltdd reproduce {DIGITS.name} --preset demo --experts.epochs")
    assert str(tmp_path) not in page.read_text()


@pytest.mark.parametrize(("classes", "images"), [(9, 364), (10, 363)])
def test_other_data_are_refused_before_any_work(
    classes: int, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = dataclasses.replace(DIGITS.data, classes=classes, images={50: images})
    row = dataclasses.replace(DIGITS, data=data)
    monkeypatch.setattr("ltdd.cli.commands.reproduce.ROWS", {row.name: row})
    assert main(["reproduce", row.name, *FAST, "--out", str(tmp_path / "rows")]) == 2
    wanted = f"the {classes} classes" if classes == 9 else f"the {images} training images"
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize(("accuracy", "inside"), [(7.0, True), (6.9, False), (60.0, True)])
def test_more_than_published_is_inside(accuracy: float, inside: bool) -> None:
    made = outcome(accuracy)
    assert made.inside is inside
    assert ("outside" in str(made)) is not inside


def test_a_record_goes_behind_the_table_and_keeps_the_page(tmp_path: Path) -> None:
    page = tmp_path / "accuracy.md"
    record(page, outcome(8.0), "ltdd reproduce x")
    page.write_text("Some words.\n\n" + page.read_text())
    before = page.read_text()
    record(page, outcome(9.0), "ltdd reproduce y")
    assert page.read_text().startswith(before)
    added = page.read_text()[len(before) :]
    assert added.startswith("| digits-if50-ipc2 | 9.0 ± 0.4 (2) | 9.0 | 9.0 ± 0.4 | - |")
    assert added.count(" | ") == len(COLUMNS) - 1


def test_a_page_without_the_table_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("No table here.\n")
    words = ["cifar10-if100-ipc10", "--out", str(tmp_path / "rows"), "--record", str(page)]
    assert main(["reproduce", *words]) == 2
    assert "to end with a table of the columns | row | ours |" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [page]
    with pytest.raises(UserError, match="to end with a table"):
        record(page, outcome(9.0), "ltdd reproduce y")
    assert page.read_text() == "No table here.\n"
    page.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot read"):
        record(page, outcome(9.0), "ltdd reproduce y")
