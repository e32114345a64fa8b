"""Say how a run works, not what it computes. Importing this module does not import torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltdd.config import OnBadImage
from ltdd.engine.machine.surroundings import user_path
from ltdd.engine.public import check_fields
from ltdd.errors import UserError

CHECKPOINT_SECONDS = 60.0
"""Default time between two saves of an unfinished stage."""
NO_STORE = "none"


def default_store() -> Path | None:
    """Return the folder in which all runs of a user share results of stages; None for none.

    ``LTDD_STORE`` names it (``none`` for none); otherwise it is the folder ``stages`` beside the
    decoded images, in ``LTDD_DATA`` or ``~/.cache/ltdd``. A user without a home has none.
    """
    named = os.environ.get("LTDD_STORE")
    if named == NO_STORE:
        return None
    beside = os.path.join(os.environ.get("LTDD_DATA") or "~/.cache/ltdd", "stages")
    try:
        return user_path(named or beside)
    except UserError:
        if named:
            raise
        return None


def no_sinks(folder: Path) -> Sequence[Any]:
    """Send events nowhere but to the files of the run."""
    return ()


@dataclass(frozen=True)
class RunOptions:
    """Options that do not change a result.

    Attributes:
        recipe: name of the method that the configuration came from, for the record.
        preset: name of the preset that it came from, for the record.
        quiet: no progress output.
        checkpoint_seconds: time between two saves of an unfinished stage; 0 saves every step.
        on_bad_image: ``fail`` or ``skip``, for image files that cannot be read.
        store: folder of stage results that runs share; None for none. A run folder holds what it
            needs by itself all the same.
        sinks: given the folder of an event log, returns what else receives its events
            (`ltdd.engine.watching.events.Sink`).

    Raises:
        UserError: a value is of another kind.
    """

    recipe: str | None = None
    preset: str | None = None
    quiet: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    on_bad_image: OnBadImage = "fail"
    store: Path | None = field(default_factory=default_store)
    sinks: Callable[[Path], Sequence[Any]] = no_sinks

    def of_rank(self, rank: int) -> RunOptions:
        """Return what holds for one of several ranks: only the first shows what happens."""
        return self if rank == 0 else dataclasses.replace(self, quiet=True, sinks=no_sinks)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.checkpoint_seconds < 0:
            raise UserError(
                f"checkpoint_seconds: expected 0 or more, got {self.checkpoint_seconds}"
            )
