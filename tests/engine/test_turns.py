"""Works that take turns: in which order, on which stream, and what is left when one ends early."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.stripes import Recorder
from helpers.tiny_run import QUIET
from torch import Tensor

from ltdd.engine import interruption, turns
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Call, StageRunner
from ltdd.engine.storage.files import read_sealed_tensors
from ltdd.engine.turns import Turns, by_turns, finished
from ltdd.errors import UserError


def works(seen: list[str], counts: dict[str, int]) -> list[Callable[[], Turns[str]]]:
    """Return what begins works of so many steps, that note each."""

    def work(name: str, steps: int) -> Turns[str]:
        for step in range(steps):
            seen.append(f"{name}{step}")
            yield
        return name

    return [functools.partial(work, *item) for item in counts.items()]


@pytest.mark.parametrize(
    ("count", "order"),
    [
        (None, "a0 a1 b0 b1 b2 c0 d0"),
        (2, "a0 b0 a1 b1 b2 c0 d0"),  # b is alone until one that has no step ends
        (9, "a0 b0 c0 d0 a1 b1 b2"),
    ],
)
def test_so_many_take_turns_and_results_are_in_order(
    count: int | None, order: str, at_once: Callable[[int], None], runtime: Runtime
) -> None:
    if count:
        at_once(count)
    seen: list[str] = []
    starts = works(seen, {"a": 2, "b": 3, "none": 0, "c": 1, "d": 1})
    assert by_turns("stage", starts, runtime) == ["a", "b", "none", "c", "d"]
    assert " ".join(seen) == order


def test_nothing_to_do_and_no_pause(runtime: Runtime) -> None:
    assert by_turns("stage", [], runtime) == []
    seen: list[str] = []
    (start,) = works(seen, {"a": 3})
    assert finished(start()) == "a"
    assert seen == ["a0", "a1", "a2"]


# --- what the runner makes of them ---

During = Callable[[int], object]


def counting(steps: int, during: During = lambda step: None) -> Call:
    """Return a stage that counts its steps, and can be resumed."""

    def compute(runtime: Runtime) -> Turns[dict[str, Tensor]]:
        x = torch.zeros(1)
        course = Resumable(runtime)
        course.restore({"x": x})
        for epoch in course.epochs(steps):
            for _ in epoch.steps([None], {"x": x}):
                during(epoch.number)
                x += 1
                yield
        return {"x": x}

    return Call("count", {"steps": steps}, [], compute)


@pytest.fixture
def stages(tmp_path: Path, runtime: Runtime) -> StageRunner:
    return StageRunner(tmp_path, {}, runtime, QUIET)


def counts(stages: StageRunner, *calls: Call) -> list[float]:
    return [float(stored.value["x"]) for stored in stages.run_all(calls)]


def kept(out: Path) -> list[float]:
    """Return what the checkpoints of a folder counted, in ascending order."""
    return sorted(
        float(read_sealed_tensors(path)[0]["x"]) for path in out.glob("stages/*.checkpoint")
    )


def test_each_has_the_seconds_of_its_own_turns(
    at_once: Callable[[int], None],
    tmp_path: Path,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, fails = [100.0], [True]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def takes(seconds: float) -> During:
        def during(step: int) -> None:
            if step == 2 and seconds == 10 and fails.pop():
                raise ValueError("once")
            now[0] += seconds

        return during

    at_once(2)
    stages = StageRunner(tmp_path, {}, runtime, dataclasses.replace(QUIET, checkpoint_seconds=0.0))
    works = counting(3, takes(1)), counting(5, takes(10))
    with pytest.raises(ValueError, match="once"):
        counts(stages, *works)
    fails.append(False)
    assert counts(stages, *works) == [3, 5]
    assert sorted(stages.files.values()) == [3, 50]
    assert stages.costs["count"]["seconds"] == now[0] - 100


@pytest.mark.parametrize("waiting", [(), (7,)])
def test_a_signal_saves_all_even_when_one_has_ended(
    waiting: tuple[int, ...], at_once: Callable[[int], None], stages: StageRunner, tmp_path: Path
) -> None:
    def signal_at(wanted: int) -> During:
        return lambda step: step == wanted and os.kill(os.getpid(), signal.SIGTERM)

    at_once(3)
    others = [counting(steps) for steps in waiting]
    with interruption.handled(), pytest.raises(interruption.Interrupted, match="SIGTERM"):
        counts(stages, counting(2), counting(9, signal_at(4)), counting(8), *others)
    assert kept(tmp_path) == [*(1 for _ in waiting), 4, 5]  # those began when the first had ended
    assert not interruption.requested()
    found = counts(stages, counting(2), counting(9), counting(8), *others)
    assert found == [2, 9, 8, *waiting]
    assert kept(tmp_path) == []


def test_one_that_fails_leaves_what_the_others_did(
    at_once: Callable[[int], None], stages: StageRunner, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise ValueError("of this one")

    at_once(3)
    with pytest.raises(ValueError, match="of this one"):
        counts(stages, counting(2), counting(9, fail), counting(8))
    assert kept(tmp_path) == [4 - 1]
    assert not interruption.requested()
    assert counts(stages, counting(2), counting(9), counting(8)) == [2, 9, 8]


def test_another_that_cannot_save_is_told_and_hides_nothing(
    at_once: Callable[[int], None], stages: StageRunner, tmp_path: Path, log: Recorder
) -> None:
    def fail(step: int) -> None:
        if step == 1:
            (tmp_path / "stages").rmdir()
            (tmp_path / "stages").write_text("no folder")
            raise ValueError("of this one")

    at_once(2)
    (tmp_path / "stages").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="of this one"):
        counts(stages, counting(9), counting(8, fail))
    (event,) = log.of("state_not_saved")
    assert event["stage"] == "count"
    assert "cannot write" in event["reason"]


@pytest.mark.parametrize("cause", [None, RuntimeError("CUDA out of memory. Tried to allocate")])
def test_without_memory_for_one_it_ends(
    cause: RuntimeError | None, at_once: Callable[[int], None], stages: StageRunner
) -> None:
    def fail(step: int) -> None:
        raise UserError("lower the batch") from cause

    at_once(2)
    with pytest.raises(UserError, match="lower the batch"):
        counts(stages, counting(2, fail), counting(1))


# --- on a GPU ---


class FakeStream:
    """What torch would queue on a stream, by its name."""

    current = "default"

    def __init__(self, name: str) -> None:
        self.name, self.after = name, list[str]()

    def wait_stream(self, other: FakeStream) -> None:
        self.after.append(other.name)


def test_each_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the streams of a GPU replaced: which one is the current one in each step."""
    streams = {name: FakeStream(name) for name in ("default", "0", "1")}

    @contextlib.contextmanager
    def stream(chosen: FakeStream) -> Iterator[None]:
        before, FakeStream.current = FakeStream.current, chosen.name
        yield
        FakeStream.current = before

    monkeypatch.setattr(turns, "_stream", lambda device, number: streams[str(number)])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[FakeStream.current])
    monkeypatch.setitem(turns.AT_ONCE, "cuda", 2)

    def work(steps: int) -> Turns[set[str]]:
        seen = set()
        for _ in range(steps):
            seen.add(FakeStream.current)
            yield
        return seen

    runtime = Runtime(torch.device("cuda"), quiet=True)
    starts = [functools.partial(work, steps) for steps in (2, 5, 4)]
    first, second, third = by_turns("stage", starts, runtime)
    assert {*first, *second} == {"0", "1"}
    assert (len(first), len(second), third) == (1, 1, first)
    assert FakeStream.current == "default"
    assert sorted(streams["default"].after) == sorted([*first, *second, *third])
    assert [len(streams[name].after) for name in (*first, *second)] == [2, 1]
