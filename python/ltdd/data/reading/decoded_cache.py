"""Decoding, once: pixels go to memory-mapped files in the cache and stay there for later runs.

A set in the cache takes memory only for the pages in use, which the system takes back when it needs
them. So sets larger than memory can be trained on, and the next run starts without decoding. Making
the cache keeps three blocks of `BLOCK_BYTES` of pixels in memory, the pictures that are being
decoded (`Pictures.threads` at a time) and some 400 bytes an image for its path and hash.

cache folder/decoded/KEY/train.npy, test.npy  uint8 (N, C, S, S)
                         content.json         what is known about them; written last

KEY hashes what decides the pixels: the files' paths, sizes and times of change in the order of the
cut, the image size, the fit, and `FORMAT`. The scale of images of more than 8 bits follows from
these files. The folder appears by a rename when it is whole.

On a disk that cannot map files (some FUSE file systems) the pixels are read into memory instead.
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
from typing import Any, Literal

import filelock
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ltdd.config import Fit
from ltdd.data.reading.arrays import Arrays
from ltdd.data.reading.content import Examined, as_tensor, content_sha256, examine
from ltdd.data.reading.decoder import Form, UInt8Array
from ltdd.data.reading.image_source import Images, Parts
from ltdd.data.reading.originals import Originals, common_form
from ltdd.engine.machine.surroundings import can_be_mapped, shown_on_terminal, user_path
from ltdd.engine.storage.files import fingerprint, read_json, write_json
from ltdd.errors import UserError

FORMAT = 2  # part of every key; raise it when the decoder gives other pixels

_PARTS = ("train", "test")
_CONTENT = "content.json"
_WORTH_A_WORD = 100 << 20  # bytes; less takes seconds


def cache_folder() -> Path:
    """Return the folder of downloads, unpacked archives and decoded images.

    Raises:
        UserError: no folder is named, and the user has no home.
    """
    try:
        return user_path(os.environ.get("LTDD_DATA") or "~/.cache/ltdd")
    except UserError as error:
        raise UserError(
            "expected a folder for the cache in the environment variable LTDD_DATA, because this "
            "user has no home folder, got none"
        ) from error


@dataclass(frozen=True)
class Decoded:
    """The pixels of both parts, and what is known about them.

    Attributes:
        train_images, test_images: uint8 (N, C, S, S), in memory or mapped read-only.
        examined: their statistics, duplicates and hash.
        originals: what the pictures were, and what was lost.
        notes: what the user should know about the cache.
    """

    train_images: Tensor
    test_images: Tensor
    examined: Examined
    originals: Originals
    notes: tuple[str, ...] = ()


def decode(cut: Parts, image_size: int | None, fit: Fit, quiet: bool) -> Decoded:
    """Decode both parts to one size, or find them decoded.

    Args:
        cut: the images of the run.
        image_size: side in pixels; None as in `load_data`.
        fit: how they are brought to a square.
        quiet: no progress output.

    Raises:
        UserError: an image cannot be read, or the cache cannot be written.
    """
    identities = [part.images.identity() for part in (cut.train, cut.test)]
    if None in identities:
        return _kept_in_memory(cut, image_size, fit)
    labels = [
        hashlib.sha256(p.labels.astype("<i8").data).hexdigest() for p in (cut.train, cut.test)
    ]
    key = fingerprint([FORMAT, identities, labels, image_size, fit])[:32]
    try:
        parent = cache_folder() / "decoded"
    except UserError as error:
        return _uncached(cut, image_size, fit, str(error))
    found = _read(parent / key, cut)  # appears whole, so this needs no lock
    if found is not None:
        return found
    lock = filelock.FileLock(parent / f".{key}.lock")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        return _uncached(cut, image_size, fit, f"{error.strerror or error} in {parent}")
    try:
        return _stored(parent / key, cut, image_size, fit, quiet)
    except OSError as error:
        raise UserError(
            f"cannot keep decoded images in {parent}: {error.strerror or error}; the environment "
            "variable LTDD_DATA names another folder"
        ) from error
    finally:
        lock.release()


def _uncached(cut: Parts, image_size: int | None, fit: Fit, why: str) -> Decoded:
    note = f"decoded images are kept in memory, because they cannot be cached: {why}"
    return dataclasses.replace(_kept_in_memory(cut, image_size, fit), notes=(note,))


def _kept_in_memory(cut: Parts, image_size: int | None, fit: Fit) -> Decoded:
    form, originals = common_form(cut, image_size, fit)
    train, test = (_in_memory(p.images, form) for p in (cut.train, cut.test))
    return Decoded(as_tensor(train), as_tensor(test), examine(cut, train, test), originals)


def _in_memory(images: Images, form: Form) -> UInt8Array:
    ready = images.ready(form) if isinstance(images, Arrays) else None
    if ready is not None:
        return ready
    pixels = np.empty((len(images), form.channels, form.size, form.size), dtype=np.uint8)
    for positions, block in images.blocks(form):
        pixels[positions] = block
    return pixels


# --- the cache ---


def _stored(folder: Path, cut: Parts, image_size: int | None, fit: Fit, quiet: bool) -> Decoded:
    """Return the content of a folder of the cache, made if need be; the caller holds its lock."""
    found = _read(folder, cut)
    if found is not None:
        return found
    damaged = folder.exists()
    if damaged:
        shutil.rmtree(folder)
    _write(folder, cut, image_size, fit, quiet)
    found = _read(folder, cut)
    if found is None:
        raise UserError(f"expected the images just decoded in {folder}, got a damaged file")
    note = f"the decoded images in {folder} were damaged and have been decoded again"
    return dataclasses.replace(found, notes=(*found.notes, note)) if damaged else found


def _read(folder: Path, cut: Parts) -> Decoded | None:
    """Map the images of a folder; None if it is not there, not whole or not as it was written."""
    try:
        content = read_json(folder / _CONTENT)
        examined = Examined.from_dict(content["examined"])
        originals = Originals.from_dict(content["originals"])
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
    notes: tuple[str, ...] = ()
    if not can_be_mapped(folder / "train.npy"):
        notes = (
            f"decoded images are read into memory, because the disk of {folder} cannot map files; "
            "the environment variable LTDD_DATA names another folder",
        )
    return Decoded(train, test, examined, originals, notes)


def _map(path: Path) -> UInt8Array:
    mode: Literal["r"] | None = "r" if can_be_mapped(path) else None
    array: UInt8Array = np.load(path, mmap_mode=mode, allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(f"no images in {path}")
    return array


def _files(folder: Path) -> list[list[int]]:
    """Return size and time of change of the files of pixels."""
    states = [(folder / f"{name}.npy").stat() for name in _PARTS]
    return [[state.st_size, state.st_mtime_ns] for state in states]


def _write(folder: Path, cut: Parts, image_size: int | None, fit: Fit, quiet: bool) -> None:
    form, originals = common_form(cut, image_size, fit)
    parts = dict(zip(_PARTS, (cut.train.images, cut.test.images), strict=True))
    needed = sum(len(images) for images in parts.values()) * form.channels * form.size**2
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
            _write_pixels(temporary / f"{name}.npy", images, form, quiet)
        train, test = (_map(temporary / f"{name}.npy") for name in _PARTS)
        content = {
            "examined": examine(cut, train, test),
            "originals": originals,
            "files": _files(temporary),
        }
        write_json(temporary / _CONTENT, content)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_pixels(path: Path, images: Images, form: Form, quiet: bool) -> None:
    shape = (len(images), form.channels, form.size, form.size)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start, length = file.tell(), form.channels * form.size**2
        for positions, block in _shown(images.blocks(form), len(images), quiet):
            for position, pixels in zip(positions, block, strict=True):
                file.seek(start + int(position) * length)
                file.write(np.ascontiguousarray(pixels).data)
        file.flush()
        os.fsync(file.fileno())


def _shown(
    blocks: Iterator[tuple[Any, UInt8Array]], total: int, quiet: bool
) -> Iterator[tuple[Any, UInt8Array]]:
    hidden = quiet or not shown_on_terminal()
    with tqdm(total=total, desc="decoding images", delay=2, unit="image", disable=hidden) as bar:
        for positions, block in blocks:
            yield positions, block
            bar.update(len(positions))
