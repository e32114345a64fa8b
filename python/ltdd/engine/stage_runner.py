"""Run a stage once: find its result by a hash of its inputs, or compute, check and store it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from ltdd.engine import interruption
from ltdd.engine.finite import check_all_finite
from ltdd.engine.memory import Meter
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.checkpoint import StageCheckpoint
from ltdd.engine.storage.files import fingerprint
from ltdd.engine.storage.stage_store import StageStore, StoredStage
from ltdd.errors import UserError

FORMAT = 5
"""Part of every key. Raise it when the algorithm or the output of a stage changes, or a default."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A value with the hash of everything that decided it.

    Attributes:
        value: the value.
        key: 64 hex digits.
    """

    value: T
    key: str

    def map(self, function: Callable[[T], U]) -> Stored[U]:
        """Return what a function makes of the value; the same inputs decide it."""
        return Stored(function(self.value), self.key)


class StageRunner:
    """Gives stages their results from a run folder, and counts what they cost.

    Args:
        out: run folder.
        common: what decides every stage: the data and the settings all stages share.
        runtime: surroundings handed to a stage that has to be computed.
        options: time between checkpoints, and the store shared with other runs.
        finished: names of stages that must be found, never computed.

    Attributes:
        costs: stage -> ``seconds`` and ``peak_bytes``, those of the process that computed it.
        files: name of every stored result that was used -> seconds it took to compute.
    """

    def __init__(
        self,
        out: Path,
        common: Mapping[str, Any],
        runtime: Runtime,
        options: RunOptions,
        finished: frozenset[str] = frozenset(),
    ) -> None:
        self.costs: dict[str, dict[str, float]] = {}
        self.files: dict[str, float] = {}
        self._store = StageStore(out, options.store)
        self._runtime, self._options, self._finished = runtime, options, finished
        self._common = {"format": FORMAT, **common}

    def key(
        self, stage: str, settings: Mapping[str, Any], inputs: Sequence[Stored[Any]] = ()
    ) -> str:
        """Return the hash of everything that decides a stage's output."""
        return fingerprint([stage, self._common, dict(settings), [stored.key for stored in inputs]])

    def run(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Sequence[Stored[Any]],
        compute: Callable[[Runtime], Mapping[str, Tensor]],
    ) -> Stored[dict[str, Tensor]]:
        """Return a stage's tensors from the store, or compute and store them.

        Args:
            name: of the stage.
            settings: JSON types; what decides the result besides data and inputs.
            inputs: results of earlier stages.
            compute: called where the result is not there yet.

        Raises:
            UserError: a result is NaN or infinite, cannot be stored, or must be there and is not.
        """
        key = self.key(name, settings, inputs)
        own = self._store.holds(name, key)
        found = self._store.get(name, key)
        if found is None and name in self._finished:
            raise UserError(
                f"expected the result of stage {name} in {self._store.folder} for these images and "
                "settings, got none; the images have changed or the folder is incomplete"
            )
        self._runtime.log.write("stage_start", stage=name)
        path = self._store.path(name, key).with_suffix(".checkpoint")
        checkpoint = StageCheckpoint(path, key, self._options.checkpoint_seconds)
        stored = found or self._compute(name, checkpoint, key, compute)
        checkpoint.remove()
        if found is not None and not own:
            self._runtime.say(f"{name}: reused from {self._store.shared}")
        interruption.stop_if_requested()
        self._runtime.log.write("stage_end", stage=name, reused=found is not None, **stored.meta)
        self.files[self._store.path(name, key).name] = stored.meta["seconds"]
        total = self.costs.setdefault(name, {"seconds": 0.0, "peak_bytes": 0})
        total["seconds"] += stored.meta["seconds"]
        total["peak_bytes"] = max(total["peak_bytes"], stored.meta["peak_bytes"])
        return Stored(stored.tensors, key)

    def _compute(
        self,
        name: str,
        checkpoint: StageCheckpoint,
        key: str,
        compute: Callable[[Runtime], Mapping[str, Tensor]],
    ) -> StoredStage:
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
        try:
            self._store.share(name, key)
        except UserError as error:  # the run has its result; other runs will compute it again
            self._runtime.tell("not_shared", f"{error}; LTDD_STORE names another place")
        return StoredStage(key, tensors, cost)


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
