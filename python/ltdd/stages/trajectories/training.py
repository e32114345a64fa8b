"""Train one expert and keep where it was after every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.config import TrajectoryRecovery
from ltdd.data.augmentation.crops import normalize
from ltdd.data.augmentation.dsa import DsaDraw, apply_dsa, draw_dsa, usable_operations
from ltdd.data.augmentation.expert_batches import fits
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.cuda_graphs import RecordedSteps
from ltdd.engine.loss_watch import LossWatch
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.models.flat_network import FlatNetwork
from ltdd.stages.trajectories.class_aware import class_aware_order
from ltdd.stages.trajectories.gsam import gsam_direction


class Course(NamedTuple):
    """How an expert, or the classifier of one, is trained.

    Attributes:
        who: names the random streams and the events, with ``number``.
        number: of the expert.
        start: parameters that move, from where they are.
        frozen: parameters in front of them that stay; (0,) for none.
        epochs: passes.
        kept: last epoch whose parameters are kept, beside the last of all.
        weight_decay: is added to the direction of every step.
        class_aware: classes in turns instead of all images once.
    """

    who: str
    number: int
    start: Tensor
    frozen: Tensor
    epochs: int
    kept: int
    weight_decay: float
    class_aware: bool = False


def train_expert(
    network: FlatNetwork,
    course: Course,
    data: LongTailedData,
    config: TrajectoryRecovery,
    flip: bool,
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Train an expert by SGD with a constant rate, or by GSAM over it.

    Networks compute in float32 whatever the precision: differences of snapshots are small.

    Args:
        network: its form.
        course: start, order and length.
        data: the long-tailed data.
        config: batch size, learning rate, GSAM and augmentation.
        flip: whether images may be mirrored.
        runtime: device, seed.

    Returns:
        ``snapshots`` float32 (kept + 1, P), the first before training, and ``last`` (P,).

    Raises:
        UserError: the loss became NaN or infinite.
    """
    device, batches = runtime.device, _Batches(data, course, config, flip, runtime)
    theta, frozen = course.start.to(device, copy=True), course.frozen.to(device)
    snapshots = torch.zeros(course.kept + 1, len(theta))
    snapshots[0] = course.start
    radius = config.sharpness_radius if config.sharpness == "gsam" else None

    def take(picked: Tensor, labels: Tensor, draw: DsaDraw) -> Tensor:
        images = apply_dsa(batches.normalized(picked), draw)
        losses: list[Tensor] = []

        def gradient(place: Tensor) -> Tensor:
            place = place.detach().requires_grad_()
            loss = F.cross_entropy(network(place, images, frozen), labels)
            losses.append(loss.detach())
            (by,) = torch.autograd.grad(loss, place)
            return by

        direction = (
            gradient(theta)
            if radius is None
            else gsam_direction(gradient, theta, radius, config.sharpness_weight)
        )
        step = direction + course.weight_decay * theta
        theta.sub_(config.trajectory_learning_rate * step)
        return losses[0]

    training = RecordedSteps(take, network.network, runtime)
    resumable, losses = Resumable(runtime), LossWatch(f"trajectories: {course.who}", runtime)
    parts = {"theta": theta, "snapshots": snapshots, "losses": losses}
    resumable.restore(parts)
    total, done = course.epochs * batches.count, resumable.first * batches.count + resumable.step
    title = f"trajectories: {course.who} {course.number + 1}/{config.trajectories}"
    with runtime.progress(total, title, done) as progress:
        for epoch in resumable.epochs(course.epochs):
            generator = runtime.stream("trajectories", course.who, course.number, epoch.number)
            order = batches.order(generator)
            for number, rows in epoch.steps(order, parts, generator):
                loss = training(*batches.draw(rows, generator))
                losses.add(epoch.number * batches.count + number, loss)
                if number == batches.count and epoch.number < course.kept:
                    snapshots[epoch.number + 1] = theta.cpu()
                progress.step(images=len(rows))
            now, before = epoch.number + 1, epoch.number + 1 - config.expert_epochs
            moved = {}
            if before >= 0 and now <= course.kept:
                moved["moved"] = float((snapshots[now] - snapshots[before]).norm())
            losses.end_group(partial(_write, runtime, course, epoch.number, moved))
        losses.settle()
    return {"snapshots": snapshots, "last": theta.cpu()}


def _write(
    runtime: Runtime, course: Course, epoch: int, moved: dict[str, float], losses: Tensor
) -> None:
    runtime.log.write(
        "train",
        stage="trajectories",
        role=course.who,
        seed=course.number,
        epoch=epoch,
        loss=float(losses.mean()),
        **moved,
    )


class _Batches:
    """Draws batches of real images on the host."""

    def __init__(
        self,
        data: LongTailedData,
        course: Course,
        config: TrajectoryRecovery,
        flip: bool,
        runtime: Runtime,
    ) -> None:
        device = runtime.device
        self._images = data.train_images
        if fits(data.train_images, device):
            self._images = data.train_images.to(device)
        self._labels, self._device, self._size = data.train_labels, device, data.image_size
        self._mean, self._std = data.normalization.tensors(device)
        self._strategy = usable_operations(config.dsa_operations, flip)
        self._members = [data.members(label) for label in range(data.num_classes)]
        self._class_aware, self._batch_size = course.class_aware, config.trajectory_batch_size
        images = len(data.train_labels)
        if course.class_aware:
            images = data.num_classes * max(data.counts)
        self.count = -(-images // self._batch_size)

    def order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Return the images of every step of an epoch."""
        if self._class_aware:
            drawn = class_aware_order(self._members, generator)
        else:
            drawn = torch.randperm(len(self._labels), generator=generator)
        return iter(drawn.split(self._batch_size))

    def draw(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, DsaDraw]:
        """Return images as they are stored, their labels and an augmentation."""
        picked = self._images[rows.to(self._images.device)].to(self._device)
        draw = draw_dsa(len(rows), self._size, self._strategy, "single", generator)
        return picked, self._labels[rows], draw

    def normalized(self, picked: Tensor) -> Tensor:
        """Return stored images as networks see them."""
        return normalize(picked, self._mean, self._std)
