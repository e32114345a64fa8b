"""Decoding, once: pixels go to memory-mapped files in the cache and stay there for later runs.

A set in the cache takes memory only for the pages in use, which the system takes back when it needs
them. So sets larger than memory can be trained on, and the next run starts without decoding. Making
the cache keeps three blocks of `BLOCK_BYTES` of pixels in memory, the pictures that are being
decoded (`Pictures.threads` at a time) and some 400 bytes an image for its path and hash.

cache folder/decoded/KEY/train.npy, test.npy  uint8 (N, C, S, S)
                         content.json         what is known about them; written last

KEY hashes what decides the pixels: the files' paths, sizes and times of change in the order of the
cut, the image size, and `FORMAT`. The folder appears by a rename when it is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ltdd.data.reading.arrays import Arrays
from ltdd.data.reading.content import Examined, as_tensor, content_sha256, examine
from ltdd.data.reading.decoder import UInt8Array
from ltdd.data.reading.image_source import Images, Parts
from ltdd.engine.files import fingerprint, read_json, write_json
from ltdd.errors import UserError

FORMAT = 1  # part of every key; raise it when the decoder gives other pixels
SMALLEST_SIZE, LARGEST_SIZE = 8, 224
FALLBACK_SIZE = 32

_PARTS = ("train", "test")
_CONTENT = "content.json"
_WORTH_A_WORD = 100 << 20  # bytes; less takes seconds


def cache_folder() -> Path:
    """Return the folder of downloads, unpacked archives and decoded images."""
    return Path(os.environ.get("LTDD_DATA") or "~/.cache/ltdd").expanduser()


@dataclass(frozen=True)
class Decoded:
    """The pixels of both parts, and what is known about them.

    Attributes:
        train_images, test_images: uint8 (N, C, S, S), in memory or mapped read-only.
        examined: their statistics, duplicates and hash.
        notes: what the user should know about the cache.
    """

    train_images: Tensor
    test_images: Tensor
    examined: Examined
    notes: tuple[str, ...] = ()


def decode(cut: Parts, image_size: int | None, quiet: bool) -> Decoded:
    """Decode both parts to one size, or find them decoded.

    Args:
        cut: the images of the run.
        image_size: side in pixels; None as in `load_data`.
        quiet: no progress output.

    Raises:
        UserError: an image cannot be read, or the cache cannot be written.
    """
    identities = [part.images.identity() for part in (cut.train, cut.test)]
    if None in identities:
        return _kept_in_memory(cut, image_size)
    labels = [
        hashlib.sha256(p.labels.astype("<i8").data).hexdigest() for p in (cut.train, cut.test)
    ]
    key = fingerprint([FORMAT, identities, labels, image_size])[:32]
    parent = cache_folder() / "decoded"
    found = _read(parent / key, cut)  # appears whole, so this needs no lock
    if found is not None:
        return found
    lock = filelock.FileLock(parent / f".{key}.lock")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        reason = f"{error.strerror or error} in {parent}"
        note = f"decoded images are kept in memory, because they cannot be cached: {reason}"
        return dataclasses.replace(_kept_in_memory(cut, image_size), notes=(note,))
    try:
        return _stored(parent / key, cut, image_size, quiet)
    except OSError as error:
        raise UserError(
            f"cannot keep decoded images in {parent}: {error.strerror or error}; the environment "
            "variable LTDD_DATA names another folder"
        ) from error
    finally:
        lock.release()


def _kept_in_memory(cut: Parts, image_size: int | None) -> Decoded:
    size, channels = _common_form(cut, image_size)
    train, test = (_in_memory(p.images, size, channels) for p in (cut.train, cut.test))
    return Decoded(as_tensor(train), as_tensor(test), examine(cut, train, test))


def _common_form(cut: Parts, image_size: int | None) -> tuple[int, int]:
    """Return the side in pixels and the number of channels of the run's images."""
    headers = cut.train.images.headers() | cut.test.images.headers()
    sizes = {(header.width, header.height) for header in headers}
    width, height = next(iter(sizes))
    common = len(sizes) == 1 and width == height and SMALLEST_SIZE <= width <= LARGEST_SIZE
    size = image_size or (width if common else FALLBACK_SIZE)
    return size, 1 if all(header.grey for header in headers) else 3


