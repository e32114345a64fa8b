"""Archives as sources of images: checked before anything is written, unpacked once into a cache.

Only plain files and folders leave an archive, under names that stay below the target. That is
stricter than ``tarfile``'s ``data`` filter, which would still create links.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import filelock

from ltdd.data.reading.litter import is_litter
from ltdd.engine.storage.files import file_sha256
from ltdd.errors import UserError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
MAX_MEMBERS = 2_000_000
MAX_MEMBER_BYTES = 256 << 20
MAX_GROWTH = 200
"""Unpacked size over archive size; images are compressed already and do not come near it."""
_FREE_GROWTH = 64 << 20  # bytes that even a tiny archive may unpack to
_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Member:
    """One entry of an archive.

    Attributes:
        name: as the archive gives it, but for separators of Windows, which become slashes.
        size: bytes that the archive declares.
        kind: ``file``, ``folder``, or in words what else it is.
        source: what the archive's own module calls it.
    """

    name: str
    size: int
    kind: str
    source: zipfile.ZipInfo | tarfile.TarInfo


def is_archive(path: Path) -> bool:
    """Return whether a path is a file with the suffix of a supported archive."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpack(archive: Path, cache: Path) -> Path:
    """Return the folder with the archive's files, unpacking it unless that has been done.

    Args:
        archive: a file with one of `SUFFIXES`.
        cache: folder that keeps unpacked archives by the SHA-256 of the archive.

    Raises:
        UserError: the archive is damaged or unsafe, or the cache cannot be written.
    """
    try:
        name = file_sha256(archive)[:16]
    except OSError as error:
        raise UserError(
            f"expected a readable archive at {archive}, got {error.strerror}"
        ) from error
    try:
        target = cache / name
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / f".{name}.lock"):
            if not target.is_dir():
                _unpack(archive, target)
    except OSError as error:
        raise UserError(
            f"cannot unpack {archive} into {cache}: {error.strerror or error}; the environment "
            "variable LTDD_DATA names another folder"
        ) from error
    return target


def _unpack(archive: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process: the caller holds the lock
    try:
        with _opened(archive) as opened:
            names = _checked_names(opened, archive, target.parent)
            temporary.mkdir()
            for member in opened.members():
                name = names.get(member.name)
                if name is not None:
                    _write(opened, member, temporary / name)
        os.replace(temporary, target)
    except (UserError, OSError):
        raise
    except Exception as error:  # the modules fail in many ways on hostile files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"expected a whole archive in {archive}, got: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Zip:
    def __init__(self, path: Path) -> None:
        self.file = zipfile.ZipFile(path)

    def members(self) -> Iterator[_Member]:
        for info in self.file.infolist():
            # Tools of Windows write their own separator.
            name = info.filename.replace("\\", "/")
            kind = "folder" if name.endswith("/") else "file"
            mode = info.external_attr >> 16
            if info.flag_bits & 1:
                kind = "an encrypted file"
            elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link or device"
            yield _Member(name.rstrip("/"), info.file_size, kind, info)

    def open(self, member: _Member) -> IO[bytes]:
        assert isinstance(member.source, zipfile.ZipInfo)
        return self.file.open(member.source)


class _Tar:
    def __init__(self, path: Path) -> None:
        self.file = tarfile.TarFile.open(path)

    def members(self) -> Iterator[_Member]:
        for info in self.file:
            kind = "folder" if info.isdir() else "file" if info.isreg() else "a link or device"
            yield _Member(info.name.replace("\\", "/"), info.size, kind, info)

    def open(self, member: _Member) -> IO[bytes]:
        assert isinstance(member.source, tarfile.TarInfo)
        content = self.file.extractfile(member.source)
        assert content is not None  # only for members that are no files
        return content


@contextmanager
def _opened(archive: Path) -> Iterator[_Zip | _Tar]:
    opened = _Zip(archive) if archive.name.lower().endswith(".zip") else _Tar(archive)
    with opened.file:
        yield opened


def _checked_names(opened: _Zip | _Tar, archive: Path, cache: Path) -> dict[str, PurePosixPath]:
    """Return where every file goes, before a single one is written.

    Raises:
        UserError: names the first member that must not be unpacked.
    """
    names: dict[str, PurePosixPath] = {}
    total, limit = 0, MAX_GROWTH * archive.stat().st_size + _FREE_GROWTH
    for number, member in enumerate(opened.members()):
        name = PurePosixPath(member.name)
        problem = None
        if number >= MAX_MEMBERS:
            problem = f"more than {MAX_MEMBERS:,} members"
        elif PureWindowsPath(member.name).root or ".." in name.parts or "\0" in member.name:
            problem = "a name that points out of the archive"
        elif member.kind not in ("file", "folder"):
            problem = member.kind
        elif member.name in names:
            problem = "two members of this name"
        elif member.size > MAX_MEMBER_BYTES:
            problem = f"{member.size:,} bytes, more than {MAX_MEMBER_BYTES:,}"
        total += member.size
        if problem is None and total > limit:
            problem = f"content more than {MAX_GROWTH} times as large as the archive"
        if problem is not None:
            raise UserError(f"expected plain files in {archive}, got {problem}: {member.name!r}")
        if member.kind == "file" and not any(map(is_litter, name.parts)):
            names[member.name] = name
    free = shutil.disk_usage(cache).free
    if total > free:
        raise UserError(
            f"expected {total:,} bytes free in {cache} for {archive}, got {free:,}; the "
            "environment variable LTDD_DATA names another folder"
        )
    return names


def _write(opened: _Zip | _Tar, member: _Member, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with opened.open(member) as content, path.open("xb") as file:
        while block := content.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise UserError(f"expected {member.size} bytes in {member.name!r}, got more")
            file.write(block)
    if left:
        raise UserError(f"expected {member.size} bytes in {member.name!r}, got {left} less")
