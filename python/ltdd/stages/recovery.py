"""Stage 4: optimise the images until their statistics match the fair ones (Eq. 2-4).

``L = lambda_ce * CE + r * (sum_l w_l D_l + eta * mean_k sum_l w_l D_lk)`` with
``D = |mean - target mean|_2 + |var - target var|_2`` over the channels of layer l, for the whole
batch and for the images of each class k. Batches are class-stratified and of fixed size, so memory
does not grow with ipc. Every image draws its own crop in every iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.data.augmentation.crops import Crops, crop, random_crops
from ltdd.engine.chunks import Chunks
from ltdd.engine.cuda_graphs import RecordedSteps, adjustable_rate, restore
from ltdd.engine.progress import Progress
from ltdd.engine.runtime import Runtime, check_finite
from ltdd.models.observer import Observer
from ltdd.stages.alignment_targets import LayerStatistics, batch_targets

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


def recover_images(
    images: Tensor,
    labels: Tensor,
    observers: Sequence[tuple[nn.Module, list[LayerStatistics]]],
    mean: Tensor,
    std: Tensor,
    flip: bool,
    config: RecoveryConfig,
    targets: StatisticsConfig,
    runtime: Runtime,
) -> Tensor:
    """Return the optimised images.

    Args:
        images: float32 (M, C, H, W) in [0, 1], class-major, M = K * ipc.
        labels: int64 (M,).
        observers: trained networks with BatchNorm2d layers, each with its statistics of
            `calibrate_statistics`; they take turns, one an iteration.
        mean, std: (C,), in units of [0, 1].
        flip: whether views may be mirrored.
        config: weights and schedule.
        targets: names the global and the class-wise target.
        runtime: device, precision, backend, seed.

    Returns:
        float32 (M, C, H, W) in [0, 1], on the CPU.

    Raises:
        UserError: the loss became NaN or infinite.
    """
    result: Tensor = images.clone()
    if config.iterations == 0:
        return result
    recorders = [(Observer(network, runtime.ops), own) for network, own in observers]
    num_classes = len(recorders[0][1][0].count)
    plan = plan_batches(num_classes, len(labels) // num_classes, config.max_batch)
    chunks = Chunks("recovery", max(len(part) for part in plan), runtime)
    shift, scale = (v.view(-1, 1, 1).to(runtime.device) for v in (mean, std))
    restored = runtime.checkpoint.restore()
    result = restored.get("result", result)
    current: int = restored.get("batch", 0)
    steps, done = len(plan) * config.iterations, current * config.iterations
    done += restored.get("iteration", 0)
    with runtime.progress(steps, "recovery", done) as progress:
        for number, positions in enumerate(plan):
            if number < current:
                continue
            start = (images[positions].to(runtime.device) - shift) / scale
            aims = [_Aim(*observed, labels[positions], targets, runtime) for observed in recorders]
            problem = _Batch(start, labels[positions], aims, config, chunks, runtime)
            bounds = (-shift / scale, (1 - shift) / scale)
            state = restored if number == current else {}
            pixels = problem.optimise(number, bounds, flip, progress, result, state)
            result[positions] = (pixels * scale + shift).clamp(0, 1).cpu()
    return result


class _Aim:
    """What one observer should see: its targets for the composition of a batch."""

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
    """One batch of images with the aims of its observers."""

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        aims: Sequence[_Aim],
        config: RecoveryConfig,
        chunks: Chunks,
        runtime: Runtime,
    ) -> None:
        self.pixels = pixels.detach().requires_grad_()
        self.labels = labels.to(runtime.device)
        self.aims, self.aim = aims, aims[0]
        self.config, self.chunks, self.runtime = config, chunks, runtime

    def objective(self, crops: Crops, chunk: int) -> tuple[Tensor, Tensor]:
        """Set the gradient of the pixels; return (alignment, cross-entropy).

        The objective is one of the whole batch, but it sees the images through a few rows each:
        moments and logits. Its gradient by these rows is all that an image's own backward pass
        needs. Smaller chunks therefore compute the same, with a second forward pass.

        Args:
            crops: one crop per image.
            chunk: images that go through the network at once.
        """
        aim, config = self.aim, self.config
        weights = [config.first_layer_weight] + [1.0] * (len(aim.global_means) - 1)
        parts = [slice(start, start + chunk) for start in range(0, len(self.labels), chunk)]
        with torch.set_grad_enabled(len(parts) == 1):
            made = [self._rows(crops, part) for part in parts]
        sizes = made[0][1]
        columns = zip(*(own for own, _ in made), strict=True)
        rows = [torch.cat(column).detach().requires_grad_() for column in columns]
        logits, means, m2s = rows[0], rows[1::2], rows[2::2]
        alignment = self.runtime.ops.align_loss(
            means,
            m2s,
            sizes,
            self.labels,
            aim.global_means,
            aim.global_vars,
            aim.class_means,
            aim.class_vars,
            weights,
            config.class_alignment_weight,
        )
        cross_entropy = F.cross_entropy(logits, self.labels)
        loss = config.classification_weight * cross_entropy + config.alignment_weight * alignment
        gradients = torch.autograd.grad(loss, rows)
        self.pixels.grad = None
        for part in parts:
            own, _ = made[0] if len(parts) == 1 else self._rows(crops, part)
            torch.autograd.backward(own, [gradient[part] for gradient in gradients])
        return alignment.detach(), cross_entropy.detach()

    def _rows(self, crops: Crops, part: slice) -> tuple[list[Tensor], list[int]]:
        """Return logits, then mean and m2 of every layer, of a part; and the layers' pixels."""
        views = crop(self.pixels[part], Crops(crops.boxes[part], crops.mirrored[part]))
        with self.runtime.autocast():
            logits, moments = self.aim.recorder(views)
        rows = [logits.float(), *(row for layer in moments for row in (layer.mean, layer.m2))]
        return rows, [layer.spatial_size for layer in moments]

    def optimise(
        self,
        number: int,
        bounds: tuple[Tensor, Tensor],
        flip: bool,
        progress: Progress,
        result: Tensor,
        restored: dict[str, Any],
    ) -> Tensor:
        """Run Adam with a cosine schedule; return the last iterate in normalised units.

        Args:
            number: of the batch; names its random streams.
            bounds: smallest and largest value of a pixel in normalised units.
            flip: whether views may be mirrored.
            progress: counts the iterations.
            result: the batches before this one, for the checkpoint.
            restored: state of this batch in the checkpoint; empty to start.
        """
        config, runtime = self.config, self.runtime
        optimizer = torch.optim.Adam(
            [self.pixels],
            lr=adjustable_rate(config.learning_rate, runtime.device),
            betas=ADAM_BETAS,
            fused=True,
            capturable=runtime.device.type == "cuda",
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
        if restored:
            restore({"optimizer": optimizer, "schedule": schedule}, restored, runtime.device)
            with torch.no_grad():
                self.pixels.copy_(restored["pixels"])

        def take(crops: Crops, how: tuple[int, int]) -> Tensor:
            observer, chunk = how
            self.aim = self.aims[observer]
            found = self.objective(crops, chunk)
            optimizer.step()
            with torch.no_grad():
                self.pixels.copy_(torch.clamp(self.pixels, *bounds))
            return torch.stack([value.double() for value in found])

        networks = nn.ModuleList(aim.recorder.network for aim in self.aims)
        # The plain twins of the operators look at labels while they run.
        steps = RecordedSteps(take, networks, runtime, recordable=runtime.backend == "compiled")
        for iteration in range(restored.get("iteration", 0), config.iterations):
            observer = iteration % len(self.aims)
            generator = runtime.stream("recovery", number, iteration)
            crops = random_crops(len(self.labels), config.crop_min_scale, flip, generator)

            def attempt(chunk: int, crops: Crops = crops, observer: int = observer) -> Tensor:
                return steps(crops, variant=(observer, chunk))

            alignment, cross_entropy = self.chunks.fit(attempt, len(self.labels)).cpu()
            loss = (
                config.classification_weight * cross_entropy + config.alignment_weight * alignment
            )
            value = check_finite(loss, "recovery", iteration, "loss")
            schedule.step()
            if iteration % LOG_EVERY == 0 or iteration == config.iterations - 1:
                runtime.log.write(
                    "recover",
                    iteration=iteration,
                    batch=number,
                    loss=value,
                    alignment=float(alignment),
                    cross_entropy=float(cross_entropy),
                )
            progress.step(f"loss {value:.3f}", len(self.labels))
            runtime.checkpoint.step(
                optimizer=optimizer,
                schedule=schedule,
                pixels=self.pixels,
                result=result,
                batch=number,
                iteration=iteration + 1,
            )
        return self.pixels.detach()
