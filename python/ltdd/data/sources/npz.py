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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from ltdd.data.reading.arrays import bring_to, channels_first, images_at_once, shape_of
from ltdd.data.reading.decoder import Form, Header, UInt8Array
from ltdd.data.reading.image_source import IntArray, Parts
from ltdd.data.sources.spec import Spec
from ltdd.data.splitting.parts import Origin, Split, labelled_by, parts_of
from ltdd.data.splitting.splits import choose_splits
from ltdd.engine.machine.surroundings import user_path
from ltdd.errors import UserError

_MOST_LABEL_BYTES = 1 << 30
_IMAGES, _LABELS = "_images", "_labels"


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


def npz(spec: Spec) -> Parts:
    """Open ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` of an archive.

    Other names of the splits, and ``x_train``, ``y_train`` as Keras has them, do as well. Images
    are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; labels are whole
    numbers, (N,) or (N, 1). ``class_names`` is optional, and without test images or validation
    images a part is held out.

    Raises:
        UserError: the file is no such archive.
    """
    path = user_path(spec.place)
    try:
        status = path.stat()
        with zipfile.ZipFile(path) as file:
            arrays = [n.removesuffix(".npy") for n in file.namelist() if n.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        got = getattr(error, "strerror", None) or "something else"
        raise UserError(f"expected an .npz archive at {path}, got {got}") from error
    pairs = _pairs(arrays)
    if not pairs:
        found = ", ".join(sorted(arrays)) or "no array"
        raise UserError(f"expected arrays train_images and train_labels in {path}, got {found}")
    chosen = choose_splits({name: pair[1] in arrays for name, pair in pairs.items()}, str(path))
    version = (status.st_size, status.st_mtime_ns)
    names = _class_names(path) if "class_names" in arrays else ()
    train, test = (
        None if name is None else _split(path, pairs[name], version, names)
        for name in (chosen.train, chosen.test)
    )
    assert train is not None
    origin = Origin(str(path), "test_images and test_labels", chosen.notes)
    return parts_of(train, test, origin, "fail", "declared" if names else "labels")


def _pairs(arrays: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the names of images and labels by split."""
    pairs = {}
    for array in arrays:
        if array.endswith(_IMAGES):
            split = array.removesuffix(_IMAGES)
            pairs[split] = (array, split + _LABELS)
        elif array.startswith(("x_", "X_")):
            split = array[2:]
            pairs[split] = (array, f"y_{split}")
    return pairs


def _split(
    path: Path, pair: tuple[str, str], version: tuple[int, int], names: tuple[str, ...]
) -> Split:
    images, labels = pair[0], _labels(path, pair[1])
    with _array(path, images) as (dtype, shape, _):
        shape_of(f"{images} in {path}", shape)
    if dtype != np.uint8:
        raise UserError(f"expected {images} in {path} to be uint8, got {dtype}")
    if shape[0] != len(labels):
        raise UserError(
            f"expected one label for each of the {shape[0]} {images} in {path}, got {len(labels)}"
        )
    if names and labels.max() >= len(names):
        raise UserError(
            f"expected {labels.max() + 1} class_names in {path} for {pair[1]}, got {len(names)}"
        )
    stored = _NpzImages(path, images, shape, version, np.arange(len(labels)))
    return labelled_by(stored, labels.tolist(), f"{pair[1]} of {path}", names)


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


def _class_names(path: Path) -> tuple[str, ...]:
    names = _read(path, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1 or len(set(names.tolist())) != len(names):
        raise UserError(f"expected class_names in {path} to be different texts (K,)")
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
