"""The numbers of a run for TensorBoard, an optional extra."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ltdd.engine.watching.events import Event, metrics_of
from ltdd.errors import UserError


class TensorBoard:
    """Writes every number of the events as a scalar ``stage/who/name``.

    The folder is made anew from the event log whenever a run goes on, so that a number that was
    computed twice is shown once and a killed writer leaves nothing torn.

    Args:
        folder: where TensorBoard will read; its content is replaced when the run starts.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise UserError(
                "expected the package tensorboard for --tensorboard, got none installed; "
                "install it with pip install tensorboard"
            ) from error
        self._folder, self._open = folder, SummaryWriter
        self._writer: Any = None

    def start(self, events: Sequence[Event]) -> None:
        """Replace the folder by what earlier processes logged."""
        try:
            if self._folder.exists():
                shutil.rmtree(self._folder)
            self._writer = self._open(str(self._folder))
        except OSError as error:
            raise UserError(f"cannot write {self._folder}: {error.strerror or error}") from error
        latest = {}  # a resumed stage logs some steps again
        for event in events:
            for metric in metrics_of(event):
                latest[metric.stage, metric.who, metric.name, metric.step] = metric
        for metric in latest.values():
            self._add(*metric)
        self._writer.flush()

    def add(self, event: Event) -> None:
        """Write the numbers of one event through to the disk."""
        for metric in metrics_of(event):
            self._add(*metric)
        self._writer.flush()

    def _add(
        self, time: str, stage: str, who: str, step: int | None, name: str, value: float
    ) -> None:
        tag = "/".join(part.replace(" ", "_") for part in (stage, who, name) if part)
        when = datetime.fromisoformat(time).timestamp()
        self._writer.add_scalar(tag, value, step or 0, walltime=when)
