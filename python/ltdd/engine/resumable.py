"""Loops of epochs and steps that go on where a stopped process was, with the same result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ltdd.engine.runtime import Runtime

T = TypeVar("T")


class Epoch:
    """One epoch of a `Resumable`.

    Attributes:
        number: from 0.
    """

    def __init__(self, number: int, runtime: Runtime, state: Mapping[str, Any]) -> None:
        self.number = number
        self._runtime, self._state = runtime, state

    def steps(
        self,
        items: Iterable[T],
        parts: Mapping[str, Any],
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[int, T]]:
        """Yield (number, item) of the steps that are left, and keep the state after each.

        Args:
            items: one per step of the epoch, the same ones in every process; steps count from 1.
            parts: by name, what the steps change: networks, optimizers, schedules, tensors;
                and the `LossWatch` that is told of them.
            generator: what the steps draw from; its state is kept too.
        """
        if generator is not None and "generator" in self._state:
            generator.set_state(self._state["generator"])
        for number, item in enumerate(items, 1):
            if number <= self._state.get("step", 0):
                continue
            yield number, item
            drawn = {} if generator is None else {"generator": generator.get_state()}
            place = {"epoch": self.number, "step": number}
            self._runtime.checkpoint.step(**parts, **place, **drawn)


class Resumable:
    """The epochs of a stage, from the place in the checkpoint on.

    Args:
        runtime: holds the checkpoint.

    Attributes:
        state: what a stopped process kept; empty if there was none.
        first: epoch to go on in.
        step: steps of that epoch that are done.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.state = runtime.checkpoint.restore()
        self.first: int = self.state.get("epoch", 0)
        self.step: int = self.state.get("step", 0)

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Load the state that was kept into networks, optimizers, schedules and tensors."""
        for name, part in parts.items() if self.state else ():
            if isinstance(part, Tensor):
                with torch.no_grad():
                    part.copy_(self.state[name])
                continue
            part.load_state_dict(self.state[name])
            for group in getattr(part, "param_groups", ()):
                if isinstance(group["lr"], Tensor):  # optimizers move their state, not their rates
                    group["lr"] = group["lr"].to(self._runtime.device)

    def epochs(self, count: int) -> Iterator[Epoch]:
        """Yield the epochs that are left of ``count``."""
        for number in range(self.first, count):
            yield Epoch(number, self._runtime, self.state if number == self.first else {})
