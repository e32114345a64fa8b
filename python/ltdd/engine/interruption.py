"""Stop requests of the user or the machine: SIGINT and SIGTERM.

Without further notice a signal ends the work where it is, as Ctrl-C does; every file is written
whole, so nothing breaks. A stage that keeps a checkpoint asks for a delay, finishes its step, saves
and stops then. Signals belong to the process, and so does the state of this module.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_delayed = False
_received: int | None = None


class Interrupted(KeyboardInterrupt):
    """The work was stopped by a signal.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process that the signal ended: 130 or 143."""
        return 128 + self.number


@contextmanager
def handled() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted` inside the block (in the main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _received, _delayed
    previous = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _received, _delayed = None, False


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    if _delayed and _received is None:
        _received = number
        return
    # Nothing to save, or asked twice: at once.
    raise Interrupted(number)


def delay(wanted: bool) -> None:
    """Keep the next signal until `stop_if_requested`; a second one still stops at once."""
    global _delayed
    _delayed = wanted


def request() -> None:
    """Ask to stop as SIGTERM does: another process of the run was asked to."""
    global _received
    _received = _received or signal.SIGTERM


@contextmanager
def asked() -> Iterator[None]:
    """Have a step that is taken inside the block save its state and stop, as after a signal."""
    global _received
    before, _received = _received, _received or signal.SIGTERM
    try:
        yield
    finally:
        _received = before


def requested() -> bool:
    """Return whether a delayed signal has come."""
    return _received is not None


def stop_if_requested() -> None:
    """Raise `Interrupted` if a delayed signal has come."""
    if _received is not None:
        raise Interrupted(_received)
