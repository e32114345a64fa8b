"""Give students their labels: one class per kind.

A source is asked for every view of the student's training. It reads no value from the device, so
that a step may be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ltdd.config import TeacherMode
from ltdd.data.augmentation.student_views import View, mix
from ltdd.data.packed_logits import PackedLogits
from ltdd.engine.chunks import Chunks
from ltdd.engine.runtime import Runtime
from ltdd.models.inference import by_batch, fused, view_logits, whole_logits


class LabelSource(Protocol):
    """Anything that gives the teacher's logits of a view."""

    def rows(self, epoch: int, start: int, count: int) -> Tensor:
        """Return what is stored of an epoch's images from ``start`` on; (0,) if nothing is."""

    def logits(self, view: View, batch: Tensor, rows: Tensor) -> Tensor | None:
        """Return the teacher's logits (B, K), or None for class labels alone.

        Args:
            view: the view.
            batch: its images as the networks see them, (B, C, H, W).
            rows: what `rows` returned for them.
        """


Teacher = Callable[[Tensor], Tensor]


def as_asked(teacher: nn.Module, mode: TeacherMode) -> Teacher:
    """Return a frozen teacher whose batch norms normalise by what the mode says."""
    return by_batch(teacher) if mode == "batch" else fused(teacher)


def answer_views(
    teacher: Teacher, batch: Tensor, mode: TeacherMode, runtime: Runtime, chunks: Chunks
) -> Tensor:
    """Return the logits (B, K) of a teacher for a batch of views.

    Args:
        teacher: of `as_asked`.
        batch: normalised images (B, C, H, W), on the runtime's device.
        mode: ``batch`` shows it all of them at once.
        runtime: device and precision.
        chunks: how many it is shown at once otherwise.
    """
    if mode == "batch":
        return whole_logits(teacher, batch, runtime)
    return view_logits(teacher, batch, runtime, chunks)


class _NothingStored:
    def rows(self, epoch: int, start: int, count: int) -> Tensor:
        """Return (0,)."""
        return torch.empty(0)


class HardLabels(_NothingStored):
    """``hard``: the class labels alone."""

    def logits(self, view: View, batch: Tensor, rows: Tensor) -> None:
        """Return None."""


class StaticLabels(_NothingStored):
    """``static``: one logit vector per image, mixed like the view mixes the images.

    Args:
        logits: (M, K).
        device: where the student is.
    """

    def __init__(self, logits: Tensor, device: torch.device) -> None:
        self._logits = logits.to(device)

    def logits(self, view: View, batch: Tensor, rows: Tensor) -> Tensor:
        """Return the mixed logits."""
        return mix(view, self._logits[view.indices])


class StoredLabels:
    """``fkd``: the stored logits of the very same views.

    Args:
        table: (epochs, M, K), in the order in which the views are shown.
    """

    def __init__(self, table: PackedLogits) -> None:
        self._table = table

    def rows(self, epoch: int, start: int, count: int) -> Tensor:
        """Return the stored rows of an epoch's images from ``start`` on."""
        return self._table[epoch, start : start + count]

    def logits(self, view: View, batch: Tensor, rows: Tensor) -> Tensor:
        """Return the rows."""
        return rows


class OnlineLabels(_NothingStored):
    """``online``: the teacher is asked while the student trains.

    Args:
        teacher: the network.
        runtime: device and precision.
        shift: (K,), on the device, subtracted from the teacher's logits; None for nothing.
        mode: what its batch norms normalise by.
    """

    def __init__(
        self,
        teacher: nn.Module,
        runtime: Runtime,
        shift: Tensor | None = None,
        mode: TeacherMode = "eval",
    ) -> None:
        self._teacher, self._runtime, self._mode = as_asked(teacher, mode), runtime, mode
        self._shift: Tensor | float = 0.0 if shift is None else shift

    def logits(self, view: View, batch: Tensor, rows: Tensor) -> Tensor:
        """Return the teacher's answer, rounded as if it had been stored."""
        chunks = Chunks("relabeling", len(batch), self._runtime)
        answer = answer_views(self._teacher, batch, self._mode, self._runtime, chunks)
        return answer.to(torch.float16).float() - self._shift
