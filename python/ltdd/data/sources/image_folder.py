"""``imagefolder:PATH``: a folder of images for every class, possibly in an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltdd.config import OnBadImage
from ltdd.data.reading.archives import is_archive, unpacked
from ltdd.data.reading.decoded_cache import cache_folder
from ltdd.data.reading.held_out import hold_out
from ltdd.data.reading.image_files import Files, class_folders, list_files
from ltdd.data.reading.image_source import Labelled, Parts
from ltdd.engine.surroundings import user_path
from ltdd.errors import UserError


def image_folder(path: str, on_bad_image: OnBadImage) -> Parts:
    """List ``PATH/train/<class>/`` and ``PATH/test/<class>/``, or ``PATH/<class>/`` alone.

    Raises:
        UserError: folders are missing.
    """
    root = user_path(path)
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
    train, trained, bad_train = _list_files(parts["train"], on_bad_image)
    test, tested, bad_test = _list_files(held_out, on_bad_image, fewest=1)
    names = tuple(sorted({*trained, *tested}))
    train, test = _renamed(train, trained, names), _renamed(test, tested, names)
    notes = [
        f"{folder} is neither trained nor tested on"
        for name, folder in parts.items()
        if name == "val" and folder != held_out
    ]
    return Parts(train, test, names, bad_train + bad_test, tuple(notes))


def _list_files(
    root: Path, on_bad_image: OnBadImage, fewest: int = 2
) -> tuple[Labelled, tuple[str, ...], tuple[str, ...]]:
    """List the images and classes of a folder, and what was left out of it, if that is allowed."""
    listed = list_files(root, fewest)
    files, names = Files(listed.paths), listed.class_names
    images = Labelled(files, listed.labels)
    if on_bad_image == "fail":
        return images, names, ()
    good, bad = files.readable()
    return images.take(good), names, bad


def _renamed(images: Labelled, own: Sequence[str], names: Sequence[str]) -> Labelled:
    """Number classes as in another list of names."""
    number = {name: label for label, name in enumerate(names)}
    numbers = np.asarray([number[name] for name in own], dtype=np.int64)
    return Labelled(images.images, numbers[images.labels])
