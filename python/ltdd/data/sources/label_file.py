"""Files that give images their labels: what one holds, whatever its form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One image of a label file.

    Attributes:
        where: its place in the file, for messages.
        path: the image, as written.
        label: its class, as written.
        split: its split, as written; empty without one.
    """

    where: str
    path: str
    label: str
    split: str = ""


@dataclass(frozen=True)
class LabelFile:
    """All images of a label file.

    Attributes:
        path: the file.
        entries: its images in order.
        notes: what the user should know about it.
    """

    path: Path
    entries: list[Entry]
    notes: tuple[str, ...] = ()
