"""Results of finished stages, found again by a hash of everything that decided them.

Every run folder holds its own. The runs of a user share a store beside them: what a run computes is
linked into the store, and what it needs is linked from it. So a stage is computed once and takes
space once. The store is kept below a size: what no run folder holds any more goes first.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from ltdd.engine.storage.files import (
    canonical_json,
    read_sealed_tensors,
    write_bytes,
    write_sealed_tensors,
)
from ltdd.errors import UserError

DEFAULT_LIMIT_GB = 20.0


@dataclass(frozen=True)
class StoredStage:
    """The content of a file of a store.

    Attributes:
        key: hash of everything that decided the result.
        tensors: the result, by name.
        meta: seconds and bytes it took.
    """

    key: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def file_name(stage: str, key: str) -> str:
    """Return the name of the file of a stage's result."""
    return f"{stage}-{key[:16]}.safetensors"


def read_stage(path: Path) -> StoredStage:
    """Read and check the result of a stage.

    Raises:
        UserError: the file is damaged or something else.
    """
    try:
        tensors, metadata = read_sealed_tensors(path)
        return StoredStage(metadata["key"], tensors, dict(json.loads(metadata["meta"])))
    except (UserError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = error if isinstance(error, UserError) else "not the result of a stage"
        raise UserError(f"{path}: {reason}; delete the file to compute it again") from error


class StageStore:
    """Results of finished stages in a run folder, and in a store that runs share.

    Args:
        root: the run folder; files go to ``root/stages/<stage>-<start of key>.safetensors``.
        shared: folder of results that several runs share, None for none. It is in use only while
            it can be written: a run never fails for want of it.

    Example:
        >>> import tempfile, torch
        >>> from ltdd.engine.storage.files import fingerprint
        >>> store = StageStore(Path(tempfile.mkdtemp()))
        >>> key = fingerprint({"epochs": 3})
        >>> store.put("experts", key, {"weight": torch.ones(2)}, {"seconds": 4.0})
        >>> store.get("experts", key).meta
        {'seconds': 4.0}
    """

    def __init__(self, root: Path, shared: Path | None = None) -> None:
        self.folder, self.shared = root / "stages", shared

    def path(self, stage: str, key: str) -> Path:
        """Return the file of a stage's result in the run folder, present or not."""
        return self.folder / file_name(stage, key)

    def holds(self, stage: str, key: str) -> bool:
        """Return whether the run folder itself has a file for the result."""
        return self.path(stage, key).exists()

    def get(self, stage: str, key: str) -> StoredStage | None:
        """Return a finished stage, or None if it has not run with these inputs.

        Raises:
            UserError: the file is there and damaged.
        """
        own = self.path(stage, key)
        path = own if own.exists() or self.shared is None else self.shared / own.name
        if not os.access(path, os.R_OK):  # missing, or in a store of somebody else
            return None
        stored = read_stage(path)
        if stored.key != key:
            return None
        if path != own:
            _mark_used(path)
            _link(path, own)
        return stored

    def put(
        self, stage: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> None:
        """Store a finished stage in the run folder; ``meta`` is JSON-like.

        Raises:
            UserError: the folder cannot be written or the disk is full.
        """
        metadata = {"key": key, "meta": canonical_json(dict(meta))}
        write_sealed_tensors(self.path(stage, key), tensors, metadata)

    def share(self, stage: str, key: str) -> None:
        """Link a stored stage into the shared store, and keep that below its limit.

        Raises:
            UserError: the shared store cannot be written.
        """
        if self.shared is not None:
            path = self.path(stage, key)
            _link(path, self.shared / path.name)
            prune(self.shared, limit_bytes())


def _mark_used(path: Path) -> None:
    """Set the time of the last access, by which the store forgets."""
    with contextlib.suppress(OSError):  # a store that may only be read
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _link(source: Path, target: Path) -> None:
    """Make a file appear in a second folder; it is only ever replaced, so both stay right."""
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {target.parent}: {error.strerror or error}") from error
    try:
        os.link(source, target)
    except FileExistsError:
        pass  # another run was quicker with the same result
    except OSError:  # another disk, or one without links
        write_bytes(target, source.read_bytes())


@dataclass(frozen=True)
class Entry:
    """One file of a shared store.

    Attributes:
        path: the file.
        stage: name of the stage.
        size: bytes.
        used: when a run last took it.
        alone: whether no run folder on this disk holds it, so that removing it frees its bytes.
    """

    path: Path
    stage: str
    size: int
    used: datetime
    alone: bool


def entries(store: Path) -> list[Entry]:
    """Return what a shared store holds, used longest ago first."""
    found = []
    for path in store.glob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            status = path.stat()
            used = datetime.fromtimestamp(status.st_atime, timezone.utc)
            stage = path.stem.rpartition("-")[0]
            found.append(Entry(path, stage, status.st_size, used, status.st_nlink == 1))
    return sorted(found, key=lambda entry: (entry.used, entry.path.name))


def remove_unused(store: Path, since: datetime) -> list[Entry]:
    """Remove what no run has taken since a time; run folders keep what they hold."""
    removed = [entry for entry in entries(store) if entry.used < since]
    for entry in removed:
        entry.path.unlink(missing_ok=True)
    return removed


def limit_bytes() -> int:
    """Return the bytes that a shared store may hold beside run folders: ``LTDD_STORE_GB``, or 20.

    Raises:
        UserError: the variable is no number.
    """
    text = os.environ.get("LTDD_STORE_GB") or DEFAULT_LIMIT_GB
    try:
        limit = float(text)
        if not limit >= 0:
            raise ValueError
    except ValueError as error:
        raise UserError(f"LTDD_STORE_GB: expected a number of gigabytes, got {text!r}") from error
    return int(min(limit * 1e9, 2**63))


def prune(store: Path, limit: int) -> list[Entry]:
    """Remove what was used longest ago until what only the store holds fits into a limit.

    Args:
        store: the folder; it may be missing.
        limit: bytes. 0 removes everything that no run folder holds.

    Returns:
        The entries that were removed.
    """
    alone = [entry for entry in entries(store) if entry.alone]
    total, removed = sum(entry.size for entry in alone), []
    for entry in alone:
        if total <= limit:
            break
        entry.path.unlink(missing_ok=True)
        total -= entry.size
        removed.append(entry)
    return removed