def _in_memory(images: Images, size: int, channels: int) -> UInt8Array:
    ready = images.ready(size, channels) if isinstance(images, Arrays) else None
    if ready is not None:
        return ready
    pixels = np.empty((len(images), channels, size, size), dtype=np.uint8)
    for positions, block in images.blocks(size, channels):
        pixels[positions] = block
    return pixels


# --- the cache ---


def _stored(folder: Path, cut: Parts, image_size: int | None, quiet: bool) -> Decoded:
    """Return the content of a folder of the cache, made if need be; the caller holds its lock."""
    found = _read(folder, cut)
    if found is not None:
        return found
    damaged = folder.exists()
    if damaged:
        shutil.rmtree(folder)
    _write(folder, cut, image_size, quiet)
    found = _read(folder, cut)
    if found is None:
        raise UserError(f"expected the images just decoded in {folder}, got a damaged file")
    note = f"the decoded images in {folder} were damaged and have been decoded again"
    return dataclasses.replace(found, notes=(note,) if damaged else ())


def _read(folder: Path, cut: Parts) -> Decoded | None:
    """Map the images of a folder; None if it is not there, not whole or not as it was written."""
    try:
        content = read_json(folder / _CONTENT)
        examined = Examined.from_dict(content["examined"])
        train, test = (as_tensor(_map(folder / f"{name}.npy")) for name in _PARTS)
        if (len(train), len(test)) != (len(cut.train.labels), len(cut.test.labels)):
            return None
        if content["files"] != _files(folder):
            # Touched since it was written (or copied here): only its content can tell.
            labels = [torch.from_numpy(part.labels) for part in (cut.train, cut.test)]
            if content_sha256(train, labels[0], test, labels[1]) != examined.content_sha256:
                return None
    except (UserError, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return Decoded(train, test, examined)


def _map(path: Path) -> UInt8Array:
    array: UInt8Array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"no images in {path}")
    return array


def _files(folder: Path) -> list[list[int]]:
    """Return size and time of change of the files of pixels."""
    states = [(folder / f"{name}.npy").stat() for name in _PARTS]
    return [[state.st_size, state.st_mtime_ns] for state in states]


def _write(folder: Path, cut: Parts, image_size: int | None, quiet: bool) -> None:
    size, channels = _common_form(cut, image_size)
    parts = dict(zip(_PARTS, (cut.train.images, cut.test.images), strict=True))
    needed = sum(len(images) for images in parts.values()) * channels * size * size
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(
            f"expected {needed / 2**20:,.0f} MiB free in {folder.parent} for the decoded images, "
            f"got {free / 2**20:,.0f} MiB; the environment variable LTDD_DATA names another folder"
        )
    if needed >= _WORTH_A_WORD and not quiet:
        megabytes = f"{needed / 2**20:,.0f} MiB"
        print(f"decoding images, once: {megabytes} in {folder}", file=sys.stderr, flush=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process: the caller holds the lock
    try:
        temporary.mkdir()
        for name, images in parts.items():
            _write_pixels(temporary / f"{name}.npy", images, size, channels, quiet)
        train, test = (_map(temporary / f"{name}.npy") for name in _PARTS)
        content = {"examined": examine(cut, train, test), "files": _files(temporary)}
        write_json(temporary / _CONTENT, content)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_pixels(path: Path, images: Images, size: int, channels: int, quiet: bool) -> None:
    shape = (len(images), channels, size, size)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start, length = file.tell(), channels * size * size
        for positions, block in _shown(images.blocks(size, channels), len(images), quiet):
            for position, pixels in zip(positions, block, strict=True):
                file.seek(start + int(position) * length)
                file.write(np.ascontiguousarray(pixels).data)
        file.flush()
        os.fsync(file.fileno())


def _shown(
    blocks: Iterator[tuple[Any, UInt8Array]], total: int, quiet: bool
) -> Iterator[tuple[Any, UInt8Array]]:
    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=total, desc="decoding images", delay=2, unit="image", disable=hidden) as bar:
        for positions, block in blocks:
            yield positions, block
            bar.update(len(positions))
