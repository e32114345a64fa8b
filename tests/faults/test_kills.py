"""kill -9 at random moments: of whole runs, of writers, and many starts at once."""

from __future__ import annotations

import collections
import datetime
import functools
import itertools
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import Forked, Outcome, distill, smaller

from ltdd.engine.storage.files import (
    read_json,
    read_sealed_tensors,
    write_json,
    write_sealed_tensors,
)
from ltdd.engine.storage.run_folder import open_run
from ltdd.engine.watching.events import read_events
from ltdd.errors import FolderInUse
from ltdd.results.verify import verify


def some(fast: int, full: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [fast, pytest.param(full, marks=pytest.mark.slow)])


def stage_spans(out: Path) -> list[tuple[str, float]]:
    """Return (stage, seconds until the next one starts) of a finished run, in order."""
    log = [e for e in read_events(out / "events.jsonl") if e["event"] in ("stage_start", "done")]
    moments = [datetime.datetime.fromisoformat(event["time"]) for event in log]
    spans = [(b - a).total_seconds() for a, b in itertools.pairwise(moments)]
    return [(event["stage"], seconds) for event, seconds in zip(log[:-1], spans, strict=True)]


def stages_started(out: Path) -> int:
    events = out / "events.jsonl"
    return events.read_bytes().count(b'"stage_start"') if events.exists() else 0


@some(3, 50)
def test_killed_runs_end_like_undisturbed_ones(count: int, tmp_path: Path) -> None:
    start = functools.partial(distill, config=smaller(tmp_path / "data"))
    finished = tmp_path / "finished"
    for _ in range(2):  # the second is as quick as those that follow
        shutil.rmtree(finished, ignore_errors=True)
        begun = time.monotonic()
        assert Forked(functools.partial(start, finished)).wait() == 0
    expected, moments = Outcome(finished), random.Random(count)
    # Long and short stages are hit alike; before the first one lie reading the data and the lock.
    run_seconds, spans = time.monotonic() - begun, stage_spans(finished)
    spans.insert(0, ("before the first", run_seconds - sum(seconds for _, seconds in spans)))
    stages: collections.Counter[str] = collections.Counter()
    equal = kills = 0
    out = tmp_path / "run"
    while kills < count:
        target = (1 + 5 * kills) % len(spans)  # all of them, in strides
        _, seconds = spans[target]
        run = Forked(functools.partial(start, out, moments.choice([0.0, 0.05, 60.0])))
        while stages_started(out) < target and not run.has_ended():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, seconds))
        if not run.kill():  # it was quicker
            shutil.rmtree(out)
            continue
        kills += 1
        started = stages_started(out)
        stages[spans[started][0]] += 1
        if started:
            assert [found for found in verify(out) if found.problem] == []
        assert Forked(functools.partial(start, out)).wait() == 0
        assert list(out.glob("stages/*.checkpoint")) == []
        equal += Outcome(out) == expected
        shutil.rmtree(out)
    print(f"equal after a kill: {equal}/{kills}; killed in {dict(stages)}")
    assert equal == kills
    assert count < len(spans) or set(stages) == {stage for stage, _ in spans}


@some(10, 200)
def test_a_file_killed_while_it_is_saved_is_the_old_or_the_new_one(
    count: int, tmp_path: Path
) -> None:
    path, moments = tmp_path / "x.safetensors", random.Random(count)

    def save_for_ever(start: int) -> None:
        for number in range(start, start + 10**6):
            tensors = {"x": torch.full((300_000,), float(number))}
            write_sealed_tensors(path, tensors, {"number": str(number)})

    write_sealed_tensors(path, {"x": torch.zeros(300_000)}, {"number": "0"})
    for kill in range(count):
        writer = Forked(functools.partial(save_for_ever, 1000 * kill))
        time.sleep(moments.uniform(0, 0.05))
        assert writer.kill()
        tensors, metadata = read_sealed_tensors(path)
        assert bool((tensors["x"] == float(metadata["number"])).all())


def test_of_twenty_starts_at_once_one_wins(tmp_path: Path) -> None:
    out, ready = tmp_path / "run", tmp_path / "go"
    results = tmp_path / "results"
    results.mkdir()

    def start(number: int) -> None:
        while not ready.exists():
            time.sleep(0.001)
        try:
            lock = open_run(out, {"a": 1}, "split")
        except FolderInUse as error:
            write_json(results / f"{number}.json", {"refused": str(error)})
            return
        write_json(results / f"{number}.json", {"won": os.getpid()})
        until = time.monotonic() + 60  # one of the others may have failed
        while len(list(results.glob("*.json"))) < 20 and time.monotonic() < until:
            time.sleep(0.01)
        lock.release()

    starts = [Forked(functools.partial(start, number)) for number in range(20)]
    ready.touch()
    assert [process.wait() for process in starts] == [0] * 20
    said = [read_json(path) for path in results.glob("*.json")]
    (winner,) = [entry["won"] for entry in said if "won" in entry]
    refusals = [entry["refused"] for entry in said if "refused" in entry]
    assert len(refusals) == 19
    assert all(f"in use by process {winner} on" in text for text in refusals)
    open_run(out, {"a": 1}, "split").release()
