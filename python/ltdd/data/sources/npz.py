"""``npz:FILE``: arrays of images and labels in one NumPy archive, as MedMNIST publishes them.

The archive is read as a stream, row by row, and never unpickled: a set that is larger than memory
goes into the cache of decoded images without ever being in memory.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ltdd.data.reading.arrays import bring_to, channels_first, images_at_once, shape_of
from ltdd.data.reading.decoder import Form, Header, UInt8Array
from ltdd.data.reading.held_out import hold_out
from ltdd.data.reading.image_source import IntArray, Labelled, Parts
from ltdd.engine.surroundings import user_path
from ltdd.errors import UserError

_MOST_LABEL_BYTES = 1 << 30


@dataclass(frozen=True)
class _NpzImages:
    """One array of images in an archive.

    Attributes:
        path: the archive.
        array: name of the array.
        shape: as stored: (N, H, W), (N, H, W, C) or (N, C, H, W).
        version: size and time of change of the archive.
        positions: which images, and in which order.
    """

    path: Path
    array: str
    shape: tuple[int, ...]
    version: tuple[int, int]
    positions: IntArray

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, positions: IntArray) -> _NpzImages:
        return replace(self, positions=self.positions[positions])

    def headers(self) -> Counter[Header]:
        channels, height, width = shape_of(self.array, self.shape)
        return Counter({Header(width, height, channels == 1): len(self)})

    def value_range(self) -> None:
        """All have 8 bits."""

    def blocks(self, form: Form) -> Iterator[tuple[IntArray, UInt8Array]]:
        """Yield images in the order of the archive, which need not be that of the positions."""
        order = np.argsort(self.positions, kind="stable")
        ranked = self.positions[order]
        row_bytes = math.prod(self.shape[1:])
        at_once = images_at_once(self.shape[1:], form)
        with _array(self.path, self.array) as (_, _, stream):
            for start in range(0, self.shape[0], at_once):
                rows = min(at_once, self.shape[0] - start)
                content = _exactly(stream, rows * row_bytes, self.path, self.array)
                first, last = np.searchsorted(ranked, [start, start + rows])
                if first == last:
                    continue
                block = np.frombuffer(content, np.uint8).reshape(rows, *self.shape[1:])
                wanted = channels_first(self.array, block[ranked[first:last] - start])
                yield order[first:last], bring_to(form, wanted)
            _at_end(stream, self.path, self.array)

    def identity(self) -> str:
        given = repr((str(self.path.absolute()), self.version, self.array, self.shape))
        digest = hashlib.sha256(given.encode("utf-8", "surrogatepass"))
        digest.update(self.positions.astype("<i8").tobytes())
        return digest.hexdigest()

    def name(self, position: int) -> str:
        return f"{self.array}[{self.positions[position]}]"


def npz(place: str) -> Parts:
    """Open ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` of an archive.

    Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; labels are whole
    numbers, (N,) or (N, 1). ``class_names`` is optional, ``val_images`` are not used beside test
    images, and without either a part is held out.

    Raises:
        UserError: the file is no such archive.
    """
    path = user_path(place)
    try:
        status = path.stat()
        with zipfile.ZipFile(path) as file:
            arrays = {n.removesuffix(".npy") for n in file.namelist() if n.endswith(".npy")}
    except (OSError, zipfile.BadZipFile) as error:
        got = getattr(error, "strerror", None) or "something else"
        raise UserError(f"expected an .npz archive at {path}, got {got}") from error
    version = (status.st_size, status.st_mtime_ns)
    for name in ("train_images", "train_labels"):
        if name not in arrays:
            found = ", ".join(sorted(arrays)) or "no array"
            raise UserError(f"expected an array {name} in {path}, got {found}")
    parts = {
        part: _labelled(path, part, version)
        for part in ("train", "test", "val")
        if f"{part}_images" in arrays
    }
    train, test = parts["train"], parts.get("test") or parts.get("val")
    names = _class_names(path, arrays, train.labels)
    if test is None:
        instead = "test_images and test_labels"
        train, test, note = hold_out(train, names, str(path), instead)
        return Parts(train, test, names, notes=(note,))
    unused = [f"val_images of {path} are neither trained nor tested on"]
    return Parts(train, test, names, notes=tuple(unused if {"test", "val"} <= set(parts) else ()))


def _labelled(path: Path, part: str, version: tuple[int, int]) -> Labelled:
    images, labels = f"{part}_images", _labels(path, f"{part}_labels")
    with _array(path, images) as (dtype, shape, _):
        shape_of(f"{images} in {path}", shape)
    if dtype != np.uint8:
        raise UserError(f"expected {images} in {path} to be uint8, got {dtype}")
    if shape[0] != len(labels):
        raise UserError(
            f"expected one label for each of the {shape[0]} {images} in {path}, got {len(labels)}"
        )
    return Labelled(_NpzImages(path, images, shape, version, np.arange(len(labels))), labels)


def _labels(path: Path, name: str) -> IntArray:
    labels = _read(path, name)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(
            f"expected {name} in {path} to be whole numbers (N,) or (N, 1), got {labels.dtype} "
            f"{labels.shape}"
        )
    if labels.min() < 0:
        raise UserError(f"expected {name} in {path} to be 0 or more, got {labels.min()}")
    return labels.astype(np.int64)


def _class_names(path: Path, arrays: set[str], labels: IntArray) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    if "class_names" not in arrays:
        return tuple(str(number) for number in range(count))
    names = _read(path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1 or len(set(names.tolist())) != len(names):
        raise UserError(f"expected class_names in {path} to be different texts (K,)")
    if len(names) < count:
        raise UserError(f"expected {count} class_names in {path}, got {len(names)}")
    return tuple(names.tolist())


def _read(path: Path, name: str) -> npt.NDArray[np.generic]:
    """Read a small array whole."""
    with _array(path, name) as (dtype, shape, stream):
        size = dtype.itemsize * math.prod(shape)
        if size > _MOST_LABEL_BYTES:
            raise UserError(f"expected a small array {name} in {path}, got {size:,} bytes")
        content = _exactly(stream, size, path, name)
        _at_end(stream, path, name)
        return np.frombuffer(content, dtype).reshape(shape)


@contextmanager
def _array(
    path: Path, name: str
) -> Iterator[tuple[np.dtype[np.generic], tuple[int, ...], IO[bytes]]]:
    """Open an array of an archive: type of its elements, shape, and a stream of its bytes."""
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{name}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in read:
                raise UserError(f"expected {name} in {path} in .npy format 1 or 2, got {version}")
            shape, fortran, dtype = read[version](stream)
            if dtype.hasobject:
                raise UserError(f"expected numbers or text as {name} in {path}, got objects")
            if fortran and len(shape) > 1:
                raise UserError(f"expected {name} in {path} in C order, got Fortran order")
            yield dtype, shape, stream
    except KeyError as error:
        raise UserError(f"expected an array {name} in {path}, got none") from error
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        text = " ".join(str(error).split())
        raise UserError(f"expected a whole array {name} in {path}, got: {text}") from error
    except zlib.error as error:
        raise UserError(f"expected a whole array {name} in {path}, got: {error}") from error


def _exactly(stream: IO[bytes], count: int, path: Path, name: str) -> bytes:
    content = stream.read(count)
    if len(content) != count:
        raise UserError(
            f"expected a whole array {name} in {path}, got {len(content)} of {count} bytes"
        )
    return content


def _at_end(stream: IO[bytes], path: Path, name: str) -> None:
    """Look behind the last byte, which is also what makes `zipfile` check the sum of all bytes."""
    if stream.read(1):
        raise UserError(f"expected a whole array {name} in {path}, got more bytes than its shape")
