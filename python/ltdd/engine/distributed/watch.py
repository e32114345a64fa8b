"""Notice a rank that fails or is lost, so that the others stop with its reason.

Every rank has a thread that leaves a sign of life in the store of torch.distributed twice a second,
looks for those of the next rank, and reads what a failing rank says last. It then asks its own
process to stop as a signal does: a stage that can be resumed saves its state first. A process that
cannot stop, because it waits inside a library, is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from ltdd.engine import interruption
from ltdd.engine.chunks import is_out_of_memory
from ltdd.errors import UserError

BEAT = 0.5  # seconds between two signs of life
SILENT = 5.0  # seconds without one, after which a rank is lost if there is another sign of it
LOST = 60.0  # and if there is none
GRACE = 20.0  # seconds to stop by itself; torchrun gives 30

_FAILURE, _OVER = "failure", "over"


class Failure(NamedTuple):
    """Why the ranks stop.

    Attributes:
        rank: that failed.
        reason: in words.
        status: exit status.
    """

    rank: int
    reason: str
    status: int

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.reason}"


class RankFailed(UserError):
    """A rank of the run has failed.

    Args:
        failure: which one, and why.
        told: whether a process on this machine says so already.
    """

    def __init__(self, failure: Failure, told: bool) -> None:
        super().__init__(str(failure))
        self.failure, self.told = failure, told
        self.exit_status = failure.status  # type: ignore[misc]


class Watch(threading.Thread):
    """Signs of life and last words of the ranks.

    Args:
        store: of torch.distributed, for this run alone.
        rank: of this process.
        world: number of ranks.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        super().__init__(daemon=True, name="ltdd-watch")
        # A connection of its own: a store answers one question at a time.
        self._store, self.rank, self._world = store.clone(), rank, world
        self._lock, self._over = threading.Lock(), threading.Event()
        self._failure: Failure | None = None
        self._told: bool | None = None
        self._beats, self._leaving = 0, False
        self._beat()

    def run(self) -> None:
        """Watch until `stop`."""
        neighbour, seen, since = (self.rank + 1) % self._world, "", time.monotonic()
        while not self._over.wait(BEAT):
            try:
                self._beat()
                beat = self._read(f"beat{neighbour}") or ""
                if beat != seen:
                    seen, since = beat, time.monotonic()
                elif time.monotonic() - since > LOST and beat != _OVER:
                    self.post(_lost(neighbour))
                failure = self.failure()
            except RuntimeError:  # the store went with the process that held it
                failure = self._failure = _lost(0)
            if failure is not None and not self._leaving:
                self._end(failure)

    def check(self) -> None:
        """Raise if another rank has failed (`Waiting`)."""
        if self._failure is not None:
            raise RankFailed(self._failure, self.told())

    def post(self, failure: Failure) -> Failure:
        """Leave last words for all ranks; those that came first count, and are returned."""
        with self._lock, contextlib.suppress(RuntimeError):
            said = json.dumps(failure)
            self._failure = Failure(*json.loads(self._store.compare_set(_FAILURE, "", said)))
        self._failure = self._failure or failure
        return self._failure

    def failure(self) -> Failure | None:
        """Return the last words of a rank, if there are any."""
        if self._failure is None:
            said = self._read(_FAILURE)
            self._failure = Failure(*json.loads(said)) if said else None
        return self._failure

    def find_cause(self) -> Failure | None:
        """Return why others do not answer: last words, or that one of them is silent.

        None if all of them live.
        """
        try:
            before = self._signs()
            silent, end = set(before), time.monotonic() + SILENT
            while silent and time.monotonic() < end and self.failure() is None:
                time.sleep(BEAT / 5)
                now = self._signs()
                silent = {r for r in silent if now[r] == before[r] and not _is_leaving(now[r])}
            if self._failure is None and silent:
                return self.post(_lost(min(silent)))
            return self._failure
        except RuntimeError:
            return self._failure or _lost(0)

    def wait_for_leavers(self) -> None:
        """Give others time to read the last words: the store may go with this process."""
        end = time.monotonic() + SILENT
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end and not all(map(_is_leaving, self._signs().values())):
                time.sleep(BEAT / 5)

    def told(self) -> bool:
        """Return whether another process of this machine says why all stop; else this one does."""
        if self._told is None:
            self._told = False
            with contextlib.suppress(RuntimeError), self._lock:
                self._told = int(self._store.add(f"told on {platform.node()}", 1)) > 1
        return self._told

    def leave(self) -> None:
        """Take note that this process is about to stop by itself; signs of life go on."""
        self._leaving = True

    def stop(self) -> None:
        """End the watch of a run that is over, or that this rank leaves."""
        self._over.set()
        with contextlib.suppress(RuntimeError), self._lock:
            self._store.set(f"beat{self.rank}", _OVER)

    def _beat(self) -> None:
        self._beats += 1
        stopping = "stopping" if interruption.requested() else "at work"
        with self._lock:
            self._store.set(f"beat{self.rank}", f"{self._beats} {stopping}")

    def _signs(self) -> dict[int, str]:
        others = (rank for rank in range(self._world) if rank != self.rank)
        return {rank: self._read(f"beat{rank}") or "" for rank in others}

    def _read(self, key: str) -> str | None:
        with self._lock:
            return self._store.get(key).decode() if self._store.check([key]) else None

    def _end(self, failure: Failure) -> None:
        """Ask this process to stop, and end it if it does not."""
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            if self._leaving or self._over.wait(BEAT):
                return
            with contextlib.suppress(RuntimeError):
                self._beat()
        if not self.told():
            print(f"ltdd: error: {failure}", file=sys.stderr, flush=True)
        os._exit(failure.status)


