"""``list:TRAIN[,TEST][@ROOT]``: files named by a list, as CSV or in the form of ImageNet-LT.

CSV has a header with ``path`` and ``label``, and ``split`` if one file lists several parts; other
columns are ignored. The other form has no header: a path, a space and a label on every line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltdd.config import OnBadImage
from ltdd.data.reading.held_out import hold_out
from ltdd.data.reading.image_files import Files
from ltdd.data.reading.image_source import Labelled, Parts
from ltdd.engine.surroundings import user_path
from ltdd.errors import UserError

_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}

_MOST_GAPS = 10  # numbers up to the largest label, for each that occurs


@dataclass(frozen=True)
class _Entry:
    """One image of a list.

    Attributes:
        where: list and line, for messages.
        path: the image.
        label: as written.
        split: ``train``, ``test``, ``val`` or nothing.
    """

    where: str
    path: Path
    label: str
    split: str = ""


def image_list(place: str, on_bad_image: OnBadImage) -> Parts:
    """Read one list or two; paths are relative to ROOT, by default to the folder of their list.

    If all labels are whole numbers they are the classes 0 to K - 1, otherwise they are names, and
    classes are ordered by name.

    Raises:
        UserError: names the list and the line.
    """
    lists, root = _lists(place)
    parts = [list(_entries(path, root or path.parent)) for path in lists]
    for path, entries in zip(lists, parts, strict=True):
        if not entries:
            raise UserError(f"expected images in {path}, got none")
    notes: tuple[str, ...] = ()
    train, test = parts[0], parts[1] if len(parts) > 1 else []
    if len(parts) == 1 and train[0].split:
        by_split = {name: [e for e in train if e.split == name] for name in _SPLITS.values()}
        train, test = by_split["train"], by_split["test"] or by_split["val"]
        if not train:
            raise UserError(f"expected images of split train in {lists[0]}, got none")
        if by_split["test"] and by_split["val"]:
            count = len(by_split["val"])
            notes = (f"{count} images of split val are neither trained nor tested on",)
    names = _class_names(train, test)
    train_images, bad = _labelled(train, names, on_bad_image)
    if not test:
        instead = f"list:{lists[0]},TEST"
        train_images, test_images, note = hold_out(train_images, names, str(lists[0]), instead)
        return Parts(train_images, test_images, names, bad, (note,))
    test_images, bad_test = _labelled(test, names, on_bad_image)
    return Parts(train_images, test_images, names, bad + bad_test, notes)


def _lists(place: str) -> tuple[list[Path], Path | None]:
    """Split ``TRAIN[,TEST][@ROOT]``; names of existing lists may hold commas and at signs."""
    whole = user_path(place)
    if whole.is_file():
        return [whole], None
    names, root = place, ""
    if "@" in place and not all(user_path(n).is_file() for n in place.split(",")):
        names, _, root = place.rpartition("@")
    lists = [user_path(name) for name in names.split(",")]
    if len(lists) > 2:
        raise UserError(f"expected list:TRAIN[,TEST][@ROOT], got {len(lists)} lists in {place!r}")
    for path in lists:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "nothing there"
            raise UserError(f"expected a list of images at {path}, got {what}")
    folder = user_path(root) if root else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"expected the folder of the images at {folder}, got no folder")
    return lists, folder


def _entries(path: Path, root: Path) -> Iterator[_Entry]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            columns = [name.strip().lower() for name in next(csv.reader([first]), [])]
            if "path" in columns or "label" in columns:
                yield from _csv_entries(path, root, file, columns)
            else:
                yield from _plain_entries(path, root, file)
    except OSError as error:
        raise UserError(f"expected a readable list at {path}, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"expected UTF-8 text in {path}, got {error.reason}") from error
    except csv.Error as error:
        raise UserError(f"expected CSV in {path}, got {error}") from error


def _csv_entries(
    path: Path, root: Path, file: Iterable[str], columns: Sequence[str]
) -> Iterator[_Entry]:
    for name in ("path", "label"):
        if columns.count(name) != 1:
            raise UserError(
                f"expected columns path and label, and perhaps split, in {path}, got "
                f"{', '.join(columns)}"
            )
    reader = csv.reader(file)
    next(reader)
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if not row:
            continue
        if len(row) != len(columns):
            raise UserError(f"{where}: expected {len(columns)} columns, got {len(row)}")
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=True))
        split = cells.get("split", "train" if "split" in columns else "").lower()
        if "split" in columns and split not in _SPLITS:
            raise UserError(f"{where}: expected split train, val or test, got {split!r}")
        yield _entry(where, root, cells["path"], cells["label"], _SPLITS.get(split, ""))


def _plain_entries(path: Path, root: Path, file: Iterable[str]) -> Iterator[_Entry]:
    for number, line in enumerate(file, 1):
        where = f"{path} line {number}"
        words = line.strip().rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2:
            raise UserError(f"{where}: expected a path, a space and a label, got {words[0]!r}")
        yield _entry(where, root, *words)


def _entry(where: str, root: Path, path: str, label: str, split: str = "") -> _Entry:
    if not path or not label or "\0" in path:
        raise UserError(f"{where}: expected a path and a label, got {path!r} and {label!r}")
    return _Entry(where, root / path, label, split)


def _class_names(train: Sequence[_Entry], test: Sequence[_Entry]) -> tuple[str, ...]:
    """Return the classes of both parts in order."""
    labels = {entry.label for part in (train, test) for entry in part}
    if not all(_is_number(label) for label in labels):
        found = tuple(sorted(labels))
    else:
        found = tuple(str(number) for number in range(max(map(int, labels)) + 1))
        _check_numbers(train, test, len(found))
    if len(found) < 2:
        raise UserError(f"expected at least 2 classes in the list, got {len(found)}")
    return found


def _check_numbers(train: Sequence[_Entry], test: Sequence[_Entry], count: int) -> None:
    """Refuse numbers of which most are missing: they are something else than classes."""
    entries = [*train, *test]
    present = {int(entry.label) for entry in entries}
    if count > _MOST_GAPS * len(present):
        absent = next(number for number in range(count) if number not in present)
        largest = max(entries, key=lambda entry: int(entry.label))
        raise UserError(
            f"expected labels 0 to K - 1 without a gap, got none of {absent} but "
            f"{largest.label} in {largest.where}"
        )


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) < 10


def _labelled(
    entries: Sequence[_Entry], names: Sequence[str], on_bad_image: OnBadImage
) -> tuple[Labelled, tuple[str, ...]]:
    numbers = all(_is_number(name) for name in names)
    ids = {name: number for number, name in enumerate(names)}
    labels = [int(e.label) if numbers else ids[e.label] for e in entries]
    files = Files(tuple(str(entry.path) for entry in entries))
    images = Labelled(files, np.asarray(labels, dtype=np.int64))
    if on_bad_image == "fail":
        for entry in entries:
            if not entry.path.exists():
                raise UserError(
                    f"{entry.where}: expected an image at {entry.path}, got nothing; "
                    "--on-bad-image skip leaves out what cannot be read"
                )
        return images, ()
    good, bad = files.readable()
    return images.take(good), bad
