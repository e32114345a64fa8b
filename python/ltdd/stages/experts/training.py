"""Train one expert."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import update_bn

from ltdd.config import AnyExperts, ExpertsConfig
from ltdd.data.augmentation.expert_batches import (
    Batches,
    part_of,
)
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.cast_weights import CastWeights
from ltdd.engine.chunks import whole_batch
from ltdd.engine.cuda_graphs import MovingAverage, RecordedSteps, adjustable_rate
from ltdd.engine.distributed.ranks import current
from ltdd.engine.loss_watch import LossWatch
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.engine.tensor_trees import to_device
from ltdd.engine.turns import Turns
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.data_parallel import DataParallel
from ltdd.models.normalization import pause_counting, resume_counting
from ltdd.models.weights import (
    Weights,
    load_body,
)
from ltdd.stages.experts.course import Course
from ltdd.stages.experts.objective import ExpertNetwork, Master, Objective
from ltdd.stages.losses import (
    debias_progress,
)

GROWTH = ((0.4, 0.5), (0.7, 0.75))  # until this share of the epochs, this share of the image size
SMALLEST_SIZE = 16  # pixels to which `progressive_resizing` shrinks images
EMA_DECAY = 0.999  # per step, of `averaging: ema`


def train_expert(
    role: str,
    architecture: str,
    data: LongTailedData,
    config: AnyExperts,
    flip: bool,
    runtime: Runtime,
    start: Weights | None = None,
    master: Master | None = None,
    kept: Course | None = None,
) -> Turns[nn.Module]:
    """Train one expert and return its backbone with the debiased classifier, in evaluation mode.

    Both views go through one forward pass, so batch-norm layers see them together. Pauses after
    every step.

    Args:
        role: ``observer``, ``teacher`` or a baseline's name; names the random streams and events.
        architecture: a name of `ltdd.models.ARCHITECTURES`.
        data: the long-tailed data.
        config: loss and schedule; `PlainExperts` is training without mixing or debiasing.
        flip: whether images may be mirrored.
        runtime: device, precision, seed.
        start: weights of everything but the classifier; None for fresh ones.
        master: a network to imitate, or None.
        kept: is given what the network is on its way; None keeps nothing.

    Raises:
        UserError: the loss became NaN or infinite, a batch does not fit into memory, or the
            network cannot take the smaller images of ``progressive_resizing``.
    """
    with whole_batch("experts", "experts.batch_size"):
        with runtime.global_stream("experts", role, "parameters"):
            backbone = build_model(architecture, data.num_classes, data.image_size, data.channels)
            network: nn.Module = backbone
            if isinstance(config, ExpertsConfig):
                network = ExpertNetwork(backbone, data.num_classes, config)
        if start is not None:
            load_body(backbone, start)
        _check_sizes(backbone, config, data)
        network = network.to(runtime.device).to(memory_format=torch.channels_last).train()
        batches = Batches(data, config, flip, runtime)
        batch_size = min(config.batch_size, len(data.train_labels))
        steps = len(data.train_labels) // batch_size
        if config.min_steps is not None:
            enough = math.ceil(config.min_steps / steps)
            config = dataclasses.replace(config, epochs=max(config.epochs, enough))
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=adjustable_rate(config.learning_rate, runtime.device),
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=runtime.device.type == "cuda",
        )
        schedule, step_every_batch = _schedule(optimizer, config, steps)
        parallel = DataParallel(network, batch_size)
        if current().world > 1 and not parallel.divides:
            runtime.tell(
                "batch_not_divided",
                f"experts: {role}: a batch of {batch_size} images is too small for "
                f"{current().world} ranks to share it, so each of them computes all of it",
                role=role,
                batch_size=batch_size,
            )
        weights = CastWeights(network, runtime, whole=not parallel.divides)
        objective = Objective(parallel.network, batches, data, runtime, master)
        averaged = MovingAverage(network, EMA_DECAY) if config.averaging == "ema" else None

        def take(drawn: Any, share: Tensor, size: int) -> Tensor:
            with weights.used():
                loss = parallel.weighted(objective.loss(drawn, share, size))
            optimizer.zero_grad(set_to_none=True)
            weights.backward(loss)
            optimizer.step()
            if averaged is not None:
                averaged.update()
            return parallel.mean(loss.detach())

        training = RecordedSteps(take, network, runtime, recordable=not parallel.divides)
        losses = LossWatch(f"experts: {role}", runtime)
        parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
        parts["losses"] = losses
        if averaged is not None:
            parts["averaged"] = averaged
        if kept is not None:
            parts["kept"] = kept
        course = Resumable(runtime)
        course.restore(parts)
        counts = {} if parallel.divides else pause_counting(network)
        if averaged is not None and not parallel.divides:
            pause_counting(averaged.module)
        total, done = config.epochs * steps, course.first * steps + course.step
        with runtime.progress(total, f"experts: {role} ({architecture})", done) as progress:
            for epoch in course.epochs(config.epochs):
                generator = runtime.stream("experts", role, "epoch", epoch.number)
                order = torch.randperm(len(data.train_labels), generator=generator)
                share = torch.tensor(debias_progress(epoch.number, config.epochs))
                size = training_size(config, epoch.number, data.image_size)
                shown = order[: steps * batch_size].view(steps, batch_size)
                for number, indices in epoch.steps(shown, parts, generator):
                    drawn = part_of(objective.draw(indices, generator), parallel.rows)
                    loss = training(drawn, share, variant=size)
                    losses.add(epoch.number * steps + number, loss)
                    if step_every_batch or number == steps:
                        schedule.step()
                    progress.step(images=batch_size)
                    if kept is not None:
                        kept.look(epoch.number * steps + number, total, backbone)
                    yield
                losses.end_group(partial(_write, runtime, role, epoch.number))
            losses.settle()
        resume_counting(network, counts, total)
        if averaged is not None:
            resume_counting(averaged.module, counts, total)
            module = _finished(averaged.module, objective, len(data.train_labels), parallel, role)
            return module.eval().requires_grad_(False)
        return backbone.eval().requires_grad_(False)


def _write(runtime: Runtime, role: str, epoch: int, losses: Tensor) -> None:
    mean = float(losses.mean())
    runtime.log.write("train", stage="experts", role=role, epoch=epoch, loss=mean)


@torch.no_grad()
def _finished(
    network: nn.Module, objective: Objective, images: int, parallel: DataParallel, role: str
) -> nn.Module:
    """Return the averaged backbone after its batch norms have seen an epoch of training views.

    Running statistics belong to the weights that made them; those of the last iterate do not fit.
    """
    generator = objective.runtime.stream("experts", role, "averaged")
    order = torch.randperm(images, generator=generator)

    def views() -> Iterator[Tensor]:
        for indices in order.split(parallel.batch_size):
            if len(indices) == parallel.batch_size:
                drawn = part_of(objective.draw(indices, generator), parallel.rows)
                yield objective.inputs(to_device(drawn, objective.runtime.device))

    with objective.runtime.autocast():
        update_bn(views(), network)
    return network.backbone if isinstance(network, ExpertNetwork) else network


def _schedule(
    optimizer: torch.optim.Optimizer, config: AnyExperts, steps: int
) -> tuple[LRScheduler, bool]:
    """Return the learning-rate schedule and whether it advances every batch."""
    if config.schedule == "cosine" and config.warmup_epochs is not None:
        rise = min(config.warmup_epochs, config.epochs)

        def factor(epoch: int) -> float:
            if epoch < rise:
                return (epoch + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (epoch + 1 - rise) / (config.epochs + 1 - rise)))

        return LambdaLR(optimizer, factor), False
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, config.epochs), False
    total = config.epochs * steps + 1
    one_cycle = OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=total,
        pct_start=max(0.2, 2 / total),  # one step up at least: over none, it divides by zero
        cycle_momentum=False,
    )
    return one_cycle, True


def training_size(config: AnyExperts, epoch: int, image_size: int) -> int:
    """Return the side, in pixels, of the images that the network is shown in an epoch."""
    if config.progressive_resizing:
        for until, part in GROWTH:
            if epoch < until * config.epochs:
                return max(int(part * image_size), min(SMALLEST_SIZE, image_size))
    return image_size


@torch.no_grad()
def _check_sizes(backbone: nn.Module, config: AnyExperts, data: LongTailedData) -> None:
    """Try a network on the smallest images it will be shown, before any work.

    Raises:
        UserError: it takes whole images only.
    """
    size = training_size(config, 0, data.image_size)
    try:
        backbone.eval()(torch.zeros(1, data.channels, size, size))
    except RuntimeError as error:
        raise UserError(
            "experts: expected a network that takes images of any size with "
            f"experts.progressive_resizing, got one of {data.image_size} px only; set "
            "experts.progressive_resizing false"
        ) from error
