"""Log what happened when: ``events.jsonl``, and what is made from the same events.

``metrics.csv`` holds every number of the events in long form. It is written line by line, and from
the events as a whole when a run goes on, so a killed process cannot leave it behind or torn.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from ltdd.engine.storage.files import write_text
from ltdd.errors import UserError

Event = dict[str, Any]

EVENTS, METRICS = "events.jsonl", "metrics.csv"
_STAGES = {"train": "experts", "recover": "recovery", "student": "evaluation"}
_STEPS = ("iteration", "epoch", "step")
_PLACES = ("batch", "seed")


class Sink(Protocol):
    """Anything that shows or stores events beside the log."""

    def start(self, events: Sequence[Event]) -> None:
        """Take what earlier processes logged."""

    def add(self, event: Event) -> None:
        """Take one new event."""


class EventLog:
    """An append-only JSON-lines file of what happened when; stages write their losses to it.

    Args:
        path: the file; ``metrics.csv`` is kept beside it.
        sinks: receive the same events.
    """

    def __init__(self, path: Path, sinks: Iterable[Sink] = ()) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # A killed process may leave half a line; ending it keeps the next line whole.
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            _append(path, "\n")
        earlier = read_events(path) if content else []
        self._sinks = (_MetricsTable(path.with_name(METRICS)), *sinks)
        for sink in self._sinks:
            sink.start(earlier)

    def write(self, event: str, **fields: Any) -> None:
        """Append one line: time (UTC, ISO 8601), the event's name and its fields."""
        entry = _entry(event, fields)
        _append(self.path, json.dumps(entry) + "\n")
        for sink in self._sinks:
            sink.add(entry)


class HeldEvents:
    """Keeps events with their times, to be written to another log later.

    Args:
        write_too: takes them at once, as `EventLog.write` does.

    Attributes:
        events: arguments of `EventLog.write`.
    """

    def __init__(self, write_too: Callable[..., None]) -> None:
        self.events: list[Event] = []
        self._write_too = write_too

    def write(self, event: str, **fields: Any) -> None:
        """Keep one event."""
        self.events.append(_entry(event, fields))
        self._write_too(**self.events[-1])


def _entry(event: str, fields: Event) -> Event:
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return {"time": now, "event": event, **fields}


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def read_events(path: Path) -> list[Event]:
    """Read an event log; a line that a killed process left unfinished is skipped."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append(event)
    return events


class Metric(NamedTuple):
    """One number of an event.

    Attributes:
        time: UTC, ISO 8601.
        stage: stage of the run, or the event's name if it belongs to none.
        who: expert, student with its seed, or batch; empty if there is only one.
        step: iteration or epoch; None for a number about the whole stage.
        name: what was measured.
        value: in units of the name: losses as they are, ``seconds``, ``peak_bytes``.
    """

    time: str
    stage: str
    who: str
    step: int | None
    name: str
    value: float


def metrics_of(event: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the numbers of an event; a reused stage was measured when it was computed."""
    if event.get("reused"):
        return
    stage = str(event.get("stage") or _STAGES.get(event["event"], event["event"]))
    who = [str(event[key]) for key in ("role", "who") if key in event]
    who += [f"{key} {event[key]}" for key in _PLACES if key in event]
    step = next((event[key] for key in _STEPS if key in event), None)
    for name, value in event.items():
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if numeric and name not in (*_STEPS, *_PLACES):
            yield Metric(event.get("time", ""), stage, " ".join(who), step, name, float(value))


class _MetricsTable:
    """``metrics.csv``: time, stage, who, step, name, value."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, events: Sequence[Event]) -> None:
        rows = [Metric._fields, *(row for event in events for row in metrics_of(event))]
        write_text(self._path, _lines(rows))

    def add(self, event: Event) -> None:
        rows = list(metrics_of(event))
        if rows:
            _append(self._path, _lines(rows))


def _lines(rows: Iterable[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class EventPrinter:
    """Shows every event on stderr, beside a progress bar too."""

    def start(self, events: Sequence[Event]) -> None:
        """Show nothing of what earlier processes logged."""

    def add(self, event: Event) -> None:
        """Show ``12:00:01 recover iteration=10 loss=0.25``."""
        fields = {k: v for k, v in event.items() if k not in ("time", "event")}
        shown = [f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in fields.items()]
        line = " ".join([event["time"][11:19], event["event"], *shown])
        tqdm.write(line, file=sys.stderr)
