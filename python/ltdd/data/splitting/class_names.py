"""The order of classes, the same for every source: whole numbers by value, else text."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,15})(\.0*)?\s*")


def whole_number(name: str) -> int | None:
    """Return the value of ``7``, ``07`` or ``7.0``; None for anything else."""
    found = _WHOLE.fullmatch(name)
    return int(found[1]) if found else None


def by_value(names: Iterable[str]) -> dict[str, str]:
    """Map labels to class names: ``07`` and ``7.0`` are class ``7`` if all are whole numbers."""
    values = {name: whole_number(name) for name in names}
    if None in values.values():
        return {name: name for name in values}
    return {name: str(value) for name, value in values.items()}


def in_order(names: Iterable[str], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sort class names by value if all are whole numbers, otherwise as text.

    Args:
        names: different names.
        where: the place of the data, for the note.

    Returns:
        Names in class order, and a note if some are numbers that are not ordered as such.
    """
    values = {name: whole_number(name) for name in names}
    numbers = {name: value for name, value in values.items() if value is not None}
    if len(numbers) == len(values):
        return tuple(sorted(numbers, key=lambda name: (numbers[name], name))), ()
    ordered = tuple(sorted(values))
    if not numbers:
        return ordered, ()
    other = next(name for name in ordered if name not in numbers)
    note = (
        f"classes of {where} are ordered as text, because {other!r} is no whole number like "
        f"{next(iter(sorted(numbers)))!r}"
    )
    return ordered, (note,)
