"""Run a stage once: find its result by a hash of its inputs, or compute, check and store it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from ltdd.engine import interruption
from ltdd.engine.distributed.ranks import alone, current
from ltdd.engine.distributed.together import CommonCheckpoint
from ltdd.engine.finite import check_all_finite
from ltdd.engine.machine.memory import Meter
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import Checkpoint, Log, Runtime
from ltdd.engine.storage.checkpoint import SUFFIX, StageCheckpoint
from ltdd.engine.storage.files import fingerprint
from ltdd.engine.storage.stage_store import StageStore, StoredStage
from ltdd.engine.turns import Turns, by_turns, finished, timed
from ltdd.engine.watching.events import HeldEvents
from ltdd.errors import UserError

FORMAT = 5
"""Part of every key. Raise it when the algorithm or the output of a stage changes, or a default."""

T = TypeVar("T")
U = TypeVar("U")
Made = Mapping[str, Tensor]
Compute = Callable[[Runtime], Made | Turns[Made]]
"""What computes the tensors of a stage; one that pauses between its steps may go by turns."""


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


class Call(NamedTuple):
    """Arguments of `StageRunner.run`."""

    name: str
    settings: Mapping[str, Any]
    inputs: Sequence[Stored[Any]]
    compute: Compute


class StageRunner:
    """Gives stages their results from a run folder, and counts what they cost.

    Args:
        out: run folder.
        common: what decides every stage: the data and the settings all stages share.
        runtime: surroundings handed to a stage that has to be computed.
        options: time between checkpoints, and the store shared with other runs.
        finished: names of stages that must be found, never computed.

    Attributes:
        costs: stage -> ``seconds`` and ``peak_bytes``, those of the process that computed it; of
            results that take turns the seconds of each one's own, and the bytes of all.
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
        compute: Compute,
    ) -> Stored[dict[str, Tensor]]:
        """Return a stage's tensors from the store, or compute and store them.

        Where there are several ranks, all of them compute it together.

        Args:
            name: of the stage.
            settings: JSON types; what decides the result besides data and inputs.
            inputs: results of earlier stages.
            compute: called where the result is not there yet.

        Raises:
            UserError: a result is NaN or infinite, cannot be stored, or must be there and is not.
        """
        return finished(self._run(Call(name, settings, inputs, compute)))

    def run_all(
        self, calls: Sequence[Call], splittable: bool = False
    ) -> list[Stored[dict[str, Tensor]]]:
        """Return the tensors of several results of a stage that do not need each other.

        On a GPU several that pause between their steps take turns. Where there are several ranks,
        each of them computes one of those that are not there yet, by itself, and then the next one.

        Args:
            calls: as the arguments of `run`.
            splittable: whether ranks may share the work of one result. They do, and compute one
                after the other, where there are fewer results than ranks.

        Raises:
            UserError: as `run`.
        """
        ranks = current()
        if ranks.world == 1:
            starts = [partial(self._run, call) for call in calls]
            return by_turns(calls[0].name, starts, self._runtime) if calls else []
        keys = [self.key(name, settings, inputs) for name, settings, inputs, _ in calls]
        found = [self._find(call.name, key) for call, key in zip(calls, keys, strict=True)]
        missing = [number for number, stored in enumerate(found) if stored is None]
        results = {
            number: self._reuse(calls[number].name, stored)
            for number, stored in enumerate(found)
            if stored is not None
        }
        together = splittable and len(missing) < ranks.world
        if missing:
            how = "all work on one at a time" if together else "each works on one at a time"
            many = f"{len(missing)} to compute on {ranks.world} ranks"
            self._runtime.say(f"{calls[missing[0]].name}: {many}, {how}")
        turns = range(0, len(missing), 1 if together else ranks.world)
        for turn in (missing[start : start + turns.step] for start in turns):
            if together:
                call, key = calls[turn[0]], keys[turn[0]]
                made = [finished(self._run_together(call.name, key, call.compute))]
            else:
                made = self._run_apart([(calls[n].name, keys[n], calls[n].compute) for n in turn])
            results |= dict(zip(turn, made, strict=True))
        return [results[number] for number in range(len(calls))]

    def _run(self, call: Call) -> Turns[Stored[dict[str, Tensor]]]:
        """Return a result from the store, or have all ranks compute and store it."""
        key = self.key(call.name, call.settings, call.inputs)
        found = self._find(call.name, key)
        if found:
            return self._reuse(call.name, found)
        return (yield from self._run_together(call.name, key, call.compute))

    def _find(self, name: str, key: str) -> StoredStage | None:
        """Let the first rank look for a result, and give it to all."""
        ranks, found = current(), None
        if ranks.is_first:
            own = self._store.holds(name, key)
            found = self._store.get(name, key)
            if found is None and name in self._finished:
                raise UserError(
                    f"expected the result of stage {name} in {self._store.folder} for these images "
                    "and settings, got none; the images have changed or the folder is incomplete"
                )
            if found is not None and not own:
                self._runtime.say(f"{name}: reused from {self._store.shared}")
        meta = ranks.share(None if found is None else found.meta)
        if meta is None:
            return None
        return StoredStage(key, ranks.share_tensors(found.tensors if found else {}), meta)

    def _reuse(self, name: str, stored: StoredStage) -> Stored[dict[str, Tensor]]:
        self._runtime.log.write("stage_start", stage=name)
        return self._finish(name, stored, reused=True)

    def _run_together(
        self, name: str, key: str, compute: Compute
    ) -> Turns[Stored[dict[str, Tensor]]]:
        """Have all ranks compute a result."""
        self._runtime.log.write("stage_start", stage=name)
        ranks, checkpoint = current(), self._checkpoint(name, key)
        kept = checkpoint if ranks.world == 1 else CommonCheckpoint(checkpoint, ranks)
        made = yield from self._compute(name, checkpoint, compute, kept, self._runtime.log)
        return self._finish(name, self._keep(name, key, made), reused=False)

    def _run_apart(
        self, calls: Sequence[tuple[str, str, Compute]]
    ) -> list[Stored[dict[str, Tensor]]]:
        """Have every rank compute one result: name, key and what computes it."""
        ranks, held = current(), HeldEvents(self._runtime.log.write)
        log = self._runtime.log if ranks.is_first else held
        made: StoredStage | None = None
        if ranks.rank < len(calls):
            name, key, compute = calls[ranks.rank]
            checkpoint = self._checkpoint(name, key)
            with alone():
                made = finished(self._compute(name, checkpoint, compute, checkpoint, log))
        results = []
        for source, (name, key, _) in enumerate(calls):
            self._runtime.log.write("stage_start", stage=name)
            told = ranks.share(held.events, source)
            for event in told if ranks.is_first else ():
                self._runtime.log.write(**event)
            results.append(self._finish(name, self._keep(name, key, made, source), reused=False))
        return results

    def _checkpoint(self, name: str, key: str) -> StageCheckpoint:
        path = self._store.path(name, key).with_suffix(SUFFIX)
        return StageCheckpoint(path, key, self._options.checkpoint_seconds)

    def _compute(
        self, name: str, checkpoint: StageCheckpoint, compute: Compute, kept: Checkpoint, log: Log
    ) -> Turns[StoredStage]:
        with checkpoint, Meter(self._runtime.device) as meter:

            def paused(seconds: float) -> None:
                checkpoint.skip(seconds)
                meter.skip(seconds)

            runtime = dataclasses.replace(self._runtime, checkpoint=kept, log=log)
            with _deterministic_kernels_asked_for(name):
                computed = compute(runtime)
                if isinstance(computed, Generator):
                    computed = yield from timed(computed, paused)
            tensors = {k: v.detach().cpu().contiguous() for k, v in computed.items()}
        check_all_finite(name, tensors)
        cost = {
            "seconds": checkpoint.seconds_before + meter.seconds,
            "peak_bytes": meter.peak_bytes,
        }
        return StoredStage(checkpoint.key, tensors, cost)

    def _keep(self, name: str, key: str, made: StoredStage | None, source: int = 0) -> StoredStage:
        """Let the first rank store what one of them computed, and give it to all."""
        ranks = current()
        meta = ranks.share(made.meta if made else None, source)
        stored = StoredStage(key, ranks.share_tensors(made.tensors if made else {}, source), meta)
        if ranks.is_first:
            self._store.put(name, key, stored.tensors, meta)
            try:
                self._store.share(name, key)
            except UserError as error:  # the run has its result; other runs will compute it again
                self._runtime.tell("not_shared", f"{error}; LTDD_STORE names another place")
        ranks.share(None)  # stored: from here on no checkpoint is needed
        self._checkpoint(name, key).remove()
        return stored

    def _finish(self, name: str, stored: StoredStage, reused: bool) -> Stored[dict[str, Tensor]]:
        if reused:
            self._checkpoint(name, stored.key).remove()
        interruption.stop_if_requested()
        self._runtime.log.write("stage_end", stage=name, reused=reused, **stored.meta)
        self.files[self._store.path(name, stored.key).name] = stored.meta["seconds"]
        total = self.costs.setdefault(name, {"seconds": 0.0, "peak_bytes": 0})
        total["seconds"] += stored.meta["seconds"]
        total["peak_bytes"] = max(total["peak_bytes"], stored.meta["peak_bytes"])
        return Stored(stored.tensors, stored.key)


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
