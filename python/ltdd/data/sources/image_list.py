"""``list:TRAIN[,TEST][@ROOT]``: files named by a list, as CSV, COCO's JSON or ImageNet-LT's lines.

CSV has a header with ``path`` and ``label``, and ``split`` if one file lists several parts; other
columns are ignored, and other names are given as ``[columns=IMAGE,LABEL]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ltdd.config import OnBadImage
from ltdd.data.reading.archives import is_archive
from ltdd.data.reading.image_files import Files, Folder
from ltdd.data.reading.image_source import Parts
from ltdd.data.sources.coco import read_coco
from ltdd.data.sources.file_lookup import FileLookup
from ltdd.data.sources.label_file import Entry, LabelFile
from ltdd.data.sources.label_table import read_text
from ltdd.data.sources.spec import Spec, given_folder
from ltdd.data.splitting.parts import Origin, Split, labelled_by, parts_of
from ltdd.data.splitting.splits import choose_splits, split_kind
from ltdd.engine.machine.surroundings import user_path
from ltdd.errors import UserError


def image_list(spec: Spec, on_bad_image: OnBadImage) -> Parts:
    """Read one list or two; paths are relative to ROOT, by default to the folder of their list.

    If all labels are whole numbers they are ordered as such, otherwise they are names.

    Raises:
        UserError: names the list and the line.
    """
    lists, given = _lists(spec.place)
    roots = [given or Folder(path.parent, str(path.parent)) for path in lists]
    read = [_read(path, spec.columns, root.path) for path, root in zip(lists, roots, strict=True)]
    notes = tuple(note for file in read for note in file.notes)
    train, test, where = read[0].entries, None, str(lists[0])
    places = [str(path) for path in lists]
    if len(read) == 2:
        _check_split(read[0], ("train",))
        _check_split(read[1], ("test", "val"))
        test = read[1].entries
    elif train[0].split:
        groups: dict[str, list[Entry]] = {}
        spelled: dict[str, str] = {}
        for entry in train:
            # Rows of val and of validation are one split.
            name = spelled.setdefault(split_kind(entry.split) or entry.split, entry.split)
            groups.setdefault(name, []).append(entry)
        chosen = choose_splits(dict.fromkeys(groups, True), where)
        train, test = groups[chosen.train], groups[chosen.test] if chosen.test else None
        places = [f"split {split} of {where}" for split in (chosen.train, chosen.test)]
        notes += chosen.notes
    lookups = [FileLookup(root) for root in roots]
    splits = [
        _split(entries, lookup, place, on_bad_image)
        for entries, lookup, place in (
            (train, lookups[0], places[0]),
            (test, lookups[-1], places[-1]),
        )
        if entries is not None
    ]
    origin = Origin(where, f"list:{where},TEST", notes)
    return parts_of(splits[0], splits[1] if test else None, origin, on_bad_image, "labels")


def _lists(place: str) -> tuple[list[Path], Folder | None]:
    """Split ``TRAIN[,TEST][@ROOT]``; names of existing lists may hold commas and at signs."""
    if user_path(place).is_file():
        return [user_path(place)], None
    names, root = place, ""
    if "@" in place and not all(user_path(name).is_file() for name in place.split(",")):
        names, _, root = place.rpartition("@")
    lists = [user_path(name) for name in names.split(",")]
    if user_path(names).is_file():
        lists = [user_path(names)]
    if len(lists) > 2:
        raise UserError(f"expected list:TRAIN[,TEST][@ROOT], got {len(lists)} lists in {place!r}")
    for path in lists:
        if not path.is_file():
            what = "a folder" if path.is_dir() else "nothing there"
            raise UserError(f"expected a list of images at {path}, got {what}")
    folder = user_path(root)
    if root and not (folder.is_dir() or is_archive(folder)):
        raise UserError(f"expected the folder of the images at {folder}, got no folder")
    return lists, given_folder(folder) if root else None


def _read(path: Path, columns: Sequence[str], root: Path) -> LabelFile:
    if path.suffix.lower() == ".json":
        if columns:
            raise UserError(f"expected columns of a table, got {path}, which is JSON")
        read = read_coco(path)
    else:
        read = read_text(path, columns, root)
    if not read.entries:
        raise UserError(f"expected images in {path}, got none")
    return read


def _check_split(file: LabelFile, kinds: Sequence[str]) -> None:
    """Check that a list given for one part has no images of the other."""
    for entry in file.entries:
        if entry.split and split_kind(entry.split) not in kinds:
            raise UserError(
                f"{entry.where}: expected split {' or '.join(kinds)} in this list, got "
                f"{entry.split!r}; give list:{file.path} alone to use its splits"
            )


def _split(
    entries: Sequence[Entry], lookup: FileLookup, where: str, on_bad_image: OnBadImage
) -> Split:
    paths = []
    for entry in entries:
        found = lookup.find(entry.path, entry.where)
        if found is None and on_bad_image == "fail":
            raise UserError(
                f"{entry.where}: expected an image at {lookup.shown(entry.path)}, got nothing, nor "
                f"one of this name below {lookup.root}; @ROOT behind the list names another folder"
            )
        paths.append(found or lookup.path_of(entry.path))
    files = Files(tuple(paths), lookup.root)
    return labelled_by(files, [entry.label for entry in entries], where)
