"""Label files as text: CSV with a header, one-hot tables, lines of path and label."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltdd.data.sources.label_file import Entry, LabelFile
from ltdd.data.splitting.splits import split_kind
from ltdd.errors import UserError

# Names of columns in published label files, best first: the first row with exactly one is taken.
_IMAGE_NAMES = (
    ("path",),
    (
        *("filepath", "filepaths", "file_path", "image_path", "img_path", "file", "filename"),
        *("file_name", "image_file", "image_name", "img_name"),
    ),
    ("image", "images", "img", "image_id", "img_id", "imageid", "id_code"),
    ("id",),
)
_LABEL_NAMES = (
    ("label",),
    (
        *("labels", "class", "class_name", "category", "category_name", "species", "breed"),
        *("target", "dx", "diagnosis", "level"),
    ),
    ("class_id", "class id", "label_id", "category_id"),
)
_NAMES = {name for group in (*_IMAGE_NAMES, *_LABEL_NAMES) for name in group}
_SPLIT_NAMES = ("split", "set", "subset", "partition", "phase", "data set", "data_set")
_ONE_HOT = {"0": False, "0.0": False, "1": True, "1.0": True}


@dataclass(frozen=True)
class _Table:
    """A header and the rows below it.

    Attributes:
        path: the file.
        header: names of its columns in small letters.
        rows: line number and cells.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[tuple[int, list[str]]]

    def column(self, number: int) -> Iterator[str]:
        return (cells[number] for _, cells in self.rows)


