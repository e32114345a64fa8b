"""The run folder: what a run leaves behind, so that it can be resumed, read and published.

run.json                         configuration and split of the run, with their fingerprint
stages/<stage>-<key>.safetensors results of finished stages, keyed by a hash of their inputs
events.jsonl, metrics.csv        one line for every loss worth plotting
data.safetensors, manifest.json  the distilled set and what is needed to use it
results.json, report.html        how well students learn from it
evaluations/<student>-<labels>   events of other students, beside their results in <...>.json
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor

from ltdd.config import DistillConfig
from ltdd.engine.files import (
    canonical_json,
    fingerprint,
    read_json,
    read_sealed_tensors,
    read_tensors,
    remove_leftovers,
    write_bytes,
    write_json,
    write_sealed_tensors,
)
from ltdd.errors import FolderInUse, UserError

_LOCK, _HOLDER, _RUN = ".lock", ".lock-holder.json", "run.json"


class StageStore:
    """Results of finished stages below a run folder, found again by a hash of their inputs.

    Args:
        root: the run folder; files go to ``root/stages/<stage>-<start of key>.safetensors``.
        pool: folder of results that several runs share. What a run computes is linked into it, and
            what it needs is linked from it, so every run folder stays complete by itself.

    Example:
        >>> import tempfile, torch
        >>> store = StageStore(Path(tempfile.mkdtemp()))
        >>> key = fingerprint({"epochs": 3})
        >>> store.put("experts", key, {"weight": torch.ones(2)}, {"arch": "resnet18"})
        >>> tensors, meta = store.get("experts", key)
        >>> meta["arch"]
        'resnet18'
    """

    def __init__(self, root: Path, pool: Path | None = None) -> None:
        self.folder, self.pool = root / "stages", pool

    def path(self, stage: str, key: str) -> Path:
        """Return the file of a stage's result, present or not."""
        return self.folder / f"{stage}-{key[:16]}.safetensors"

    def get(self, stage: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and meta of a finished stage, or None if it has not run with these inputs.

        Raises:
            UserError: the file is there and damaged.
        """
        own = self.path(stage, key)
        shared = own if self.pool is None else self.pool / own.name
        path = own if own.exists() else shared
        if not path.exists():
            return None
        stored = read_stage(path)
        if stored.key != key:
            return None
        _link(path, own)
        return stored.tensors, stored.meta

    def put(
        self, stage: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> None:
        """Store a finished stage; ``meta`` is JSON-like."""
        metadata = {"key": key, "meta": canonical_json(dict(meta))}
        path = self.path(stage, key)
        write_sealed_tensors(path, tensors, metadata)
        if self.pool is not None:
            _link(path, self.pool / path.name)


def _link(source: Path, target: Path) -> None:
    """Make a file appear in a second folder; it is only ever replaced, so both stay right."""
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except FileExistsError:
        pass  # another run was quicker with the same result
    except OSError:  # another disk, or one without links
        write_bytes(target, source.read_bytes())


@dataclass(frozen=True)
class StoredStage:
    """The content of a file of `StageStore`.

    Attributes:
        key: hash of everything that decided the result.
        tensors: the result, by name.
        meta: seconds and bytes it took.
        sealed: whether the file carries a hash of its content; files of early versions do not.
    """

    key: str
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    sealed: bool


def read_stage(path: Path) -> StoredStage:
    """Read and check the result of a stage.

    Raises:
        UserError: the file is damaged or something else.
    """
    try:
        tensors, metadata = read_tensors(path)
        sealed = set(metadata) != {"key", "meta"}
        if sealed:
            tensors, metadata = read_sealed_tensors(path)
        return StoredStage(metadata["key"], tensors, dict(json.loads(metadata["meta"])), sealed)
    except (UserError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = error if isinstance(error, UserError) else "not the result of a stage"
        raise UserError(f"{path}: {reason}; delete the file to compute it again") from error


class RunLock:
    """Exclusive use of a run folder until ``release``, the end of its ``with`` or of the process.

    The operating system drops the lock of a killed process, so nothing has to be cleaned by hand.

    Raises:
        FolderInUse: another process works in the folder; the message says which.
        UserError: the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self._holder = out / _HOLDER
        self._lock = filelock.FileLock(out / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            holder = self._describe_holder()
            raise FolderInUse(f"out: {out} is in use by {holder}") from error
        except OSError as error:
            raise UserError(f"out: cannot write to {out}: {error.strerror}") from error
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            me = {"process": os.getpid(), "host": platform.node(), "since": since}
            write_json(self._holder, me)
        except BaseException:
            self._lock.release()
            raise

    def _describe_holder(self) -> str:
        for _ in range(20):
            with contextlib.suppress(UserError, KeyError):
                holder = read_json(self._holder)
                return f"process {holder['process']} on {holder['host']} since {holder['since']}"
            time.sleep(0.05)  # it has only just taken the lock
        return "another process"

    def release(self) -> None:
        """Give the folder free; calling it again does nothing."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):  # a read-only folder: the next holder replaces it
                self._holder.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def open_run(out: Path, config: Mapping[str, Any], split_sha256: str) -> RunLock:
    """Create or reopen the folder of a run and lock it.

    Args:
        out: the folder; made with its parents if missing.
        config: the run's configuration as JSON types.
        split_sha256: hash of the training split, which says whether the data are the same.

    Returns:
        The lock; use it in a ``with`` statement around the work.

    Raises:
        UserError: the folder belongs to another run (the first differing field is named), holds
            foreign files, is in use, or cannot be written. Nothing is created in these cases.
    """
    run = {"fingerprint": fingerprint([config, split_sha256]), "split_sha256": split_sha256}
    _check_same_run(out, run, config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"out: cannot create {str(out)!r}: {reason}") from error
    lock = RunLock(out)
    try:
        _check_same_run(out, run, config)  # again: another process may have been quicker
        for folder in (out, out / "stages"):
            remove_leftovers(folder)
        if not (out / _RUN).exists():
            write_json(out / _RUN, run | {"config": dict(config)})
    except BaseException:
        lock.release()
        raise
    return lock


def _check_same_run(out: Path, run: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"out: expected a folder, got the file {out}")
    # Listed first: a run that another process begins in between must not look foreign.
    foreign = sorted(p.name for p in out.glob("*") if not p.name.startswith("."))
    if not (out / _RUN).exists():
        if foreign:
            raise UserError(
                f"out: expected an empty folder or an earlier run in {out}, got one that holds "
                f"{foreign[0]!r}; choose another --out"
            )
        return
    stored = read_json(out / _RUN)
    if stored.get("fingerprint") == run["fingerprint"]:
        return
    with contextlib.suppress(UserError, KeyError):
        # A field that is younger than the run has its default, which keeps earlier results.
        stored["config"] = DistillConfig.from_dict(stored["config"]).to_dict()
        if fingerprint([stored["config"], stored["split_sha256"]]) == run["fingerprint"]:
            return
    difference = _first_difference(stored.get("config", {}), config)
    if difference is None:
        old, new = str(stored.get("split_sha256"))[:12], run["split_sha256"][:12]
        difference = f"other training images (split {old}, now {new})"
    raise UserError(f"out: {out} holds a different run, with {difference}; choose another --out")


def _first_difference(stored: Any, wanted: Mapping[str, Any], prefix: str = "") -> str | None:
    """Name the first field that differs, as ``field = stored value, now wanted value``."""
    stored = stored if isinstance(stored, dict) else {}
    for name in [*wanted, *(n for n in stored if n not in wanted)]:
        old, new = stored.get(name), wanted.get(name)
        if isinstance(new, Mapping):
            inner = _first_difference(old, new, f"{prefix}{name}.")
            if inner is not None:
                return inner
        elif canonical_json(old) != canonical_json(new):
            return f"{prefix}{name} = {old!r} (now {new!r})"
    return None
