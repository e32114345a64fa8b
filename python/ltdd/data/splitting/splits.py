"""Choose the splits that are trained and tested on, in the same way for every source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ltdd.errors import UserError

_ALIASES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
}
_KINDS = {alias: kind for kind, aliases in _ALIASES.items() for alias in aliases}
# As in training_set, Test Images, train2017 and val-data.
_TAIL = re.compile(r"(?:[-_ ]*(?:set|data|dataset|images?|imgs?|split|(?:19|20)[0-9]{2}))+")


def split_kind(name: str) -> str | None:
    """Return ``train``, ``test`` or ``val`` for a name of that split in any spelling, else None."""
    low = name.strip().lower()
    if low in _KINDS:
        return _KINDS[low]
    for alias, kind in _KINDS.items():
        if low.startswith(alias) and _TAIL.fullmatch(low[len(alias) :]):
            return kind
    return None


@dataclass(frozen=True)
class Chosen:
    """Names of splits as the source gives them.

    Attributes:
        train: the one to train on.
        test: the one to test on; None if a part of the other is to be held out.
        notes: one for every split that is left unused.
    """

    train: str
    test: str | None
    notes: tuple[str, ...]


def choose_splits(labelled: Mapping[str, bool], where: str) -> Chosen:
    """Choose the training split, and test, else val, else none to test on.

    Args:
        labelled: name of every split, and whether its images have labels.
        where: the place of the data, for messages.

    Raises:
        UserError: there is no training split, or two of them, or two to choose the test part from.
    """
    train = _only("train", labelled, where)
    if train is None:
        raise UserError(f"expected a split train in {where}, got {', '.join(labelled) or 'none'}")
    if not labelled[train]:
        raise UserError(f"expected labels for split {train} of {where}, got none")
    with_labels = {name: True for name, known in labelled.items() if known}
    test = _only("test", with_labels, where) or _only("val", with_labels, where)
    notes = []
    for name, known in labelled.items():
        if name not in (train, test):
            why = "" if known else ": it has no labels"
            notes.append(f"split {name} of {where} is neither trained nor tested on{why}")
    return Chosen(train, test, tuple(notes))


def _only(kind: str, names: Mapping[str, bool], where: str) -> str | None:
    """Return the one split of a kind, None if there is none."""
    found = [name for name in names if split_kind(name) == kind]
    if len(found) > 1:
        raise UserError(f"expected one split {kind} in {where}, got {' and '.join(found)}")
    return found[0] if found else None
