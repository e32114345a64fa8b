"""``imagefolder:PATH``: a folder of images for every class, possibly in an archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltdd.config import OnBadImage
from ltdd.data.reading.archives import is_archive, unpacked
from ltdd.data.reading.decoded_cache import cache_folder
from ltdd.data.reading.held_out import hold_out
from ltdd.data.reading.image_files import Files, class_folders, list_files
from ltdd.data.reading.image_source import Labelled, Parts
from ltdd.errors import UserError


def image_folder(path: str, on_bad_image: OnBadImage) -> Parts:
    """List ``PATH/train/<class>/`` and ``PATH/test/<class>/``, or ``PATH/<class>/`` alone.

    Raises:
        UserError: folders are missing, or differ in their classes.
    """
    root = Path(path).expanduser()
    if is_archive(root):
        root = unpacked(root, cache_folder() / "archives")
    folders = {folder.name: folder for folder in class_folders(root)}
    # A class may be called "train"; a split folder is one that holds folders itself.
    parts = {
        name: folders[name]
        for name in ("train", "test", "val")
        if name in folders and class_folders(folders[name])
    }
    if not parts:
        images, names, bad = _list_files(root, on_bad_image)
        instead = f"{root / 'train'} and {root / 'test'}"
        train, test, note = hold_out(images, names, str(root), instead)
        return Parts(train, test, names, bad, (note,))
    held_out = parts.get("test") or parts.get("val")
    if "train" not in parts or held_out is None:
        present = next(iter(parts.values()))
        missing = "test or val" if "train" in parts else "train"
        raise UserError(
            f"expected {root / missing} with class folders beside {present}, got none; "
            f"to hold out a test part of one folder, give that folder"
        )
    _check_same_classes(parts["train"], held_out)
    train, names, bad_train = _list_files(parts["train"], on_bad_image)
    test, _, bad_test = _list_files(held_out, on_bad_image)
    notes = [
        f"{folder} is neither trained nor tested on"
        for name, folder in parts.items()
        if name == "val" and folder != held_out
    ]
    return Parts(train, test, names, bad_train + bad_test, tuple(notes))


def _list_files(
    root: Path, on_bad_image: OnBadImage
) -> tuple[Labelled, tuple[str, ...], tuple[str, ...]]:
    """List the images and classes of a folder, and what was left out of it, if that is allowed."""
    listed = list_files(root)
    files, names = Files(listed.paths), listed.class_names
    images = Labelled(files, listed.labels)
    if on_bad_image == "fail":
        return images, names, ()
    good, bad = files.readable()
    present = np.bincount(listed.labels[good], minlength=len(names))
    if present.min() == 0:
        empty = root / names[int(present.argmin())]
        raise UserError(f"expected a readable image in every class folder, got none in {empty}")
    return images.take(good), names, bad


def _check_same_classes(train: Path, test: Path) -> None:
    names = {folder: {p.name for p in class_folders(folder)} for folder in (train, test)}
    for here, there in ((test, train), (train, test)):
        missing = sorted(names[here] - names[there])
        if missing:
            raise UserError(
                f"expected the same classes in {train} and {test}, got {missing[0]!r} only in "
                f"{here}"
            )
