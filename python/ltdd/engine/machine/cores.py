"""Share the cores of a machine: as many threads as there are cores that nobody else wants.

The threads of a parallel loop wait for the last of them. Next to another program one of them may
not run at all for a while, and the others spin through their share of the processor: two trainings
on two cores fall to a sixteenth of their speed. So threads that wait sleep, and a run has no more
threads than cores are left to it, looked at every two seconds. Both hold where `prepare` was called
before torch was loaded, and only as far as the user has not decided it: OpenMP's own variables come
first.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

LOOK_EVERY = 2.0  # seconds; the system counts idle time in hundredths
_DOWN, _UP = 0.5, 0.25  # of a core: how much may be missing for a thread to stay, and to be added
_SHORTEST, _LONGEST = 2, 64  # looks in a row that see idle cores before more threads are taken
_STARVED = 0.6  # of a core, for a run of one thread

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
PLACING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
COUNTING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC")


class Times(NamedTuple):
    """What a machine has done so far, in seconds.

    Attributes:
        wall: of the clock.
        own: of this process on any core, user and system.
        idle: of the cores that this process may use, added up.
    """

    wall: float
    own: float
    idle: float


class CoreFollower:
    """Sets the number of threads to the number of cores that nobody else uses.

    Those are the idle ones and what the process has itself. Runs that all do so settle: two of
    them on two cores have a thread each, and the one that is left has two again. Idle cores are
    seen by all of them: whoever took too many waits longer before it takes more.

    Args:
        cores: threads at most.
        read: returns the times up to now.
        change: sets the number of threads.
    """

    def __init__(
        self, cores: int, read: Callable[[], Times], change: Callable[[int], None]
    ) -> None:
        self.threads = self._cores = cores
        self._read, self._change = read, change
        self._last, self._starved = read(), False
        self._idle, self._patience = 0, _SHORTEST

    def look(self, tell: Callable[..., None]) -> None:
        """Adjust the number of threads, if it is time to, and say so.

        Args:
            tell: takes the name of an event, a sentence, and fields of the event.
        """
        if time.monotonic() - self._last.wall < LOOK_EVERY:
            return
        last, self._last = self._last, self._read()
        seconds = self._last.wall - last.wall
        free = (self._last.own - last.own + self._last.idle - last.idle) / seconds
        fitting = min(max(1, math.floor(free + _UP)), self._cores)
        self._idle = self._idle + 1 if fitting > self.threads else 0
        if self._idle < self._patience and free >= self.threads - _DOWN:
            fitting = self.threads
        if fitting < self.threads:
            self._patience = min(2 * self._patience, _LONGEST)
        self._change(fitting)  # at first too: OpenMP knows of no quota
        if fitting != self.threads:
            self.threads = fitting
            said = f"{free:.1f} of {self._cores} cores are free: computing with {fitting} threads"
            tell("threads", said.removesuffix("s") if fitting == 1 else said, threads=fitting)
        elif free < _STARVED and not self._starved:
            self._starved = True
            said = f"other programs leave this run {free:.1f} of a core, so it takes longer"
            tell("starved", said, cores=free)


_follower: CoreFollower | None = None


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads sleep, and follow the cores that are free from now on.

    Nothing happens where torch is loaded: OpenMP has read its variables, and the program around
    has its own threads.

    Args:
        environment: of the process; what the user has set in it stays.
    """
    global _follower
    if "torch" in sys.modules:
        return
    cores, decided = usable_cores(), any(environment.get(name) for name in (*COUNTING, *PLACING))
    if cores > 1 and not decided and _idle_seconds() is not None:
        _follower = CoreFollower(cores, _times, _set_threads)
    if not any(environment.get(name) for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "passive"


def look(tell: Callable[..., None]) -> None:
    """Adjust the threads of this process, where they follow the free cores."""
    if _follower is not None:
        _follower.look(tell)


def describe(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Return what decides threads here, in words, for people."""
    named = [f"{name}={environment[name]}" for name in (*COUNTING, *PLACING) if name in environment]
    waiting = [f"{name}={environment[name]}" for name in WAITING if name in environment]
    chosen = "as many as cores are free" if _follower is not None else "as torch starts with"
    return {
        "threads": f"{usable_cores()} cores; {', '.join(named) or chosen}",
        "waiting threads": ", ".join(waiting) or "as OpenMP does by default",
    }


def usable_cores() -> int:
    """Return the cores that this process may use: those of its affinity, within its quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


def _idle_seconds() -> float | None:
    """Return how long the cores of this process have been idle, or None where nobody counts."""
    try:
        text = Path("/proc/stat").read_text()
        lines = [line for line in text.splitlines() if line.startswith("cpu")]
        own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = [
            int(idle) + int(waiting)  # for a disk
            for name, _, _, _, idle, waiting, *_ in map(str.split, lines)
            if name in own
        ]
    except (OSError, ValueError, AttributeError):
        return None
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if len(ticks) == len(own) else None


def _times() -> Times:
    spent = os.times()
    return Times(time.monotonic(), spent.user + spent.system, _idle_seconds() or 0.0)


def _set_threads(count: int) -> None:
    torch: Any = sys.modules["torch"]
    torch.set_num_threads(count)
