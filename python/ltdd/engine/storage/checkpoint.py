"""The state of an unfinished stage, so that a killed run goes on inside it with the same result.

A state is whatever decides the rest of the stage: networks, optimizers, schedules (anything with a
``state_dict``), tensors and plain values. Random streams are addressed by epoch or iteration, so a
position stands for them; a generator that is drawn from during an epoch is stored as its state.
"""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdd.engine import interruption
from ltdd.engine.finite import is_finite
from ltdd.engine.run_options import CHECKPOINT_SECONDS
from ltdd.engine.storage.files import read_sealed_tensors, write_sealed_tensors
from ltdd.errors import UserError

_FORMAT = "6"  # raise it when a stage's state changes; older checkpoints are then started over
SUFFIX = ".checkpoint"
_LARGEST_SHARE = 0.03  # of a stage's time that may go into saving


class StageCheckpoint:
    """The checkpoint of one stage; a context manager around its computation.

    From `restore` on, SIGINT and SIGTERM wait for the end of the current step.

    Args:
        path: the file.
        key: hash of everything that decides the stage's output.
        seconds: time between two saves; 0 saves after every step. A save that takes long makes
            the time longer, so that saving costs 3 % at most.

    Attributes:
        path, key: as given.
        seconds_before: time that earlier, stopped processes put into the restored state.
    """

    def __init__(self, path: Path, key: str, seconds: float = CHECKPOINT_SECONDS) -> None:
        self.path, self.key, self.seconds_before = path, key, 0.0
        self._seconds = seconds
        self._start = self._next = time.monotonic()

    def __enter__(self) -> StageCheckpoint:
        self._start = time.monotonic()
        self._next = self._start + self._seconds
        return self

    def __exit__(self, *exc_info: object) -> None:
        interruption.delay(False)

    def skip(self, seconds: float) -> None:
        """Leave time that went to others out of what the stage has taken."""
        self._start += seconds

    def restore(self) -> dict[str, Any]:
        """Return what the last `step` of a stopped process saved; empty if there is nothing.

        Whatever had a ``state_dict`` comes back as that.
        """
        return self._read(self.path)

    def shares(self) -> list[dict[str, Any]]:
        """Return what every rank of a stopped run saved of its own units, the newest last."""
        paths = [path for path in (self.path, *self._of_other_ranks()) if path.exists()]
        interruption.delay(True)
        return [self._read(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime)]

    def share(self, rank: int) -> StageCheckpoint:
        """Return the checkpoint of the units of a rank; the first one's is this."""
        if rank == 0:
            return self
        own = StageCheckpoint(self.path.with_suffix(f".{rank}{SUFFIX}"), self.key, self._seconds)
        own._start, own._next = self._start, self._next
        own.seconds_before = self.seconds_before
        return own

    def _read(self, path: Path) -> dict[str, Any]:
        interruption.delay(True)
        if not path.exists():
            return {}
        try:
            tensors, metadata = read_sealed_tensors(path)
            if (metadata["format"], metadata["key"]) != (_FORMAT, self.key):
                return {}
            state: dict[str, Any] = unpack_state(json.loads(metadata["state"]), tensors)
            self.seconds_before = max(self.seconds_before, float(metadata["seconds"]))
        except (UserError, KeyError, ValueError):
            # It only saves time: without it the stage starts over, with the same result.
            return {}
        return state

    def _of_other_ranks(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}.*{SUFFIX}"))

    def step(self, **state: Any) -> None:
        """Save the state if it is time to, and stop here if a signal asked for it.

        Args:
            state: objects with a ``state_dict``, tensors, and plain JSON values.

        Raises:
            UserError: the file cannot be written, or the state holds NaN or infinity.
            Interrupted: a signal has come; the state is saved.
        """
        if time.monotonic() < self._next and not interruption.requested():
            return
        before = time.monotonic()
        tensors: dict[str, Tensor] = {}
        packed = pack_state(state, tensors)
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                stage = self.path.name.partition("-")[0]
                raise UserError(f"{stage}: expected finite values in {name}, got NaN or infinity")
        write_sealed_tensors(
            self.path,
            tensors,
            {
                "format": _FORMAT,
                "key": self.key,
                "state": json.dumps(packed),
                "seconds": repr(self.seconds_before + before - self._start),
            },
        )
        interruption.stop_if_requested()
        after = time.monotonic()
        pause = max(self._seconds, (after - before) / _LARGEST_SHARE) if self._seconds else 0.0
        self._next = after + pause

    def remove(self) -> None:
        """Delete the file, and those of other ranks: the stage's result is stored."""
        for path in (self.path, *self._of_other_ranks()):
            path.unlink(missing_ok=True)


def pack_state(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Return JSON for a nested value and collect its tensors by their dotted names."""
    if hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, Tensor):
        tensors[name] = value
        # Not only the numbers but also their order in memory decides how sums are rounded.
        return {"tensor": name, "stride": list(value.stride())}
    if isinstance(value, Mapping):
        # Pairs, because an optimizer's keys are numbers and JSON would turn them into text.
        pairs = [[k, pack_state(v, tensors, f"{name}.{k}".lstrip("."))] for k, v in value.items()]
        return {"pairs": pairs}
    if isinstance(value, list | tuple):
        parts = [pack_state(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": parts}
    return value


def unpack_state(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `pack_state`; every tensor is a new one."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        stored = tensors[value["tensor"]]
        own = torch.empty_strided(stored.shape, value["stride"], dtype=stored.dtype)
        return own.copy_(stored)
    if "pairs" in value:
        return {k: unpack_state(v, tensors) for k, v in value["pairs"]}
    if "tuple" in value:
        return tuple(unpack_state(v, tensors) for v in value["tuple"])
    return [unpack_state(v, tensors) for v in value["list"]]
