"""From the splits of a source, as it lists them, to the two parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ltdd.config import OnBadImage
from ltdd.data.reading.image_source import Images, IntArray, Labelled, Parts, Pictures
from ltdd.data.splitting.class_names import by_value, in_order
from ltdd.data.splitting.held_out import hold_out
from ltdd.errors import UserError

Naming = Literal["folders", "labels", "declared"]
"""Where names of classes come from: folders keep their names, labels that are whole numbers are
classes by value, and declared names have their order already."""


@dataclass(frozen=True)
class Split:
    """One split as a source lists it, with class names of its own.

    Attributes:
        images: all its images.
        labels: int64 (N,), positions in `class_names`.
        class_names: its classes in any order.
        where: its place, for messages.
    """

    images: Images
    labels: IntArray
    class_names: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Origin:
    """Words of messages and notes about a source.

    Attributes:
        where: the place of its images.
        instead: what the user may give so that nothing is held out.
        notes: what has been noted before.
    """

    where: str
    instead: str
    notes: tuple[str, ...] = ()


def labelled_by(
    images: Images, labels: Sequence[str] | Sequence[int], where: str, names: Sequence[str] = ()
) -> Split:
    """Make a split from the label of every image, as it is written or as a position in `names`."""
    if names:
        return Split(images, np.asarray(labels, dtype=np.int64), tuple(names), where)
    texts = list(map(str, labels))
    table = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    numbers = np.array([table[text] for text in texts], dtype=np.int64)
    return Split(images, numbers, tuple(table), where)


def parts_of(
    train: Split, test: Split | None, origin: Origin, on_bad_image: OnBadImage, naming: Naming
) -> Parts:
    """Bring the classes of both splits into one order, and leave unreadable images out if asked to.

    Without a test split, a balanced part of the training split is held out. A class may be without
    images of a part.

    Raises:
        UserError: there are fewer than two classes, or too few images to hold some out.
    """
    present = [train] if test is None else [train, test]
    names, notes = train.class_names, origin.notes
    if naming == "labels":
        renamed = by_value(name for split in present for name in split.class_names)
        present = [_renamed(split, renamed) for split in present]
    if naming != "declared":
        every = dict.fromkeys(name for split in present for name in split.class_names)
        names, order_notes = in_order(every, origin.where)
        notes += order_notes + (_gap_note(names, origin.where) if naming == "labels" else ())
    if len(names) < 2:
        what = "class folders" if naming == "folders" else "classes"
        got = f"only {names[0]}" if names else "none"
        raise UserError(f"expected at least 2 {what} in {train.where}, got {got}")
    parts: list[Labelled] = []
    left_out: list[str] = []
    for split in present:
        labelled, bad = _readable(split, names, on_bad_image, naming)
        parts.append(labelled)
        left_out += bad
    if len(parts) == 1:
        held = hold_out(parts[0], names, origin.where, origin.instead)
        return Parts(held[0], held[1], names, tuple(left_out), (*notes, held[2]))
    return Parts(parts[0], parts[1], names, tuple(left_out), notes)


def _renamed(split: Split, names: dict[str, str]) -> Split:
    """Give classes other names; several may become one."""
    merged: dict[str, int] = {}
    positions = [merged.setdefault(names[name], len(merged)) for name in split.class_names]
    labels = np.array(positions, dtype=np.int64)[split.labels]
    return replace(split, labels=labels, class_names=tuple(merged))


def _gap_note(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Say so where labels are numbers, but not positions."""
    numbered = by_value(names)
    if all(name.lstrip("-").isdigit() for name in numbered.values()):
        for position, name in enumerate(names):
            if name != str(position):
                return (
                    f"the labels of {where} are not 0 to {len(names) - 1} without a gap: "
                    f"classes are the {len(names)} numbers that occur, in their order",
                )
    return ()


def _readable(
    split: Split, names: Sequence[str], on_bad_image: OnBadImage, naming: Naming
) -> tuple[Labelled, tuple[str, ...]]:
    """Number the classes as in `names`; leave unreadable images out, if that is allowed."""
    labels = split.labels
    if naming != "declared":
        ids = {name: number for number, name in enumerate(names)}
        labels = np.array([ids[name] for name in split.class_names], dtype=np.int64)[labels]
    images, bad = Labelled(split.images, labels), tuple[str, ...]()
    if on_bad_image == "skip" and isinstance(split.images, Pictures):
        good, bad = split.images.readable()
        images = images.take(good)
    return images, bad
