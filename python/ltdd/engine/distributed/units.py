"""Share a stage's units out among the ranks: classes, batches, epochs, whatever stands alone.

A unit is computed as one process would compute it, by one rank and with nothing of the others, so
the result has the same bits for any number of ranks. Every rank keeps the state of its own units in
a checkpoint of its own; a run that goes on with another number of ranks finds them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from ltdd.engine.distributed.ranks import alone, current
from ltdd.engine.distributed.together import share_state
from ltdd.engine.runtime import Checkpoint, Runtime
from ltdd.engine.watching.events import HeldEvents

T = TypeVar("T")


def each(
    name: str,
    units: Sequence[T],
    compute: Callable[[T, Runtime], Mapping[str, Tensor]],
    runtime: Runtime,
    costs: Sequence[float] | None = None,
) -> list[dict[str, Tensor]]:
    """Compute every unit on one of the ranks and return all results on all of them, in order.

    Args:
        name: of the work; a checkpoint of other work is not taken for one of this.
        units: the same ones on all ranks.
        compute: makes tensors on the CPU of a unit. It is given the surroundings of the unit: what
            it logs comes to the log of the run, and what it keeps by its checkpoint is found by
            whichever rank goes on with the unit.
        runtime: surroundings of the stage.
        costs: what the units take, in any measure; None if they are alike.

    Example:
        >>> import torch
        >>> def square(unit, runtime):
        ...     return {"y": torch.tensor(unit**2)}
        >>> runtime = Runtime(torch.device("cpu"))
        >>> [made["y"].item() for made in each("squares", [1, 2, 3], square, runtime)]
        [1, 4, 9]
    """
    return Units(name, units, runtime, costs).map(compute)


class Units(Generic[T]):
    """The units of a stage, and those of them that this rank computes; see `each`.

    Args:
        name, units, runtime, costs: as in `each`.
        together: all ranks work on every unit, one after the other; what computes one has to
            divide its work (`current`) and return the same on all.
        carried: by name, what goes from one unit to the next, with a ``state_dict``; such units
            are worked on together.

    Attributes:
        mine: numbers of the units of this rank, ascending.
        done: number -> result, of those of this rank that a stopped run has finished.
        state: what it kept of the unit that comes next; empty if there is nothing.
    """

    def __init__(
        self,
        name: str,
        units: Sequence[T],
        runtime: Runtime,
        costs: Sequence[float] | None = None,
        together: bool = False,
        carried: Mapping[str, Any] | None = None,
    ) -> None:
        self._carried = dict(carried or {})
        self._name, self._units, self._runtime, self._together = name, units, runtime, together
        ranks, states = current(), runtime.checkpoint.shares()
        self.mine = share_out(costs or [1.0] * len(units), ranks.world)[ranks.rank]
        if together:
            self.mine, states = list(range(len(units))), share_state(ranks, states)
        self.done: dict[int, dict[str, Tensor]] = {}
        self._states: dict[int, dict[str, Any]] = {}
        own = set(self.mine)
        for kept in states:
            if kept.get("work") == name:
                self.done |= {n: made for n, made in kept["done"].items() if n in own}
                self._states[kept["unit"]] = kept["state"]
                for key, part in self._carried.items():
                    part.load_state_dict(kept["carried"][key])
        left = [number for number in self.mine if number not in self.done]
        self.state = self._states.get(left[0], {}) if left else {}

    def map(self, compute: Callable[[T, Runtime], Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Compute what is left, and return the results of all units."""
        ranks, checkpoint = current(), self._runtime.checkpoint
        if not self._together:
            checkpoint = checkpoint.share(ranks.rank)
        held = HeldEvents(self._runtime.log.write)
        log = self._runtime.log if ranks.is_first else held
        for number in self.mine:
            if number in self.done:
                continue
            own = _UnitCheckpoint(checkpoint, self._kept(number), self._states.pop(number, {}))
            surroundings = dataclasses.replace(self._runtime, checkpoint=own, log=log)
            with contextlib.nullcontext() if self._together else alone():
                made = compute(self._units[number], surroundings)
            self.done[number] = {key: tensor.detach().cpu() for key, tensor in made.items()}
            checkpoint.step(**self._kept(None), state={})
        results = [self.done.get(number, {}) for number in range(len(self._units))]
        for source in range(0 if self._together else ranks.world):
            mine = {f"{n}.{name}": t for n, made in self.done.items() for name, t in made.items()}
            for title, tensor in ranks.share_tensors(mine, source).items():
                place, _, name = title.partition(".")
                results[int(place)][name] = tensor
            told = ranks.share(held.events, source)
            for event in told if ranks.is_first else ():
                self._runtime.log.write(**event)
        self.done.clear()  # whoever takes the results may free them one by one
        return results

    def _kept(self, unit: int | None) -> dict[str, Any]:
        kept = {"work": self._name, "done": self.done, "unit": unit}
        return kept | ({"carried": self._carried} if self._carried else {})


class _UnitCheckpoint:
    """Keeps the state of a unit beside the results of those before it (`Checkpoint`)."""

    def __init__(
        self, whole: Checkpoint, kept: Mapping[str, Any], state: Mapping[str, Any]
    ) -> None:
        self._whole, self._kept, self._state = whole, kept, dict(state)

    def restore(self) -> dict[str, Any]:
        return self._state

    def step(self, **state: Any) -> None:
        self._whole.step(**self._kept, state=state)

    def shares(self) -> list[dict[str, Any]]:
        return [self._state]

    def share(self, rank: int) -> Checkpoint:
        return self


class Shares:
    """The units of every step of a stage, divided among the ranks, which wait for each other.

    Args:
        costs: what the units take, in any measure.

    Attributes:
        mine: numbers of the units of this rank, ascending.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._ranks = current()
        self._shares = share_out(costs, self._ranks.world)
        self.mine = self._shares[self._ranks.rank]

    def gather(self, rows: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Return the rows of every unit, in order, on all ranks.

        Args:
            rows: (n, ...), of the units of this rank one after the other.
            lengths: number of rows of every unit.
        """
        order = [unit for share in self._shares for unit in share]
        whole = self._ranks.join(rows, [sum(lengths[u] for u in share) for share in self._shares])
        parts = dict(zip(order, whole.split([lengths[unit] for unit in order]), strict=True))
        return [parts[unit] for unit in range(len(lengths))]


def share_out(costs: Sequence[float], world: int) -> list[list[int]]:
    """Divide units among ranks: the dearest first, each to the rank that has the least so far.

    Args:
        costs: of every unit.
        world: number of ranks.

    Returns:
        The numbers of the units of each rank, ascending.

    Example:
        >>> share_out([5, 1, 1, 3], 2)
        [[0], [1, 2, 3]]
    """
    loads, shares = [0.0] * world, [list[int]() for _ in range(world)]
    for number in sorted(range(len(costs)), key=lambda n: -costs[n]):
        rank = loads.index(min(loads))
        loads[rank] += costs[number]
        shares[rank].append(number)
    return [sorted(numbers) for numbers in shares]
