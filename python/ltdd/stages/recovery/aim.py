"""How far what an observer sees of a batch is from what it should see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.engine.runtime import Runtime
from ltdd.models.observer import Observer
from ltdd.stages.alignment_targets import LayerStatistics, batch_targets

Pair = tuple[Tensor, Tensor]


class RunningEstimate:
    """Mean and variance of every layer, averaged over iterations and batches (EDC).

    ``estimate <- momentum * estimate + (1 - momentum) * batch``. The first batch is the first
    estimate.

    Deviation: EDC's code starts from 0, so that its first estimates are far too small.

    Args:
        widths: columns of every layer.
        momentum: share of what was before.
        device: where it is.
    """

    def __init__(self, widths: Sequence[int], momentum: float, device: torch.device) -> None:
        self._momentum = momentum
        self._pairs = [
            (zeros, zeros.clone())
            for zeros in (torch.zeros(n, dtype=torch.float64, device=device) for n in widths)
        ]
        self._started = torch.zeros((), dtype=torch.bool, device=device)

    @torch.no_grad()
    def with_batch(self, batch: Sequence[Pair]) -> list[Pair]:
        """Return what the estimate becomes with a batch's statistics; `keep` makes it so."""

        def moved(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(self._started, torch.lerp(new, old, self._momentum), new)

        return [
            (moved(mean, new_mean), moved(var, new_var))
            for (mean, var), (new_mean, new_var) in zip(self._pairs, batch, strict=True)
        ]

    def keep(self, pairs: Sequence[Pair]) -> None:
        """Take over what `with_batch` returned."""
        for own, new in zip(self._pairs, pairs, strict=True):
            own[0].copy_(new[0])
            own[1].copy_(new[1])
        self._started.fill_(True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"pairs": [list(pair) for pair in self._pairs], "started": self._started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        for own, kept in zip(self._pairs, state["pairs"], strict=True):
            own[0].copy_(kept[0])
            own[1].copy_(kept[1])
        self._started.copy_(state["started"])


class Aim:
    """Targets of one observer for the composition of a batch, and the distance to them.

    Args:
        recorder: the observer.
        statistics: of the real images, one a watched layer.
        estimate: stands for the batch's statistics; None: they are the batch's own.
        labels: int64 (N,), of the batch.
        config: weights.
        targets: names the global and the class-wise target.
        runtime: device and operators.
    """

    def __init__(
        self,
        recorder: Observer,
        statistics: list[LayerStatistics],
        estimate: RunningEstimate | None,
        labels: Tensor,
        config: RecoveryConfig,
        targets: StatisticsConfig,
        runtime: Runtime,
    ) -> None:
        device = runtime.device
        self.recorder, self._estimate = recorder, estimate
        self._next: list[Pair] = []
        self._labels, self._config, self._ops = labels.to(device), config, runtime.ops
        layers = batch_targets(statistics, labels, targets)
        self._global = [(t.mean.to(device), t.var.to(device)) for t in layers]
        self._class_means = [t.class_mean.to(device) for t in layers]
        self._class_vars = [t.class_var.to(device) for t in layers]
        if config.class_part == "pooled":
            owners = labels.to(device)
            self._pooled = [
                (mean[owners].mean(0), var[owners].mean(0))
                for mean, var in zip(self._class_means, self._class_vars, strict=True)
            ]
        first = recorder.watched[0].name
        self._weights = [
            (config.first_layer_weight if entry.name == first else 1.0)
            * (config.patch_weight if entry.kind == "patches" else 1.0)
            for entry in recorder.watched
        ]

    def draw_kept(self, stream: torch.Generator) -> tuple[str, ...] | None:
        """Draw the layers that count in an iteration, by name; None for all of them."""
        if not self._config.hook_drop:
            return None
        names = dict.fromkeys(entry.name for entry in self.recorder.watched)
        norms = {entry.name for entry in self.recorder.watched if entry.kind == "batch_norm"}
        lot = torch.rand(len(names), generator=stream) >= self._config.hook_drop
        return tuple(n for n, kept in zip(names, lot.tolist(), strict=True) if kept or n in norms)

    def alignment(
        self,
        means: Sequence[Tensor],
        m2s: Sequence[Tensor],
        sizes: Sequence[int],
        kept: tuple[str, ...] | None,
    ) -> Tensor:
        """Return ``sum_l w_l D_l`` and the class-wise part, of the rows of every layer.

        Args:
            means, m2s: (N, C) a layer.
            sizes: elements of a row, one a layer.
            kept: of `draw_kept`.
        """
        config = self._config
        weights = [
            weight * (kept is None or entry.name in kept)
            for weight, entry in zip(self._weights, self.recorder.watched, strict=True)
        ]
        rows = (means, m2s, sizes, self._labels)
        shifts = self._shifts(means, m2s, sizes)
        each = config.class_part == "each"
        loss: Tensor = self._ops.align_loss(
            *rows,
            *_moved(self._global, shifts),
            self._class_means,
            self._class_vars,
            weights,
            config.class_alignment_weight if each else 0.0,
        )
        if not each and config.class_alignment_weight:
            pooled = self._ops.align_loss(*rows, *_moved(self._pooled, shifts), weights=weights)
            loss = loss + config.class_alignment_weight * pooled
        return loss

    def keep_estimate(self) -> None:
        """Let the batch of the last `alignment` enter the running estimate."""
        if self._estimate is not None:
            self._estimate.keep(self._next)

    @torch.no_grad()
    def _shifts(
        self, means: Sequence[Tensor], m2s: Sequence[Tensor], sizes: Sequence[int]
    ) -> list[Pair] | None:
        """Return by how much targets move so that the batch's distance is the estimate's.

        ``|u~ + (u - sg(u)) - t| = |u - (t + sg(u) - u~)|`` has the value of the estimate u~ and the
        gradient of the batch's own statistics u.
        """
        if self._estimate is None:
            return None
        batch = []
        for mean, m2, size in zip(means, m2s, sizes, strict=True):
            whole = mean.double().mean(0)
            spread = (m2.double() / size + (mean.double() - whole).square()).mean(0)
            batch.append((whole, spread))
        self._next = self._estimate.with_batch(batch)
        return [
            (mean - new_mean, var - new_var)
            for (mean, var), (new_mean, new_var) in zip(batch, self._next, strict=True)
        ]


def _moved(
    targets: Sequence[Pair], shifts: Sequence[Pair] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the means and the variances of moved targets."""
    if shifts is not None:
        targets = [
            (mean + by_mean, var + by_var)
            for (mean, var), (by_mean, by_var) in zip(targets, shifts, strict=True)
        ]
    return [mean for mean, _ in targets], [var for _, var in targets]
