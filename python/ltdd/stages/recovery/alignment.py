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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.data.image_spec import ImageSpec
from ltdd.engine.chunks import Chunks, agreed
from ltdd.engine.cuda_graphs import RecordedSteps, adjustable_rate
from ltdd.engine.distributed.ranks import Ranks, current
from ltdd.engine.distributed.units import Units
from ltdd.engine.finite import check_finite
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
SMALLEST_SHARE = 16  # images of a rank: with fewer, matrix products go another way, to other digits


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
    averages = {f"estimate{n}": one for n, one in enumerate(estimates) if one is not None}
    ipc = len(labels) // spec.num_classes
    plan = plan_batches(spec.num_classes, ipc, config.max_batch, config.order)
    chunks = Chunks("recovery", max(len(part) for part in plan), runtime)

    def align(number: int, runtime: Runtime) -> dict[str, Tensor]:
        own = labels[plan[number]]
        aims = [
            Aim(*observed, estimate, own, config, targets, runtime)
            for observed, estimate in zip(recorders, estimates, strict=True)
        ]
        batch = _Batch(images[plan[number]], own, aims, spec, config, chunks, runtime)
        course = Resumable(runtime)
        course.restore(batch.parts)
        networks = nn.ModuleList(aim.recorder.network for aim in aims)
        recordable = _is_recordable(config, runtime) and current().world == 1
        steps = RecordedSteps(batch.step, networks, runtime, recordable)
        for epoch in course.epochs(1):
            for step, _ in epoch.steps(range(config.iterations), batch.parts):
                iteration = step - 1
                losses = batch.advance(steps, number, iteration)
                loss = check_finite(losses.loss, "recovery", iteration, "loss")
                if iteration % LOG_EVERY == 0 or step == config.iterations:
                    runtime.log.write(
                        "recover",
                        iteration=iteration,
                        batch=number,
                        loss=loss,
                        alignment=float(losses.alignment),
                        cross_entropy=float(losses.cross_entropy),
                    )
                progress.step(f"loss {loss:.3f}", len(own))
        return {"images": batch.images()}

    # The images of every batch are divided where there are fewer batches than ranks, or where one
    # batch begins with what the one before it has left.
    together = len(plan) < current().world or bool(averages)
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


class _Losses(NamedTuple):
    """The parts of the objective, float64 scalars on the CPU."""

    loss: Tensor
    alignment: Tensor
    cross_entropy: Tensor


class _Batch:
    """Images that are optimised together by Adam with a cosine schedule.

    Attributes:
        parts: what the steps change, by name.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
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

    def advance(self, steps: RecordedSteps, number: int, iteration: int) -> _Losses:
        """Take one step: every image draws a crop, and one observer looks.

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
        return _Losses(*losses.cpu())

    def step(self, shown: Shown, how: _How) -> Tensor:
        """Move the pixels by the gradient that one observer gives; return the parts of `_Losses`.

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
            self._pixels.copy_(torch.clamp(self._pixels, *self._bounds))
        return losses

    def _set_gradient(
        self, aim: Aim, shown: Shown, chunk: int, kept: tuple[str, ...] | None
    ) -> Tensor:
        """Set the gradient of the pixels; return the parts of `_Losses`.

        The objective is one of the whole batch, but it sees the images through a few rows each:
        moments and logits. Its gradient by these rows is all that an image's own backward pass
        needs. Smaller chunks therefore compute the same, with a second forward pass. The term of
        eigenvalues needs the pixels of the whole batch, but no network.

        Args:
            aim: the observer and its targets.
            shown: of all images.
            chunk: images that go through the network at once.
            kept: names of the layers that count; None for all.
        """
        config, ranks = self._config, current()
        mine, lengths = _images_of_ranks(len(self._labels), ranks)
        starts = range(mine.start, mine.stop, chunk)
        parts = [slice(start, min(start + chunk, mine.stop)) for start in starts]

        def look() -> list[tuple[list[Tensor], list[int]]]:
            with torch.set_grad_enabled(len(parts) == 1):
                # A rank without images looks at one to know the form of the rows.
                return [self._rows(aim, shown, part) for part in parts or [slice(0, 1)]]

        passes = agreed(look)
        sizes = passes[0][1]
        columns = zip(*(own for own, _ in passes), strict=True)
        own = [torch.cat(column).detach()[: len(mine)] for column in columns]
        rows = [column.requires_grad_() for column in _join_columns(own, lengths, ranks)]
        logits, means, m2s = rows[0], rows[1::2], rows[2::2]
        alignment = aim.alignment(means, m2s, sizes, kept)
        cross_entropy = F.cross_entropy(logits, self._labels)
        loss = config.classification_weight * cross_entropy + config.alignment_weight * alignment
        gradients = torch.autograd.grad(loss, rows)

        def look_back() -> None:
            self._pixels.grad = torch.zeros_like(self._pixels) if ranks.world > 1 else None
            for part in parts:
                seen, _ = passes[0] if len(parts) == 1 else self._rows(aim, shown, part)
                torch.autograd.backward(seen, [gradient[part] for gradient in gradients])

        agreed(look_back)
        if ranks.world > 1:
            assert self._pixels.grad is not None
            whole = ranks.join(self._pixels.grad[mine.start : mine.stop], lengths)
            self._pixels.grad = whole
        if config.eigen_weight:
            evening = config.eigen_weight * eigenvalue_loss(self._pixels, self._classes)
            torch.autograd.backward(evening)
            loss = loss.detach() + evening
        return torch.stack([value.detach().double() for value in (loss, alignment, cross_entropy)])

    def _rows(self, aim: Aim, shown: Shown, part: slice) -> tuple[list[Tensor], list[int]]:
        """Return logits, then mean and m2 of every layer, of a part; and the layers' pixels."""
        views = show(self._pixels[part], shown.part(part), self._padding)
        with self._runtime.autocast():
            logits, moments = aim.recorder(views)
        rows = [logits.float(), *(row for layer in moments for row in (layer.mean, layer.m2))]
        return rows, [layer.spatial_size for layer in moments]


def _images_of_ranks(count: int, ranks: Ranks) -> tuple[range, list[int]]:
    """Return the images of a batch that this rank looks at, and how many each rank does.

    A rank has `SMALLEST_SHARE` at least, or none.
    """
    busy = min(ranks.world, max(count // SMALLEST_SHARE, 1))
    bounds = [count * rank // busy for rank in range(busy + 1)] + [count] * (ranks.world - busy)
    lengths = [after - before for before, after in itertools.pairwise(bounds)]
    return range(bounds[ranks.rank], bounds[ranks.rank + 1]), lengths


def _join_columns(columns: list[Tensor], lengths: list[int], ranks: Ranks) -> list[Tensor]:
    """Return columns of the rows (n, ...) of this rank with those of all of them, in order."""
    if ranks.world == 1:
        return columns
    whole = ranks.join(torch.cat(columns, dim=1), lengths)
    parts = whole.split([column.shape[1] for column in columns], dim=1)
    return [part.to(own.dtype) for part, own in zip(parts, columns, strict=True)]
