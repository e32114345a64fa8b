"""Events and what is made of them: metrics.csv, TensorBoard, lines on the terminal."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from ltdd.cli.main import main
from ltdd.engine.watching.events import EventLog, EventPrinter, read_events
from ltdd.engine.watching.tensorboard import TensorBoard
from ltdd.errors import UserError


def log_some(log: EventLog) -> None:
    log.write("train", stage="experts", role="observer", epoch=0, loss=1.5)
    log.write("recover", iteration=10, batch=2, loss=0.5, alignment=4.0)
    log.write("student", who="student", seed=1, epoch=3, loss=0.25)
    log.write("bad_image", file="a,b.png")
    log.write("stage_end", stage="recovery", reused=False, seconds=2.5, peak_bytes=1000)
    log.write("stage_end", stage="recovery", reused=True, seconds=2.5, peak_bytes=1000)


EXPECTED = [
    ["experts", "observer", "0", "loss", "1.5"],
    ["recovery", "batch 2", "10", "loss", "0.5"],
    ["recovery", "batch 2", "10", "alignment", "4.0"],
    ["evaluation", "student seed 1", "3", "loss", "0.25"],
    ["recovery", "", "", "seconds", "2.5"],
    ["recovery", "", "", "peak_bytes", "1000.0"],
]


def metrics(out: Path) -> list[list[str]]:
    with (out / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["time", "stage", "who", "step", "name", "value"]
    times = [row[0] for row in rows]
    assert times == sorted(times)
    return [row[1:] for row in rows]


def test_every_number_of_the_events_is_a_row(tmp_path: Path) -> None:
    log_some(EventLog(tmp_path / "events.jsonl"))
    assert metrics(tmp_path) == EXPECTED


def test_the_table_is_whole_again_after_a_kill(tmp_path: Path) -> None:
    log_some(EventLog(tmp_path / "events.jsonl"))
    path = tmp_path / "metrics.csv"
    content = path.read_text()
    for damaged in ("", content[:-7], content[: len(content) // 2], None):
        if damaged is None:
            path.unlink()
        else:
            path.write_text(damaged)
        EventLog(tmp_path / "events.jsonl")
        assert path.read_text() == content
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "train", "lo')
    log = EventLog(tmp_path / "events.jsonl")
    assert path.read_text() == content
    log.write("train", role="teacher", epoch=1, loss=2.0)
    assert metrics(tmp_path) == [*EXPECTED, ["experts", "teacher", "1", "loss", "2.0"]]
    assert len(read_events(tmp_path / "events.jsonl")) == 7


def test_verbose_prints_every_new_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_some(EventLog(tmp_path / "events.jsonl"))
    log = EventLog(tmp_path / "events.jsonl", [EventPrinter()])
    log.write("student", who="student", seed=0, epoch=3, loss=0.123456789)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err[8:] == " student who=student seed=0 epoch=3 loss=0.123457\n"


def test_tensorboard_shows_every_number_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_some(EventLog(tmp_path / "events.jsonl"))
    for _ in range(2):  # as a killed and resumed run would: the step is logged again
        board = TensorBoard(tmp_path / "tensorboard")
        log = EventLog(tmp_path / "events.jsonl", [board])
        log.write("recover", iteration=20, batch=2, loss=0.375)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    assert {tag: [(s.step, s.value) for s in values] for tag, values in scalars.items()} == {
        "experts/observer/loss": [(0, 1.5)],
        "recovery/batch_2/loss": [(10, 0.5), (20, 0.375), (20, 0.375)],
        "recovery/batch_2/alignment": [(10, 4.0)],
        "evaluation/student_seed_1/loss": [(3, 0.25)],
        "recovery/seconds": [(0, 2.5)],
        "recovery/peak_bytes": [(0, 1000.0)],
    }


def test_without_tensorboard_the_option_fails_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="expected the package tensorboard"):
        TensorBoard(tmp_path / "tensorboard")
    assert main(["distill", "--out", str(tmp_path / "run"), "--tensorboard"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