def _lost(rank: int) -> Failure:
    return Failure(rank, "ended without a word: killed, or its machine was lost", 1)


def _is_leaving(sign: str) -> bool:
    return sign == _OVER or sign.endswith("stopping")


@contextlib.contextmanager
def failures_told(watch: Watch) -> Iterator[None]:
    """Leave last words where the block fails, and give the reason where another rank failed.

    An exception that a process of this machine has told already is marked with ``told``.

    Raises:
        RankFailed: another rank failed.
        UserError: this one did; the message begins with its number.
    """
    try:
        yield
    except BaseException as error:
        interruption.delay(True)  # torchrun asks all to stop when one ends: the reason comes first
        watch.leave()
        cause = _cause(error, watch)
        expected = isinstance(error, UserError | MemoryError | OSError | interruption.Interrupted)
        # A traceback does not say which rank it is of: one of the others does.
        told = cause.rank == watch.rank and not expected and not is_out_of_memory(error)
        told = told or watch.told()
        if watch.rank == 0:
            watch.wait_for_leavers()
        if cause.rank != watch.rank and _stopped(error) != cause.status:
            raise RankFailed(cause, told) from error
        if isinstance(error, MemoryError | OSError) or is_out_of_memory(error):
            raise RankFailed(cause, told) from error
        if isinstance(error, UserError):
            error.args = (str(cause),)
        error.told = told  # type: ignore[attr-defined]
        raise
    finally:
        interruption.delay(False)
        watch.stop()


def _cause(error: BaseException, watch: Watch) -> Failure:
    """Return why the ranks stop, where this one has met an exception."""
    if isinstance(error, RankFailed):
        return error.failure
    status = _stopped(error)
    unanswered = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    unanswered |= type(error).__name__ in ("DistBackendError", "DistNetworkError")
    cause = watch.find_cause() if unanswered or status else watch.failure()
    if cause is not None:
        return cause
    if status:
        return watch.post(Failure(watch.rank, f"stopped by {error}", status))
    reason = str(error) if isinstance(error, UserError) else _in_words(error)
    return watch.post(Failure(watch.rank, reason, getattr(error, "exit_status", 2)))


def _stopped(error: BaseException) -> int:
    """Return the exit status of a process that was asked to stop, else 0."""
    return error.exit_status if isinstance(error, interruption.Interrupted) else 0


def _in_words(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    if is_out_of_memory(error):
        return "out of memory" + f": {text}" * bool(text)
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
