"""Threads follow the cores that are free, and what the user has set stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from helpers.stripes import Recorder

from ltdd.engine.machine import cores
from ltdd.engine.machine.cores import CoreFollower, Times


class Machine:
    """Programs with so many threads each, which share the cores of a machine evenly."""

    def __init__(self, count: int) -> None:
        self.cores, self.wall, self.idle = count, 0.0, 0.0
        self.runs: list[Program] = []

    def run(self, seconds: float) -> None:
        wanted = sum(run.threads for run in self.runs)
        self.wall += seconds
        self.idle += max(0, self.cores - wanted) * seconds
        for run in self.runs:
            run.own += run.threads * min(1.0, self.cores / wanted) * seconds


class Program:
    def __init__(self, machine: Machine, threads: int, follows: bool = True) -> None:
        self.machine, self.threads, self.own = machine, threads, 0.0
        machine.runs.append(self)
        self.follower = CoreFollower(machine.cores, self._times, self._set) if follows else None

    def _times(self) -> Times:
        return Times(self.machine.wall, self.own, self.machine.idle)

    def _set(self, count: int) -> None:
        self.threads = count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """Let time be that of the machine put in here."""
    shown: list[Machine] = []
    monkeypatch.setattr(time, "monotonic", lambda: shown[0].wall)
    return shown


def settle(machine: Machine, log: Recorder, rounds: int = 12) -> list[int]:
    """Let programs look one after the other, as they do."""
    for _ in range(rounds):
        for run in machine.runs:
            machine.run(cores.LOOK_EVERY / len(machine.runs))
            if run.follower is not None:
                run.follower.look(lambda event, sentence, **fields: log.write(event, **fields))
    return [run.threads for run in machine.runs]


@pytest.mark.parametrize(
    ("count", "threads", "settled"),
    [
        (2, [2], [2]),
        (2, [2, 2], [1, 1]),
        (2, [2, 2, 2], [1, 1, 1]),
        (8, [8, 8], [3, 5]),
        (4, [4, 4, 4], [1, 1, 2]),
    ],
)
def test_runs_share_the_cores(
    clock: list[Machine], log: Recorder, count: int, threads: list[int], settled: list[int]
) -> None:
    machine = Machine(count)
    clock.append(machine)
    for own in threads:
        Program(machine, own)
    assert sorted(settle(machine, log)) == settled


def test_a_run_that_is_left_has_all_cores_again(clock: list[Machine], log: Recorder) -> None:
    machine = Machine(2)
    clock.append(machine)
    Program(machine, 2), Program(machine, 2)
    assert settle(machine, log) == [1, 1]
    machine.runs.pop()
    assert settle(machine, log) == [2]
    assert [event["threads"] for event in log.of("threads")] == [1, 1, 2]


def test_a_run_that_gets_too_little_says_so_once(clock: list[Machine], log: Recorder) -> None:
    machine = Machine(2)
    clock.append(machine)
    Program(machine, 2)
    for _ in range(3):
        Program(machine, 2, follows=False)
    assert settle(machine, log)[0] == 1
    (event,) = log.of("starved")
    assert event["cores"] == pytest.approx(2 / 7)


def test_nothing_is_looked_at_between_two_looks(clock: list[Machine], log: Recorder) -> None:
    machine = Machine(2)
    clock.append(machine)
    run = Program(machine, 2)
    Program(machine, 2, follows=False)
    machine.run(cores.LOOK_EVERY / 2)
    assert run.follower is not None
    run.follower.look(log.write)
    assert run.threads == 2


def program(code: str, **variables: str) -> str:
    """Return what a fresh program prints in which nobody has set threads but these variables."""
    decided = (*cores.COUNTING, *cores.PLACING, *cores.WAITING)
    environment = {name: value for name, value in os.environ.items() if name not in decided}
    done = subprocess.run(
        [sys.executable, "-c", f"from ltdd.engine.machine import cores\n{code}"],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


PREPARED = (
    "import os, sys; cores.prepare()\n"
    "assert 'torch' not in sys.modules\n"
    "print(os.environ.get('OMP_WAIT_POLICY'), cores._follower is not None)"
)


@pytest.mark.skipif(cores.usable_cores() < 2, reason="one core has nothing to share")
@pytest.mark.skipif(cores._idle_seconds() is None, reason="the system does not count idle time")
@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, "passive True"),
        ({"OMP_NUM_THREADS": "2"}, "passive False"),
        ({"OMP_PROC_BIND": "true"}, "passive False"),
        ({"OMP_WAIT_POLICY": "active"}, "active True"),
        ({"KMP_BLOCKTIME": "7"}, "None True"),
    ],
    ids=str,
)
def test_what_the_user_has_set_stays(variables: dict[str, str], wanted: str) -> None:
    assert program(PREPARED, **variables) == wanted


def test_where_torch_is_loaded_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    cores.prepare(environment)
    assert environment == {}
    assert cores._follower is None
    cores.look(lambda *_, **__: pytest.fail("nobody follows anything"))


@pytest.mark.skipif(cores._idle_seconds() is None, reason="the system does not count idle time")
def test_times_of_this_machine_go_up() -> None:
    before: Any = cores._times()
    spent = sum(number * number for number in range(300_000))
    after = cores._times()
    assert spent
    assert after.wall > before.wall
    assert after.own >= before.own
    assert after.idle >= before.idle >= 0
    assert 1 <= cores.usable_cores() <= (os.cpu_count() or 1)
