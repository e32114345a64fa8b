"""Optimise the images until their statistics match the fair ones (arXiv:2511.18858, Eq. 2-4).

``L = lambda_ce * CE + r * (sum_l w_l D_l + eta * mean_k sum_l w_l D_lk)`` with
``D = |mean - target mean|_2 + |var - target var|_2`` over the channels of layer l, for the whole
batch and for the images of each class k. Batches are class-stratified and of fixed size, so memory
does not grow with ipc. Every image draws its own crop in every iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.data.augmentation.crops import Crops, crop, random_crops
from ltdd.data.image_spec import ImageSpec
from ltdd.engine.chunks import Chunks
from ltdd.engine.cuda_graphs import RecordedSteps, adjustable_rate
from ltdd.engine.finite import check_finite
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.models.observer import Observer
from ltdd.stages.alignment_targets import LayerStatistics, batch_targets
from ltdd.stages.run import InitialImages

ADAM_BETAS = (0.5, 0.9)  # SRe2L and every method after it
LOG_EVERY = 10  # iterations between two events


def plan_batches(num_classes: int, ipc: int, max_batch: int) -> list[Tensor]:
    """Split a class-major set into class-stratified batches.

    Each batch holds the same number of images of every class, or one image of some classes where a
    single image of each would already exceed ``max_batch``.

    Args:
        num_classes: K.
        ipc: images per class.
        max_batch: largest number of images in a batch.

    Returns:
        int64 positions in the set, one tensor a batch; every position appears once.
    """
    positions = torch.arange(num_classes * ipc).view(num_classes, ipc)
    if num_classes > max_batch:
        return [part for column in positions.T.contiguous() for part in column.split(max_batch)]
    slices = -(-ipc // (max_batch // num_classes))
    return [part.reshape(-1) for part in positions.tensor_split(slices, dim=1)]


class Observed(NamedTuple):
    """A network whose statistics are matched.

    Attributes:
        network: trained, with BatchNorm2d layers.
        statistics: of the real images, one per layer.
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
        targets: names the global and the class-wise target.
        runtime: device, precision, backend, seed.

    Returns:
        float32 (M, C, H, W) in [0, 1], on the CPU.

    Raises:
        UserError: the loss became NaN or infinite.
    """
    images, labels = start.images, start.labels
    recorders = [(Observer(network, runtime.ops), own) for network, own in observers]
    plan = plan_batches(spec.num_classes, len(labels) // spec.num_classes, config.max_batch)
    chunks = Chunks("recovery", max(len(part) for part in plan), runtime)
    course = Resumable(runtime)
    result: Tensor = course.state.get("result", images.clone())
    total, done = len(plan) * config.iterations, course.first * config.iterations + course.step
    with runtime.progress(total, "recovery", done) as progress:
        for epoch in course.epochs(len(plan)):
            positions = plan[epoch.number]
            own = labels[positions]
            aims = [_Aim(*observed, own, targets, runtime) for observed in recorders]
            batch = _Batch(images[positions], own, aims, spec, config, chunks, runtime)
            if epoch.number == course.first:
                course.restore(batch.parts)
            networks = nn.ModuleList(aim.recorder.network for aim in aims)
            # The plain twins of the operators look at labels while they run.
            compiled = runtime.backend == "compiled"
            steps = RecordedSteps(batch.step, networks, runtime, recordable=compiled)
            kept = {**batch.parts, "result": result}
            for step, _ in epoch.steps(range(config.iterations), kept):
                iteration = step - 1
                losses = batch.advance(steps, epoch.number, iteration)
                loss = check_finite(losses.loss, "recovery", iteration, "loss")
                if iteration % LOG_EVERY == 0 or step == config.iterations:
                    runtime.log.write(
                        "recover",
                        iteration=iteration,
                        batch=epoch.number,
                        loss=loss,
                        alignment=float(losses.alignment),
                        cross_entropy=float(losses.cross_entropy),
                    )
                progress.step(f"loss {loss:.3f}", len(own))
            result[positions] = batch.images()
    return result


class _Losses(NamedTuple):
    """The parts of the objective, float64 scalars on the CPU."""

    loss: Tensor
    alignment: Tensor
    cross_entropy: Tensor


class _Aim:
    """Targets of one observer for the composition of a batch."""

    def __init__(
        self,
        recorder: Observer,
        statistics: list[LayerStatistics],
        labels: Tensor,
        targets: StatisticsConfig,
        runtime: Runtime,
    ) -> None:
        self.recorder = recorder
        layers = batch_targets(statistics, labels, targets)
        self.global_means = [t.mean.to(runtime.device) for t in layers]
        self.global_vars = [t.var.to(runtime.device) for t in layers]
        self.class_means = [t.class_mean.to(runtime.device) for t in layers]
        self.class_vars = [t.class_var.to(runtime.device) for t in layers]


class _Batch:
    """Images that are optimised together by Adam with a cosine schedule.

    Attributes:
        parts: what the steps change, by name.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        aims: Sequence[_Aim],
        spec: ImageSpec,
        config: RecoveryConfig,
        chunks: Chunks,
        runtime: Runtime,
    ) -> None:
        device = runtime.device
        mean, std = (v.view(-1, 1, 1) for v in spec.normalization.tensors(device))
        self._mean, self._std, self._bounds = mean, std, (-mean / std, (1 - mean) / std)
        self._pixels = ((images.to(device) - mean) / std).requires_grad_()
        self._labels, self._aims, self._flip = labels.to(device), aims, spec.flip
        self._config, self._chunks, self._runtime = config, chunks, runtime
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
        crops = random_crops(len(self._labels), self._config.crop_min_scale, self._flip, stream)
        observer = iteration % len(self._aims)
        losses = self._chunks.fit(
            lambda chunk: steps(crops, variant=(observer, chunk)), len(self._labels)
        )
        self._schedule.step()
        return _Losses(*losses.cpu())

    def step(self, crops: Crops, how: tuple[int, int]) -> Tensor:
        """Move the pixels by the gradient that one observer gives; return the parts of `_Losses`.

        Args:
            crops: one per image.
            how: the observer, and the images that go through it at once.
        """
        observer, chunk = how
        losses = self._set_gradient(self._aims[observer], crops, chunk)
        self._optimizer.step()
        with torch.no_grad():
            self._pixels.copy_(torch.clamp(self._pixels, *self._bounds))
        return losses

    def _set_gradient(self, aim: _Aim, crops: Crops, chunk: int) -> Tensor:
        """Set the gradient of the pixels; return the parts of `_Losses`.

        The objective is one of the whole batch, but it sees the images through a few rows each:
        moments and logits. Its gradient by these rows is all that an image's own backward pass
        needs. Smaller chunks therefore compute the same, with a second forward pass.

        Args:
            aim: the observer and its targets.
            crops: one crop per image.
            chunk: images that go through the network at once.
        """
        config, count = self._config, len(self._labels)
        parts = [slice(start, start + chunk) for start in range(0, count, chunk)]
        with torch.set_grad_enabled(len(parts) == 1):
            passes = [self._rows(aim, crops, part) for part in parts]
        sizes = passes[0][1]
        columns = zip(*(own for own, _ in passes), strict=True)
        rows = [torch.cat(column).detach().requires_grad_() for column in columns]
        logits, means, m2s = rows[0], rows[1::2], rows[2::2]
        alignment = self._runtime.ops.align_loss(
            means,
            m2s,
            sizes,
            self._labels,
            aim.global_means,
            aim.global_vars,
            aim.class_means,
            aim.class_vars,
            [config.first_layer_weight] + [1.0] * (len(means) - 1),
            config.class_alignment_weight,
        )
        cross_entropy = F.cross_entropy(logits, self._labels)
        loss = config.classification_weight * cross_entropy + config.alignment_weight * alignment
        gradients = torch.autograd.grad(loss, rows)
        self._pixels.grad = None
        for part in parts:
            own, _ = passes[0] if len(parts) == 1 else self._rows(aim, crops, part)
            torch.autograd.backward(own, [gradient[part] for gradient in gradients])
        return torch.stack([value.detach().double() for value in (loss, alignment, cross_entropy)])

    def _rows(self, aim: _Aim, crops: Crops, part: slice) -> tuple[list[Tensor], list[int]]:
        """Return logits, then mean and m2 of every layer, of a part; and the layers' pixels."""
        views = crop(self._pixels[part], Crops(crops.boxes[part], crops.mirrored[part]))
        with self._runtime.autocast():
            logits, moments = aim.recorder(views)
        rows = [logits.float(), *(row for layer in moments for row in (layer.mean, layer.m2))]
        return rows, [layer.spatial_size for layer in moments]
