"""Train one student; the averaged parameters of the last epoch count."""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ltdd.data.augmentation.student_views import View, ViewSchedule, mix_labels, render
from ltdd.data.image_spec import ImageSet, ImageSpec
from ltdd.engine.cast_weights import CastWeights
from ltdd.engine.chunks import whole_batch
from ltdd.engine.cuda_graphs import MovingAverage, RecordedSteps
from ltdd.engine.loss_watch import LossWatch
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.engine.turns import Turns
from ltdd.stages.evaluation.loss import student_loss
from ltdd.stages.evaluation.optimizer import build_optimizer, learning_rate_factor
from ltdd.stages.label_sources import LabelSource

LOG_EVERY = 10  # epochs between two events


class StudentName(NamedTuple):
    """Name of a student, for progress and events.

    Attributes:
        who: ``student`` or a baseline's name.
        number: from 0.
    """

    who: str
    number: int


def train_student(
    model: nn.Module,
    shown: ImageSet,
    source: LabelSource,
    schedule: ViewSchedule,
    spec: ImageSpec,
    name: StudentName,
    runtime: Runtime,
) -> Turns[nn.Module]:
    """Train one student and return it with its averaged parameters, in evaluation mode.

    Pauses after every step.

    Args:
        model: the student with its initial parameters; it ends as the last iterate.
        shown: images and their classes.
        source: gives teacher logits.
        schedule: the views; its config also holds the optimizer's settings.
        spec: form of the images.
        name: which student.
        runtime: device, precision, seed.

    Raises:
        UserError: the loss became NaN or infinite, or a batch does not fit into memory.
    """
    with whole_batch("evaluation", "evaluation.batch_size"):
        config, device = schedule.config, runtime.device
        model = model.to(device).to(memory_format=torch.channels_last).train()
        averaged, weights = MovingAverage(model, config.ema_decay), CastWeights(model, runtime)
        mean, std = spec.normalization.tensors(device)
        images, labels = shown.images.to(device), shown.labels.to(device)
        optimizer = build_optimizer(model, config, device)
        factor = LambdaLR(optimizer, lambda epoch: learning_rate_factor(epoch, config))
        losses = LossWatch(f"evaluation: {name.who}", runtime)
        parts = {"model": model, "averaged": averaged, "optimizer": optimizer, "factor": factor}
        parts["losses"] = losses

        def take(view: View, picked: Tensor, rows: Tensor) -> Tensor:
            batch = render(view, picked, mean, std)
            soft = source.logits(view, batch, rows)
            with weights.used(), runtime.autocast():
                logits = model(batch)
            loss = student_loss(logits, soft, mix_labels(view, labels, spec.num_classes), config)
            optimizer.zero_grad(set_to_none=True)
            weights.backward(loss)
            optimizer.step()
            averaged.update()
            return loss.detach()

        training = RecordedSteps(take, model, runtime)
        course = Resumable(runtime)
        course.restore(parts)
        title = f"evaluation: {name.who} {name.number + 1}/{config.seeds}"
        pictures = schedule.pictures(images, course.first)
        with runtime.progress(config.epochs, title, course.first) as progress:
            for epoch in course.epochs(config.epochs):
                picture, views = next(pictures), list(schedule.epoch(epoch.number))
                starts = itertools.accumulate((len(view.indices) for view in views), initial=0)
                for step, (view, start) in epoch.steps(zip(views, starts, strict=False), parts):
                    picked = picture[view.indices.to(device, non_blocking=True)]
                    rows = source.rows(epoch.number, start, len(view.indices))
                    losses.add(epoch.number * len(views) + step - 1, training(view, picked, rows))
                    if step == len(views):
                        factor.step()
                    yield
                progress.step(images=len(labels))
                logged = epoch.number % LOG_EVERY == 0 or epoch.number == config.epochs - 1
                losses.end_group(partial(_write, runtime, name, epoch.number) if logged else None)
            losses.settle()
        return averaged.module.eval()


def _write(runtime: Runtime, name: StudentName, epoch: int, losses: Tensor) -> None:
    mean = float(losses.mean())
    runtime.log.write("student", who=name.who, seed=name.number, epoch=epoch, loss=mean)