def read_text(path: Path, columns: Sequence[str], root: Path) -> LabelFile:
    """Read a table or lines.

    Args:
        path: the file.
        columns: names of the columns of images and labels, of the first alone, or none.
        root: where relative paths start: tells a first row from a header.

    Raises:
        UserError: names the file and the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            separator, cells = _cells(first)
            header = tuple(cell.lower() for cell in cells)
            if columns or _known(header):
                table = _Table(path, header, list(_rows(path, file, separator, len(cells))))
                return _from_table(table, [name.lower() for name in columns])
            there = [n for n, cell in enumerate(cells) if os.path.isfile(root / cell)]
            if len(cells) == 2 and there:
                return LabelFile(path, list(_without_header(path, file, separator, there[0])))
            words = first.rsplit(maxsplit=1)
            a_line = len(words) == 2 and os.path.exists(root / words[0].strip())
            if (len(cells) > 1 and not a_line) or _NAMES & set(header):
                raise UserError(_wanted(path, header))
            return LabelFile(path, list(_lines(path, file)))
    except OSError as error:
        raise UserError(f"expected a readable list at {path}, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"expected UTF-8 text in {path}, got {error.reason}") from error
    except csv.Error as error:
        raise UserError(f"expected CSV in {path}, got {error}") from error


def _cells(line: str) -> tuple[str, list[str]]:
    """Return the separator that makes most cells of a line, and the cells."""
    split = {
        separator: [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
        for separator in ",;\t"
    }
    best = max(split, key=lambda separator: len(split[separator]))
    return best, split[best]


def _known(header: Sequence[str]) -> bool:
    """Return whether the first line names columns of images or of labels."""
    return len(header) > 1 and not _NAMES.isdisjoint(header)


def _rows(
    path: Path, file: Iterable[str], separator: str, width: int, skipped: int = 1
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=separator)
    for number, row in enumerate(reader):
        if number < skipped or not row:
            continue
        if len(row) != width:
            line = f"{path} line {reader.line_num}"
            raise UserError(f"{line}: expected {width} columns, got {len(row)}")
        yield reader.line_num, [cell.strip() for cell in row]


def _from_table(table: _Table, asked: Sequence[str]) -> LabelFile:
    header = table.header
    image = _position(table, asked[0]) if asked else _by_name(table, _IMAGE_NAMES)
    split = _split_column(table, (image,))
    if len(asked) == 2:
        label: int | None = _position(table, asked[1])
    elif any(name in header for names in _LABEL_NAMES for name in names):
        label = _by_name(table, _LABEL_NAMES)
    else:
        label = None
    if label is None:
        return _one_hot(table, image, split)
    entries = [
        _entry(
            table.path, line, cells[image], cells[label], None if split is None else cells[split]
        )
        for line, cells in table.rows
    ]
    read = (header[image], header[label])
    note = f"columns {read[0]} and {read[1]} of {table.path} are read"
    return LabelFile(table.path, entries, () if asked or read == ("path", "label") else (note,))


def _position(table: _Table, name: str) -> int:
    if table.header.count(name) != 1:
        many = "one column" if name in table.header else "a column"
        raise UserError(f"expected {many} {name!r} in {table.path}, got {', '.join(table.header)}")
    return table.header.index(name)


def _by_name(table: _Table, groups: Sequence[Sequence[str]]) -> int:
    for names in groups:
        found = [number for number, name in enumerate(table.header) if name in names]
        if len(found) > 1:
            break
        if found:
            return found[0]
    raise UserError(_wanted(table.path, table.header))


def _wanted(path: Path, header: Sequence[str]) -> str:
    return (
        f"expected columns path and label, and perhaps split, in {path}, got {', '.join(header)}; "
        f"name others with 'list:{path}[columns=IMAGE,LABEL]'"
    )


def _split_column(table: _Table, taken: Sequence[int]) -> int | None:
    """Find the column of splits; names other than ``split`` are believed if it has ``train``."""
    for name in _SPLIT_NAMES:
        if name not in table.header or table.header.index(name) in taken:
            continue
        number = table.header.index(name)
        if name == "split" or "train" in map(split_kind, set(table.column(number))):
            return number
    return None


def _one_hot(table: _Table, image: int, split: int | None) -> LabelFile:
    """Read a column of 0 and 1 for every class."""
    classes = [n for n in range(len(table.header)) if n not in (image, split)]
    if len(classes) < 2 or not all(set(table.column(n)) <= _ONE_HOT.keys() for n in classes):
        raise UserError(_wanted(table.path, table.header))
    with table.path.open(encoding="utf-8-sig", newline="") as file:
        names = _cells(file.readline())[1]  # as written: they are the names of the classes
    entries = []
    for line, cells in table.rows:
        marked = [names[n] for n in classes if _ONE_HOT[cells[n]]]
        if len(marked) != 1:
            raise UserError(
                f"{table.path} line {line}: expected one class of {cells[image]}, marked by 1, got "
                f"{' and '.join(marked) or 'none'}; images of several classes are not read"
            )
        part = None if split is None else cells[split]
        entries.append(_entry(table.path, line, cells[image], marked[0], part))
    counts = Counter(entry.label for entry in entries)
    unused = [names[n] for n in classes if names[n] not in counts]
    notes = [f"the columns of classes of {table.path} are read as one-hot labels"]
    if unused:
        notes.append(f"no image of {table.path} is of class {', '.join(unused)}: left out")
    return LabelFile(table.path, entries, tuple(notes))


def _without_header(path: Path, file: Iterable[str], separator: str, image: int) -> Iterator[Entry]:
    for line, cells in _rows(path, file, separator, 2, skipped=0):
        yield _entry(path, line, cells[image], cells[1 - image])


def _lines(path: Path, file: Iterable[str]) -> Iterator[Entry]:
    for number, line in enumerate(file, 1):
        words = line.strip().rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2:
            raise UserError(
                f"{path} line {number}: expected a path, a space and a label, got {words[0]!r}"
            )
        yield _entry(path, number, *words)


def _entry(path: Path, line: int, image: str, label: str, split: str | None = None) -> Entry:
    where = f"{path} line {line}"
    if not image or not label or "\0" in image:
        raise UserError(f"{where}: expected a path and a label, got {image!r} and {label!r}")
    if split == "":
        raise UserError(f"{where}: expected split train, val or test, got {split!r}")
    return Entry(where, image, label, split or "")
