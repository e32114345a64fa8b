"""Splits in Tiny-ImageNet's form: one folder of images, and a file that names the class of each."""

from __future__ import annotations

from collections import Counter

from ltdd.data.reading.image_files import Files, Folder
from ltdd.data.reading.litter import is_no_image, suffix_of
from ltdd.data.splitting.parts import Split, labelled_by
from ltdd.errors import UserError


def has_annotations(folder: Folder) -> bool:
    """Return whether a folder ``val`` holds ``images`` and ``val_annotations.txt``."""
    return _annotations(folder) in folder.files and "images" in {
        inner.path.name for inner in folder.folders
    }


def annotated_split(folder: Folder) -> tuple[Split, Counter[str]]:
    """Read lines of file and class, tab-separated; further columns, of boxes, are not used.

    Raises:
        UserError: names the line that is none, or whose image is missing.
    """
    images, where = folder.inside("images"), folder.inside(_annotations(folder))
    there = set(images.files)
    labels: dict[str, str] = {}
    try:
        text = where.path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"expected readable UTF-8 text in {where}, got {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) < 2 or not cells[1].strip():
            raise UserError(
                f"{where} line {number}: expected a file, a tab and a class, got {line!r}"
            )
        name, label = cells[0].strip(), cells[1].strip()
        if name not in there:
            raise UserError(
                f"{where} line {number}: expected an image {name} in {images}, got none"
            )
        if labels.setdefault(name, label) != label:
            raise UserError(
                f"{where} line {number}: expected one class of {name}, got {labels[name]!r} and "
                f"{label!r}"
            )
    unlisted = sorted(name for name in there - labels.keys() if not is_no_image(name))
    if unlisted or not labels:
        got = f"none of {unlisted[0]!r}" if unlisted else "none"
        raise UserError(f"expected the classes of all images of {images} in {where}, got {got}")
    paths = tuple(str(images.path / name) for name in labels)
    passed = Counter(suffix_of(name) for name in there - labels.keys())
    return labelled_by(Files(paths, folder), list(labels.values()), str(folder)), passed


def _annotations(folder: Folder) -> str:
    return f"{folder.path.name}_annotations.txt"
