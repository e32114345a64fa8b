"""SIGINT and SIGTERM end ``ltdd distill`` after its step; the same command goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_run import QUIET, TINY, Forked, Outcome, distill

from ltdd import pipeline
from ltdd.cli import main, options
from ltdd.cli.commands import distill as distill_command
from ltdd.data.long_tailed_data import load_data
from ltdd.engine.storage.run_folder import open_run
from ltdd.engine.watching.events import read_events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_leaves_a_checkpoint(
    number: signal.Signals, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    request = options.Request(TINY, out, QUIET)
    monkeypatch.setattr(distill_command, "parse_distill", lambda argv: request)

    def command() -> None:
        with said.open("w") as sys.stderr:
            status = main.main(["distill"])
        os._exit(status)

    run = Forked(command)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        events = read_events(out / "events.jsonl") if (out / "events.jsonl").exists() else []
        if any(event["event"] == "train" for event in events):
            break
        time.sleep(0.002)
    os.kill(run.pid, number)
    assert run.wait() == 128 + number
    assert said.read_text() == f"ltdd: stopped by {number.name}; resume with the same command\n"
    assert not (out / ".lock-holder.json").exists()
    assert Forked(lambda: distill(out)).wait() == 0
    assert Outcome(out) == Outcome(finished)


def test_a_folder_in_use_ends_with_status_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    split = load_data(TINY.data, TINY.imbalance_factor).split_sha256
    request = options.Request(TINY, tmp_path / "run", QUIET)
    monkeypatch.setattr(distill_command, "parse_distill", lambda argv: request)
    monkeypatch.setattr(pipeline, "check_networks", lambda config, data: None)
    with open_run(tmp_path / "run", TINY.to_dict(), split):
        assert main.main(["distill"]) == 3
    assert "is in use by process" in capsys.readouterr().err
