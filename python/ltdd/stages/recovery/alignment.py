"""Optimise the images until their statistics match the fair ones (arXiv:2511.18858, Eq. 2-4).

``L = lambda_ce * CE + r * (sum_l w_l D_l + eta * mean_k sum_l w_l D_lk)`` with
``D = |mean - target mean|_2 + |var - target var|_2`` over the channels of layer l, for the whole
batch and for the images of each class k. Batches are class-stratified and of fixed size, so memory
does not grow with ipc. Every image draws its own crop in every iteration.

The settings make it SRe2L (arXiv:2306.13092), EDC (arXiv:2404.13733) or G-VBSM (arXiv:2311.17950):
`aim` has their targets, `views` their augmentation, `batches` their order, `eigenvalues` a term of
G-VBSM.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.data.image_spec import ImageSpec
from ltdd.engine.cast_weights import frozen_weights_cast
from ltdd.engine.chunks import Chunks, agreed
from ltdd.engine.cuda_graphs import RecordedSteps, adjustable_rate
from ltdd.engine.distributed.ranks import Ranks, current
from ltdd.engine.distributed.units import Units
from ltdd.engine.loss_watch import LossWatch
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.models.observer import Observer
from ltdd.stages.alignment_targets import LayerStatistics
from ltdd.stages.recovery.aim import Aim, RunningEstimate
from ltdd.stages.recovery.batches import plan_batches
from ltdd.stages.recovery.eigenvalues import eigenvalue_loss
from ltdd.stages.recovery.views import Shown, draw, scaled, show
from ltdd.stages.run import InitialImages

_How = tuple[int, int, tuple[str, ...] | None]  # of a step: observer, chunk, layers
ADAM_BETAS = (0.5, 0.9)  # SRe2L and every method after it
LOG_EVERY = 10  # iterations between two events
SHARES = 4  # into which a CPU always divides a batch that up to so many ranks might share
SMALLEST_SHARE = 8  # images of a share


class Observed(NamedTuple):
    """A network whose statistics are matched.

    Attributes:
        network: trained.
        statistics: of the real images, one per watched layer.
    """

    network: nn.Module
    statistics: list[LayerStatistics]


def align_images(
    start: InitialImages,
    observers: Sequence[Observed],
    spec: ImageSpec,
    config: RecoveryConfig,
    targets: StatisticsConfig,
    runtime: Runtime,
) -> Tensor:
    """Return the optimised images.

    Args:
        start: the images to begin with, class-major.
        observers: they take turns, one per iteration.
        spec: form of the images.
        config: weights and schedule.
        targets: names the watched layers, the global and the class-wise target.
        runtime: device, precision, backend, seed.

    Returns:
        float32 (M, C, H, W) in [0, 1], on the CPU.

    Raises:
        UserError: the loss became NaN or infinite.
    """
    images, labels = start.images, start.labels
    recorders = [
        (Observer(network, runtime.ops, targets.layers), own) for network, own in observers
    ]
    estimates = [_estimate(own, config, runtime) for _, own in observers]
    ipc = len(labels) // spec.num_classes
    plan = plan_batches(spec.num_classes, ipc, config.max_batch, config.order)
    # The images of every batch are divided where there are fewer batches than ranks, or where one
    # batch begins with what the one before it has left.
    averages = {f"estimate{n}": one for n, one in enumerate(estimates) if one is not None}
    together = len(plan) < current().world or bool(averages)
    shared = together or len(plan) < SHARES
    chunks = Chunks("recovery", max(len(part) for part in plan), runtime)

    def align(number: int, runtime: Runtime) -> dict[str, Tensor]:
        own = labels[plan[number]]
        aims = [
            Aim(*observed, estimate, own, config, targets, runtime)
            for observed, estimate in zip(recorders, estimates, strict=True)
        ]
        shares = _shares(len(own), runtime.device) if shared else [range(len(own))]
        batch = _Batch(images[plan[number]], own, shares, aims, spec, config, chunks, runtime)
        course, losses = Resumable(runtime), LossWatch("recovery", runtime)
        parts = {**batch.parts, "losses": losses}
        course.restore(parts)
        networks = nn.ModuleList(aim.recorder.network for aim in aims)
        recordable = _is_recordable(config, runtime) and current().world == 1
        steps = RecordedSteps(batch.step, networks, runtime, recordable)
        with frozen_weights_cast(networks, runtime):
            for epoch in course.epochs(1):
                for step, _ in epoch.steps(range(config.iterations), parts):
                    iteration = step - 1
                    losses.add(iteration, batch.advance(steps, number, iteration))
                    logged = iteration % LOG_EVERY == 0 or step == config.iterations
                    if logged or not losses.delayed:
                        told = partial(_write, runtime, number, iteration) if logged else None
                        losses.end_group(told)
                    note = "" if losses.newest is None else f"loss {losses.newest:.3f}"
                    progress.step(note, len(own))
        losses.settle()
        return {"images": batch.images()}

    sizes = list(map(len, plan))
    work = Units("recovery", range(len(plan)), runtime, sizes, together, averages)
    total, restored = (len(batches) * config.iterations for batches in (work.mine, work.done))
    restored += work.state.get("step", 0)
    with runtime.progress(total, "recovery", restored) as progress:
        made = work.map(align)
    result = torch.empty_like(images)
    for positions, batch in zip(plan, made, strict=True):
        result[positions] = batch["images"]
    return result


def _estimate(
    statistics: Sequence[LayerStatistics], config: RecoveryConfig, runtime: Runtime
) -> RunningEstimate | None:
    if not config.momentum:
        return None
    widths = [layer.mean.shape[1] for layer in statistics]
    return RunningEstimate(widths, config.momentum, runtime.device)


def _is_recordable(config: RecoveryConfig, runtime: Runtime) -> bool:
    """Return whether a step is the same kernels in every iteration, and reads nothing from them.

    The plain twins of the operators look at labels while they run; dropped layers change from
    iteration to iteration; eigenvalues are found on the host.
    """
    return runtime.backend == "compiled" and not config.hook_drop and not config.eigen_weight


def _write(runtime: Runtime, batch: int, iteration: int, losses: Tensor) -> None:
    """Write the last of the losses (n, 3) that were looked at together."""
    loss, alignment, cross_entropy = losses[-1].tolist()
    runtime.log.write(
        "recover",
        iteration=iteration,
        batch=batch,
        loss=loss,
        alignment=alignment,
        cross_entropy=cross_entropy,
    )


class _Batch:
    """Images that are optimised together by Adam with a cosine schedule.

    Attributes:
        parts: what the steps change, by name.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        shares: Sequence[range],
        aims: Sequence[Aim],
        spec: ImageSpec,
        config: RecoveryConfig,
        chunks: Chunks,
        runtime: Runtime,
    ) -> None:
        device = runtime.device
        mean, std = (v.view(-1, 1, 1) for v in spec.normalization.tensors(device))
        self._mean, self._std, self._bounds = mean, std, (-mean / std, (1 - mean) / std)
        self._pixels = ((images.to(device) - mean) / std).requires_grad_()
        self._labels, self._aims, self._spec = labels.to(device), aims, spec
        self._shares = shares
        self._config, self._chunks, self._runtime = config, chunks, runtime
        self._padding = scaled(config.crop_padding, spec.size)
        self._classes = [torch.nonzero(labels == k).flatten().to(device) for k in labels.unique()]
        self._optimizer = torch.optim.Adam(
            [self._pixels],
            lr=adjustable_rate(config.learning_rate, device),
            betas=ADAM_BETAS,
            fused=True,
            capturable=device.type == "cuda",
        )
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimizer, config.iterations
        )
        self.parts = {
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            "pixels": self._pixels,
        }

    def images(self) -> Tensor:
        """Return the images as they are now, float32 in [0, 1], on the CPU."""
        return (self._pixels.detach() * self._std + self._mean).clamp(0, 1).cpu()

    def advance(self, steps: RecordedSteps, number: int, iteration: int) -> Tensor:
        """Take one step: every image draws a crop, and one observer looks; return its losses.

        Args:
            steps: calls `step`.
            number: of the batch; names the random streams.
            iteration: chooses the observer.
        """
        stream = self._runtime.stream("recovery", number, iteration)
        shown = draw(len(self._labels), self._spec, self._config, stream)
        observer = iteration % len(self._aims)
        kept = self._aims[observer].draw_kept(stream)
        losses = self._chunks.fit(
            lambda chunk: steps(shown, variant=(observer, chunk, kept)), len(self._labels)
        )
        self._schedule.step()
        return losses

    def step(self, shown: Shown, how: _How) -> Tensor:
        """Move the pixels by the gradient that one observer gives; return the losses.

        Args:
            shown: of all images.
            how: the observer, the images that go through it at once, and the layers that count.
        """
        observer, chunk, kept = how
        aim = self._aims[observer]
        losses = self._set_gradient(aim, shown, chunk, kept)
        aim.keep_estimate()
        self._optimizer.step()
        with torch.no_grad():
            self._pixels.clamp_(*self._bounds)
        return losses

    def _set_gradient(
        self, aim: Aim, shown: Shown, chunk: int, kept: tuple[str, ...] | None
    ) -> Tensor:
        """Set the gradient of the pixels; return loss, alignment and cross-entropy, float64 (3,).

        The objective is one of the whole batch, but it sees the images through a few rows each:
        moments and logits. Its gradient by these rows is all that an image's own backward pass
        needs. The shares of the batch are therefore looked at one by one, by whichever rank, and
        smaller chunks compute the same with a second forward pass. The term of eigenvalues needs
        the pixels of the whole batch, but no network.

        Args:
            aim: the observer and its targets.
            shown: of all images.
            chunk: images that go through the network at once.
            kept: names of the layers that count; None for all.
        """
        config, ranks = self._config, current()
        groups = [_part(self._shares, rank, ranks.world) for rank in range(ranks.world)]
        lengths = [sum(map(len, group)) for group in groups]
        first, mine = sum(lengths[: ranks.rank]), lengths[ranks.rank]
        parts = [
            slice(start, min(start + chunk, share.stop))
            for share in groups[ranks.rank]
            for start in range(share.start, share.stop, chunk)
        ]
        at_once = chunk >= mine

        def look() -> list[tuple[list[Tensor], list[int]]]:
            with torch.set_grad_enabled(at_once):
                # A rank without images looks at one to know the form of the rows.
                return [self._rows(aim, shown, part) for part in parts or [slice(0, 1)]]

        passes = agreed(look)
        sizes = passes[0][1]
        columns = zip(*(own for own, _ in passes), strict=True)
        own = [_joined(column).detach()[:mine] for column in columns]
        rows = [column.requires_grad_() for column in _join_columns(own, lengths, ranks)]
        logits, means, m2s = rows[0], rows[1::2], rows[2::2]
        alignment = aim.alignment(means, m2s, sizes, kept)
        cross_entropy = F.cross_entropy(logits, self._labels)
        loss = config.classification_weight * cross_entropy + config.alignment_weight * alignment
        gradients = torch.autograd.grad(loss, rows)

        def look_back() -> None:
            self._pixels.grad = torch.zeros_like(self._pixels) if ranks.world > 1 else None
            for number, part in enumerate(parts):
                seen, _ = passes[number] if at_once else self._rows(aim, shown, part)
                torch.autograd.backward(seen, [gradient[part] for gradient in gradients])

        agreed(look_back)
        if ranks.world > 1:
            assert self._pixels.grad is not None
            whole = ranks.join(self._pixels.grad[first : first + mine], lengths)
            self._pixels.grad = whole
        if config.eigen_weight:
            evening = config.eigen_weight * eigenvalue_loss(self._pixels, self._classes)
            torch.autograd.backward(evening)
            loss = loss.detach() + evening
        return torch.stack([value.detach().double() for value in (loss, alignment, cross_entropy)])

    def _rows(self, aim: Aim, shown: Shown, part: slice) -> tuple[list[Tensor], list[int]]:
        """Return logits, then mean and m2 of every layer, of a part; and the layers' pixels."""
        whole = len(range(*part.indices(len(self._pixels)))) == len(self._pixels)
        pixels = self._pixels if whole else self._pixels[part]
        views = show(pixels, shown.part(part), self._padding)
        with self._runtime.autocast():
            logits, moments = aim.recorder(views)
        rows = [logits.float(), *(row for layer in moments for row in (layer.mean, layer.m2))]
        return rows, [layer.spatial_size for layer in moments]


def _shares(count: int, device: torch.device) -> list[range]:
    """Return the images of a batch in shares that go through the network one by one.

    A CPU chooses its convolutions by the number of images, and each rounds otherwise: an image has
    the same digits on any number of ranks only if it is always in the same company.
    """
    least = 1 if device.type == "cuda" else SHARES
    number = min(max(current().world, least), max(count // SMALLEST_SHARE, 1))
    bounds = [count * share // number for share in range(number + 1)]
    return [range(*pair) for pair in itertools.pairwise(bounds)]


def _part(shares: Sequence[range], rank: int, world: int) -> Sequence[range]:
    """Return the shares of a rank; there may be none."""
    return shares[len(shares) * rank // world : len(shares) * (rank + 1) // world]


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    """Return parts one after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _join_columns(columns: list[Tensor], lengths: list[int], ranks: Ranks) -> list[Tensor]:
    """Return columns of the rows (n, ...) of this rank with those of all of them, in order."""
    if ranks.world == 1:
        return columns
    whole = ranks.join(torch.cat(columns, dim=1), lengths)
    parts = whole.split([column.shape[1] for column in columns], dim=1)
    return [part.to(own.dtype) for part, own in zip(parts, columns, strict=True)]
