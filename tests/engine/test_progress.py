"""The progress line, and what a run ends with on the terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from helpers.finished_pages import finished_run

from ltdd.cli.main import main
from ltdd.engine.storage.files import read_json
from ltdd.engine.watching import progress as progress_module
from ltdd.engine.watching import units
from ltdd.engine.watching.progress import Progress
from ltdd.results.terminal import run_summary


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress_module, "peak_bytes", lambda device: 2_500_000_000)
    return Clock(monkeypatch)


def test_plain_lines_say_pace_memory_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(12, "recovery", quiet=False, done=2) as progress:
        for _ in range(5):
            clock.now += 3
            progress.step("loss 0.5", images=60)
    assert capsys.readouterr().err.splitlines() == [
        "recovery: 6/12, loss 0.5, 20 images/s, peak 2.5 GB, 18.0 s left",
        "recovery: done in 15.0 s, loss 0.5, 20 images/s, peak 2.5 GB",
    ]


def test_short_stages_and_quiet_runs_say_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(2, "statistics", quiet=False) as progress:
        clock.now += 1
        progress.step()
    with Progress(2, "recovery", quiet=True) as progress:
        clock.now += 100
        progress.step("loss 0.5")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_the_same_figures(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress_module, "_SILENT", 0)
    with Progress(2, "recovery", quiet=False) as progress:
        for _ in range(2):
            clock.now += 3
            progress.step("loss 0.5", images=60)
    shown = terminal.getvalue()
    assert "recovery: 100%" in shown
    assert "loss 0.5, 20 images/s, peak 2.5 GB" in shown


def test_a_run_ends_with_accuracies_costs_sizes_and_places(tmp_path: Path) -> None:
    results = read_json(finished_run(tmp_path) / "results.json")
    lines = [line.split() for line in run_summary(results, tmp_path).splitlines()]
    assert ["experts", "1", "min", "11", "s", "410", "MB"] in lines
    assert ["all", "1", "min", "54", "s", "530", "MB"] in lines
    assert ["images:", "6.4", "kB,", "labels:", "4", "kB"] in lines
    assert ["distilled", "set:", str(tmp_path / "data.safetensors")] in lines
    assert ["losses:", str(tmp_path / "metrics.csv")] in lines
    assert not any("tensorboard" in line[0] for line in lines if line)


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_leaves_the_path_of_the_report(
    quiet: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = read_json(finished_run(tmp_path) / "results.json")
    monkeypatch.setattr("ltdd.pipeline.distill", lambda *_, **__: results)
    assert main(["distill", "--out", str(tmp_path), *(["--quiet"] if quiet else [])]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    if quiet:
        assert shown.out == f"{tmp_path / 'report.html'}\n"
    else:
        assert shown.out.strip() == run_summary(results, tmp_path)


def test_units_round_into_the_next_one() -> None:
    assert [units.duration(s) for s in (0.04, 59.96, 119.6, 3600, 9000)] == [
        "0.0 s", "1 min 00 s", "2 min 00 s", "1.0 h", "2.5 h",
    ]  # fmt: skip
    assert [units.size(b) for b in (0, 999, 1000, 2_400_000_000, 5e13)] == [
        "0 bytes", "999 bytes", "1 kB", "2.4 GB", "5e+04 GB",
    ]  # fmt: skip


def test_a_teacher_near_chance_is_warned_about(tmp_path: Path) -> None:
    results = read_json(finished_run(tmp_path) / "results.json")
    assert "warning" not in run_summary(results, tmp_path)
    results["teacher"]["accuracy"]["mean"] = 1 / len(results["class_names"]) + 0.01
    shown = run_summary(results, tmp_path)
    assert "warning: the teacher is right in" in shown
    assert "--experts.epochs" in shown
