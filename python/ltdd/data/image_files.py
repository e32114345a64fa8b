"""Folders of image files: which files belong to which class, and how a file becomes pixels."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ltdd.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
"""The only decoders that may see a file; its content decides, not its suffix."""
MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file may unpack to gigabytes."""

_LISTED = 10  # files that one message names
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FileList:
    """Image files of a labelled folder.

    Attributes:
        paths: Files in order: classes by name, files by relative path.
        labels: int64 (N,), position of each file's class in `class_names`.
        class_names: Folder names, sorted.
    """

    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]

    def take(self, positions: npt.NDArray[np.int64]) -> FileList:
        """Return the files at these positions, in their order."""
        return FileList(
            tuple(self.paths[i] for i in positions), self.labels[positions], self.class_names
        )


@dataclass(frozen=True)
class Header:
    """What a file says about itself before its pixels are decoded."""

    width: int
    height: int
    grey: bool


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


def list_files(root: Path) -> FileList:
    """List the images of `root/<class>/**`; hidden and thumbnail-cache files are left out.

    Raises:
        UserError: no class folders, only one, or a class folder without files.
    """
    folders = class_folders(root)
    if not folders:
        raise UserError(f"expected one folder per class in {root}, got no folder")
    if len(folders) == 1:
        raise UserError(f"expected at least 2 class folders in {root}, got only {folders[0].name}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in folder.name):
            raise UserError(
                f"expected UTF-8 names of class folders in {root}, without control characters, "
                f"got {folder.name!r}"
            )
        files = sorted(_files_below(folder), key=lambda p: p.relative_to(folder).as_posix())
        if not files:
            raise UserError(f"expected images in every class folder, got none in {folder}")
        paths += files
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


def readable_files(files: FileList) -> tuple[FileList, tuple[str, ...]]:
    """Decode every file once; return those that are images, and what is wrong with the others.

    Returns:
        The files that can be read, and ``path (reason)`` of every other one.
    """
    outcomes = _attempt(lambda path: _read_image(path, 8, 3), files.paths)
    good = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
    bad = tuple(
        f"{path} ({_reason(outcome)})"
        for path, outcome in zip(files.paths, outcomes, strict=True)
        if isinstance(outcome, BaseException)
    )
    return files.take(np.asarray(good, dtype=np.int64)), bad


def read_headers(paths: Sequence[Path]) -> list[Header]:
    """Read size and colour of every file without decoding pixels.

    Raises:
        UserError: names the files that are no readable images.
    """
    return _collect(_read_header, paths, paths)


def read_images(paths: Sequence[Path], image_size: int, channels: int) -> npt.NDArray[np.uint8]:
    """Decode files into one array.

    Each image is turned upright by its EXIF orientation, laid on white where it is transparent,
    converted to grey or RGB, cropped to its central square and resized with antialiasing. Images
    that have the right size keep their pixels.

    Args:
        paths: N files.
        image_size: Side S in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 (N, channels, S, S).

    Raises:
        UserError: names the files that are no readable images.
    """
    images = np.empty((len(paths), channels, image_size, image_size), dtype=np.uint8)

    def decode(job: tuple[int, Path]) -> None:
        position, path = job
        # Every job writes its own slice, so threads need no lock.
        images[position] = _read_image(path, image_size, channels)

    _collect(decode, list(enumerate(paths)), paths)
    return images


def _read_header(path: Path) -> Header:
    with _opened(path) as image:
        return Header(*image.size, image.mode in _GREY_MODES)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    # Opening a pipe would wait for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, more than {MAX_PIXELS:,}")
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose range is unknown")
        yield image


def _read_image(path: Path, image_size: int, channels: int) -> npt.NDArray[np.uint8]:
    with _opened(path) as image:
        mode = "L" if channels == 1 else "RGB"
        # Lets the JPEG decoder skip detail that the resize would average away.
        image.draft(mode, (4 * image_size, 4 * image_size))
        upright = ImageOps.exif_transpose(image)
    plain = _opaque_8_bit(upright).convert(mode)
    if plain.size != (image_size, image_size):
        plain = ImageOps.fit(plain, (image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(plain, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow would clip to 255 instead of scaling.
        wide = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image


def _collect(
    work: Callable[[Item], Result], items: Iterable[Item], paths: Sequence[Path]
) -> list[Result]:
    """Run `work` over items in threads; report every file that fails in one sentence."""
    results: list[Result] = []
    failures: list[str] = []
    for outcome, path in zip(_attempt(work, items), paths, strict=True):
        if isinstance(outcome, BaseException):
            failures.append(f"{path} ({_reason(outcome)})")
        else:
            results.append(outcome)
    if failures:
        listed, more = "; ".join(failures[:_LISTED]), len(failures) - _LISTED
        raise UserError(
            f"expected readable {', '.join(FORMATS)} images, got {listed}"
            + (f" and {more} more" if more > 0 else "")
        )
    return results


def _attempt(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result | BaseException]:
    """Run `work` over items in threads; return its result or its exception for every item."""
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    outcomes: list[Result | BaseException] = []
    try:
        for future in [pool.submit(work, item) for item in items]:
            error = future.exception()
            # Decoders fail in many ways on hostile files; each is the file's fault.
            outcomes.append(future.result() if error is None else error)
    finally:  # an interrupted program does not wait for thousands of files
        pool.shutdown(cancel_futures=True)
    return outcomes


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not such an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
