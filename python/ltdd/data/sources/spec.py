"""Read what stands behind the kind in ``--data``: a place, and options in brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ltdd.data.reading.archives import is_archive, unpack
from ltdd.data.reading.decoded_cache import cache_folder
from ltdd.data.reading.image_files import Folder
from ltdd.engine.machine.surroundings import user_path
from ltdd.errors import UserError

_BRACKETS = re.compile(r"\[(\w+)=([^\[\]]*)\](?=$|[@#\[])")
_FORMS = {"levels": "levels=N", "columns": "columns=IMAGE,LABEL"}
_OPTIONS = {"imagefolder": ("levels",), "list": ("columns",), "hf": ("columns",)}
_MOST_LEVELS = 9


@dataclass(frozen=True)
class Spec:
    """The place of a source, and its options.

    Attributes:
        place: what is left of the text without options.
        levels: how many folders down the classes are; None if not given.
        columns: names of the columns of images and labels, of the first alone, or none.
    """

    place: str
    levels: int | None = None
    columns: tuple[str, ...] = ()


def read_spec(kind: str, text: str) -> Spec:
    """Take the options off: ``PATH[levels=2]``, ``FILE[columns=image,label]@ROOT``.

    Raises:
        UserError: an option is unknown, or its value is not usable.
    """
    allowed = _OPTIONS.get(kind, ())
    # A name may hold brackets itself.
    found = [] if user_path(text).exists() else _BRACKETS.findall(text)
    levels: int | None = None
    columns: tuple[str, ...] = ()
    for name, value in found:
        if name not in allowed:
            shapes = ", ".join(f"[{_FORMS[option]}]" for option in allowed) or "no options"
            raise UserError(f"expected {shapes} behind {kind}:, got [{name}={value}]")
        if name == "levels":
            levels = _levels(value)
        else:
            columns = _columns(value)
    return Spec(_BRACKETS.sub("", text) if found else text, levels, columns)


def given_folder(path: Path) -> Folder:
    """Return a folder, or the content of an archive, which goes by the archive's name.

    Raises:
        UserError: an archive is damaged or unsafe, or cannot be unpacked.
    """
    if is_archive(path):
        return Folder(unpack(path, cache_folder() / "archives"), str(path))
    return Folder(path, str(path))


def _levels(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= _MOST_LEVELS):
        raise UserError(f"expected [levels=N] with N from 1 to {_MOST_LEVELS}, got {value!r}")
    return int(value)


def _columns(value: str) -> tuple[str, ...]:
    columns = tuple(name.strip() for name in value.split(","))
    if not 1 <= len(columns) <= 2 or not all(columns) or len(set(columns)) < len(columns):
        raise UserError(
            f"expected [columns=IMAGE,LABEL], or [columns=IMAGE] alone, got [columns={value}]"
        )
    return columns
