"""Image files: which files of a folder belong to which class, and files as a source of images."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ltdd.data.reading.decoder import opened
from ltdd.data.reading.image_source import IntArray, Pictures
from ltdd.errors import UserError

_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Files(Pictures):
    """Images in files of their own.

    Attributes:
        paths: as text, which takes less memory than `Path`.
    """

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: IntArray) -> Files:
        """As `Images.take`."""
        return Files(tuple(self.paths[i] for i in positions))

    def opened(self, position: int) -> AbstractContextManager[Image.Image]:
        """Open one file."""
        return opened(Path(self.paths[position]))

    def identity(self) -> str:
        """Hash the path, size and time of change of every file."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                status = os.stat(path)
                version = (status.st_size, status.st_mtime_ns)
            except OSError:
                version = (-1, -1)  # a missing file is named when it is opened
            digest.update(repr((os.path.abspath(path), version)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def name(self, position: int) -> str:
        """Return the path."""
        return self.paths[position]


@dataclass(frozen=True)
class FileList:
    """Image files of a labelled folder.

    Attributes:
        paths: Files in order: classes by name, files by relative path.
        labels: int64 (N,), position of each file's class in `class_names`.
        class_names: Folder names, sorted.
    """

    paths: tuple[str, ...]
    labels: IntArray
    class_names: tuple[str, ...]


def class_folders(root: Path) -> list[Path]:
    """Return the sub-folders of `root` by name; hidden ones are left out.

    Raises:
        UserError: `root` is missing, not a folder or not readable.
    """
    try:
        if not root.is_dir():
            what = "a file" if root.exists() else "nothing there"
            raise UserError(f"expected a folder at {root}, got {what}")
        return sorted(
            (p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")),
            key=lambda p: p.name,
        )
    except OSError as error:
        raise UserError(f"expected a readable folder at {root}, got {error.strerror}") from error


def list_files(root: Path, fewest: int = 2) -> FileList:
    """List the images of `root/<class>/**`; hidden and thumbnail-cache files are left out.

    Args:
        root: the folder.
        fewest: class folders that must be there.

    Raises:
        UserError: there are fewer class folders, or one cannot be read.
    """
    folders = class_folders(root)
    if not folders:
        raise UserError(f"expected one folder per class in {root}, got no folder")
    if len(folders) < fewest:
        raise UserError(f"expected at least 2 class folders in {root}, got only {folders[0].name}")
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in folder.name):
            raise UserError(
                f"expected UTF-8 names of class folders in {root}, without control characters, "
                f"got {folder.name!r}"
            )
        files = sorted(_files_below(folder), key=lambda p: p.relative_to(folder).as_posix())
        paths += map(str, files)
        labels += [label] * len(files)
    return FileList(
        tuple(paths), np.asarray(labels, dtype=np.int64), tuple(f.name for f in folders)
    )


def _files_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders; a link to a folder above is not entered."""
    try:
        status = os.stat(folder)
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"expected a readable folder at {folder}, got {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name in names:
        if name.startswith(".") or name.lower() in _SYSTEM_FILES:
            continue
        path = folder / name
        if path.is_dir():
            yield from _files_below(path, above | {here})
        else:
            yield path
