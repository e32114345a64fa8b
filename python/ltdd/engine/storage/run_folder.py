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
import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock

from ltdd.config import DistillConfig
from ltdd.engine.storage.files import (
    canonical_json,
    fingerprint,
    read_json,
    remove_leftovers,
    write_json,
)
from ltdd.errors import FolderInUse, UserError

_LOCK, _HOLDER, _RUN = ".lock", ".lock-holder.json", "run.json"


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
    raise UserError(
        f"out: {out} holds a different run, with {difference}; choose another --out: what does not "
        "depend on it is taken from the store (ltdd store)"
    )


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
