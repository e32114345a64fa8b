"""Losses of a stage's steps, looked at without holding up the device that computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltdd.engine.finite import check_each
from ltdd.engine.runtime import Runtime

DELAYED = frozenset({"cuda"})  # kinds of devices that go on while a loss is looked at
Told = Callable[[Tensor], None]


class LossWatch:
    """Looks at the losses of consecutive steps in groups, such as epochs.

    On a CPU a group is looked at when it ends. A GPU would run out of work while the host waits for
    a loss: there a group is copied when it ends, and looked at when the next one ends. Before the
    state is saved all losses are looked at, so whichever step was the first to go wrong is named.

    Args:
        stage: named in the message.
        runtime: device.

    Attributes:
        delayed: whether groups are looked at later.
        newest: the loss of the newest step that was looked at, or None.
    """

    def __init__(self, stage: str, runtime: Runtime) -> None:
        self._stage, self._device = stage, runtime.device
        self.delayed = runtime.device.type in DELAYED
        self.newest: float | None = None
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._ended: _Group | None = None

    def add(self, step: int, loss: Tensor) -> None:
        """Take the loss of a step.

        Args:
            step: its number in the message.
            loss: a scalar, or a vector (n,) whose first entry is the loss.
        """
        self._steps.append(step)
        self._losses.append(loss)

    def end_group(self, tell: Told | None = None) -> None:
        """End the group, of one step at least.

        Args:
            tell: called with the losses of the group, stacked, on the CPU, once they are looked at;
                None for nobody.

        Raises:
            UserError: a loss, of this group or of the one before, is NaN or infinite; the message
                names the stage and the first such step.
        """
        group = self._copied(tell)
        self._steps, self._losses = [], []
        self.settle()
        self._ended = group
        if not self.delayed:
            self.settle()

    def settle(self) -> None:
        """Look at the group that ended last, if nobody has.

        Raises:
            UserError: as `end_group`.
        """
        if self._ended is not None:
            group, self._ended = self._ended, None
            losses = self._look(group)
            if group.tell is not None:
                group.tell(losses)

    def state_dict(self) -> dict[str, Any]:
        """Look at all losses and return those of the open group for a checkpoint.

        Raises:
            UserError: as `end_group`.
        """
        self.settle()
        losses = list(self._look(self._copied())) if self._losses else []
        return {"steps": self._steps, "losses": losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._steps, self._losses = list(state["steps"]), list(state["losses"])

    def _copied(self, tell: Told | None = None) -> _Group:
        # Those of a checkpoint are on the CPU.
        together = torch.stack([loss.to(self._device) for loss in self._losses])
        copy = together.to("cpu", non_blocking=True)  # pinned, if it comes from a GPU
        made = None
        if together.is_cuda:
            made = torch.cuda.Event()
            made.record()
        return _Group(self._steps, copy, made, tell)

    def _look(self, group: _Group) -> Tensor:
        if group.made is not None:
            group.made.synchronize()
        values = group.losses.reshape(len(group.steps), -1)[:, 0]
        check_each(values, self._stage, [("loss", step) for step in group.steps])
        self.newest = float(values[-1])
        return group.losses


class _Group(NamedTuple):
    """Losses of consecutive steps, on their way to the CPU.

    Attributes:
        steps: their numbers.
        losses: one a step; there once ``made`` has happened.
        made: the end of the copy; None if it is made already.
        tell: of `LossWatch.end_group`.
    """

    steps: list[int]
    losses: Tensor
    made: torch.cuda.Event | None
    tell: Told | None
