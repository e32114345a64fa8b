"""Image files: which files of a folder belong to which class, and files as a source of images."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ltdd.data.reading.decoder import opened
from ltdd.data.reading.image_source import IntArray, Pictures
from ltdd.data.reading.litter import has_image_suffix, is_litter, is_no_image, suffix_of
from ltdd.errors import UserError


@dataclass(frozen=True)
class Folder:
    """A folder and what it is called to the user: what an archive holds lies elsewhere.

    Attributes:
        path: where it is.
        shown: what messages call it.
    """

    path: Path
    shown: str

    def __str__(self) -> str:
        return self.shown

    def inside(self, name: str) -> Folder:
        """Return a folder in it."""
        return Folder(self.path / name, os.path.join(self.shown, name))

    def shown_path(self, path: str) -> str:
        """Return what a file below it is called to the user."""
        root = str(self.path)
        return self.shown + path.removeprefix(root) if path.startswith(root) else path

    @property
    def folders(self) -> list[Folder]:
        """Its sub-folders by name, without what systems leave behind.

        Raises:
            UserError: it is missing, not a folder or not readable; so do the other two.
        """
        return [self.inside(name) for name in self._content[0]]

    @property
    def files(self) -> list[str]:
        """Names of its files, without what systems leave behind."""
        return self._content[1]

    @property
    def images(self) -> list[str]:
        """Names of its files that have the suffix of an image."""
        return [name for name in self.files if has_image_suffix(name)]

    @cached_property
    def _content(self) -> tuple[list[str], list[str]]:
        try:
            if not self.path.is_dir():
                what = "a file" if self.path.exists() else "nothing there"
                raise UserError(f"expected a folder at {self}, got {what}")
            folders: list[str] = []
            files: list[str] = []
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if not is_litter(entry.name):
                        # os.path.isdir does not fail on a link to itself.
                        (folders if os.path.isdir(entry.path) else files).append(entry.name)
        except OSError as error:
            raise UserError(
                f"expected a readable folder at {self}, got {error.strerror}"
            ) from error
        return sorted(folders), sorted(files)


@dataclass(frozen=True)
class Files(Pictures):
    """Images in files of their own.

    Attributes:
        paths: as text, which takes less memory than `Path`.
        root: a folder above them that is called otherwise to the user; None if none is.
    """

    paths: tuple[str, ...]
    root: Folder | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, positions: IntArray) -> Files:
        """As `Images.take`."""
        return Files(tuple(self.paths[i] for i in positions), self.root)

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
        path = self.paths[position]
        return self.root.shown_path(path) if self.root else path


@dataclass(frozen=True)
class FileList:
    """Image files of a labelled folder.

    Attributes:
        paths: Files in order: classes by name, files by relative path.
        labels: int64 (N,), position of each file's class in `class_names`.
        class_names: Folder names, sorted as text; a class may have no file.
        passed_over: Suffixes of files that are no images, and how many there are of each.
    """

    paths: tuple[str, ...]
    labels: IntArray
    class_names: tuple[str, ...]
    passed_over: Counter[str]


def list_files(root: Folder, levels: int = 1) -> FileList:
    """List the images of `root/<class>/**`, or with more levels of `root/<outer>/<class>/**`.

    Raises:
        UserError: there are no class folders, files where folders of classes are expected, or a
            class folder with files of which none is an image.
    """
    paths: list[str] = []
    labels: list[int] = []
    names: list[str] = []
    passed_over: Counter[str] = Counter()
    for name, folder in _class_folders(root, levels):
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise UserError(
                f"expected UTF-8 names of class folders in {root}, without control characters, "
                f"got {name!r}"
            )
        below = list(files_below(folder))
        files = [path for path in below if not is_no_image(path)]
        others = Counter(suffix_of(path) for path in below if is_no_image(path))
        if others and not files:
            kinds = ", ".join(others)
            raise UserError(
                f"expected images in every class folder, got none in {folder}, only {kinds}"
            )
        passed_over += others
        prefix = len(str(folder.path))
        files.sort(key=lambda path: path[prefix:].replace(os.sep, "/"))
        paths += files
        labels += [len(names)] * len(files)
        names.append(name)
    return FileList(tuple(paths), np.array(labels, dtype=np.int64), tuple(names), passed_over)


def _class_folders(root: Folder, levels: int) -> Iterator[tuple[str, Folder]]:
    if not root.folders:
        raise UserError(f"expected one folder per class in {root}, got no folder")
    for folder in root.folders:
        if levels == 1:
            yield folder.path.name, folder
            continue
        if folder.images:
            raise UserError(
                f"expected folders of classes in {folder}, got a file {folder.images[0]!r}"
            )
        for name, inner in _class_folders(folder, levels - 1):
            yield f"{folder.path.name}/{name}", inner


def files_below(folder: Folder, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield paths of the files in a folder and below; a link to a folder above is not entered.

    Raises:
        UserError: a folder is not readable.
    """
    status = os.stat(folder.path) if folder.path.is_dir() else None
    here = (status.st_dev, status.st_ino) if status else (0, 0)
    if here in above:
        return
    for name in folder.files:
        yield str(folder.path / name)
    for inner in folder.folders:
        yield from files_below(inner, above | {here})
