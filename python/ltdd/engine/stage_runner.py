"""Run a stage once: find its result by a hash of its inputs, or compute, check and store it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltdd.engine import interruption
from ltdd.engine.checkpoint import StageCheckpoint
from ltdd.engine.events import EventLog
from ltdd.engine.files import fingerprint
from ltdd.engine.run_folder import StageStore
from ltdd.engine.runtime import Meter, Runtime
from ltdd.errors import UserError

FORMAT = 3  # part of every stage's hash; raise it when a stage's algorithm or output changes


class StageRunner:
    """Gives stages their results from a run folder, and counts what they cost.

    Args:
        out: run folder.
        common: what decides every stage: the data and the settings all stages share.
        runtime: surroundings handed to a stage that has to be computed.
        log: receives the start and the end of every stage.
        stored: names of stages that must be found in the folder, never computed.
        checkpoint_seconds: time between two saves of an unfinished stage.
        pool: folder of results shared with other runs, see `StageStore`.

    Attributes:
        costs: stage -> ``seconds`` and ``peak_bytes``, those of the process that computed it.
        files: name of every stored result that was used -> seconds it took to compute.
    """

    def __init__(
        self,
        out: Path,
        common: Mapping[str, Any],
        runtime: Runtime,
        log: EventLog,
        stored: frozenset[str],
        checkpoint_seconds: float,
        pool: Path | None = None,
    ) -> None:
        self.costs: dict[str, dict[str, float]] = {}
        self.files: dict[str, float] = {}
        self._store, self._runtime, self._log = StageStore(out, pool), runtime, log
        self._common = {"format": FORMAT, **common}
        self._stored, self._checkpoint_seconds = stored, checkpoint_seconds

    def key(self, stage: str, settings: Mapping[str, Any], upstream: list[str]) -> str:
        """Return the hash of everything that decides a stage's output."""
        return fingerprint([stage, self._common, dict(settings), upstream])

    def run(
        self, name: str, key: str, compute: Callable[[Runtime], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return a stage's tensors from the store, or compute and store them.

        Raises:
            UserError: a result is NaN or infinite, cannot be stored, or must be there and is not.
        """
        found = self._store.get(name, key)
        if found is None and name in self._stored:
            raise UserError(
                f"expected the result of stage {name} in {self._store.folder} for these images and "
                "settings, got none; the images have changed or the folder is incomplete"
            )
        self._log.write("stage_start", stage=name)
        path = self._store.path(name, key).with_suffix(".checkpoint")
        checkpoint = StageCheckpoint(path, key, self._checkpoint_seconds)
        if found is None:
            with checkpoint, Meter(self._runtime.device) as meter:
                runtime = dataclasses.replace(self._runtime, checkpoint=checkpoint)
                with _deterministic_kernels_asked_for(name):
                    computed = compute(runtime)
                tensors = {k: v.detach().cpu().contiguous() for k, v in computed.items()}
            cost = {
                "seconds": checkpoint.seconds_before + meter.seconds,
                "peak_bytes": meter.peak_bytes,
            }
            check_all_finite(name, tensors)
            self._store.put(name, key, tensors, cost)
        else:
            tensors, cost = found
        checkpoint.remove()
        interruption.stop_if_requested()
        self._log.write("stage_end", stage=name, reused=found is not None, **cost)
        self.files[self._store.path(name, key).name] = cost["seconds"]
        total = self.costs.setdefault(name, {"seconds": 0.0, "peak_bytes": 0})
        total["seconds"] += cost["seconds"]
        total["peak_bytes"] = max(total["peak_bytes"], cost["peak_bytes"])
        return tensors


@contextmanager
def _deterministic_kernels_asked_for(stage: str) -> Iterator[None]:
    """Name an operator that has no deterministic kernel, where only such are allowed."""
    try:
        yield
    except RuntimeError as error:
        operator, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UserError(
            f"{stage}: expected operators with deterministic kernels, got {operator} without one; "
            "use another architecture or --deterministic false"
        ) from error


def check_all_finite(stage: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse to store a result that is no number.

    Raises:
        UserError: names the stage and the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                f"{stage}: expected finite values in its result {name!r}, got NaN or infinity; "
                "lower the learning rate or use --precision fp32"
            )
