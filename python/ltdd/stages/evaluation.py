"""Stage 6: train students on the distilled set and measure them on the balanced test set.

Loss of a student s on a view with teacher logits y~ and mixed class probabilities y (Eq. 10):
``kappa2 * mean (s - y~)^2 + kappa1 * CE(s, y)``. The averaged parameters of the last epoch are
evaluated; the test set is looked at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ltdd.config import EvaluationConfig, deciding_settings
from ltdd.data.augmentation.student_views import View, ViewSchedule, mix_labels, render
from ltdd.data.image_spec import ImageSet, ImageSpec
from ltdd.engine.chunks import whole_batch
from ltdd.engine.cuda_graphs import MovingAverage, RecordedSteps, adjustable_rate
from ltdd.engine.finite import mean_of_losses
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.models.muon import Muon
from ltdd.stages.label_sources import LabelSource
from ltdd.stages.losses import logit_matching_loss, soft_cross_entropy, standardize_rows
from ltdd.stages.run import Run

LOG_EVERY = 10  # epochs between two events


@dataclass(frozen=True)
class TrainingSet:
    """Images, labels and views that students of a kind learn from.

    Attributes:
        who: ``student`` or the name of a baseline; names the random streams and the events.
        images: with their classes.
        labels: gives teacher logits.
        schedule: the views; its config also holds the optimizer's settings.
    """

    who: str
    images: Stored[ImageSet]
    labels: Stored[LabelSource]
    schedule: ViewSchedule


def evaluate_students(run: Run, sets: Sequence[TrainingSet]) -> dict[str, Tensor]:
    """Stage 6: train students on every set; return their test predictions (seeds, N) by its name.

    Networks, orders and views are those of their number, whatever they learn from.
    """
    numbers = range(run.config.evaluation.seeds)
    return {
        shown.who: torch.stack([_predictions(run, shown, number) for number in numbers])
        for shown in sets
    }


def _predictions(run: Run, shown: TrainingSet, number: int) -> Tensor:
    config = run.config.evaluation

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        with runtime.global_stream("evaluation", shown.who, number):
            model = run.build(config.student)
        data, source = shown.images.value, shown.labels.value
        name = StudentName(shown.who, number)
        trained = train_student(model, data, source, shown.schedule, run.spec, name, runtime)
        return {"predictions": run.predict(trained)}

    settings = deciding_settings(shown.schedule.config) | {"who": shown.who, "number": number}
    inputs: list[Stored[Any]] = [shown.images, shown.labels]
    return run.stages.run("evaluation", settings, inputs, compute).value["predictions"]


class StudentName(NamedTuple):
    """Name of a student, for progress and events.

    Attributes:
        who: ``student`` or a baseline's name.
        number: from 0.
    """

    who: str
    number: int


@whole_batch("evaluation", "evaluation.batch_size")
def train_student(
    model: nn.Module,
    shown: ImageSet,
    source: LabelSource,
    schedule: ViewSchedule,
    spec: ImageSpec,
    name: StudentName,
    runtime: Runtime,
) -> nn.Module:
    """Train one student and return it with its averaged parameters, in evaluation mode.

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
    config, device = schedule.config, runtime.device
    model = model.to(device).to(memory_format=torch.channels_last).train()
    averaged = MovingAverage(model, config.ema_decay)
    mean, std = spec.normalization.tensors(device)
    images, labels = shown.images.to(device), shown.labels.to(device)
    optimizer = build_optimizer(model, config, device)
    factor = LambdaLR(optimizer, lambda epoch: learning_rate_factor(epoch, config))
    parts = {"model": model, "averaged": averaged, "optimizer": optimizer, "factor": factor}

    def take(view: View, picked: Tensor, rows: Tensor) -> Tensor:
        batch = render(view, picked, mean, std)
        soft = source.logits(view, batch, rows)
        with runtime.autocast():
            logits = model(batch)
        loss = student_loss(logits, soft, mix_labels(view, labels, spec.num_classes), config)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
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
                epoch.losses.append(training(view, picked, rows))
                if step == len(views):
                    factor.step()
            progress.step(images=len(labels))
            first_step = epoch.number * len(views)
            loss = mean_of_losses(epoch.losses, f"evaluation: {name.who}", first_step)
            if epoch.number % LOG_EVERY == 0 or epoch.number == config.epochs - 1:
                runtime.log.write(
                    "student", who=name.who, seed=name.number, epoch=epoch.number, loss=loss
                )
    return averaged.module.eval()


def student_loss(
    logits: Tensor, soft: Tensor | None, hard: Tensor, config: EvaluationConfig
) -> Tensor:
    """Return the loss of one batch.

    Args:
        logits: student's, (B, K).
        soft: teacher's logits (B, K), or None for class labels alone.
        hard: mixed class probabilities (B, K).
        config: kappa1, kappa2, logit normalisation.

    Note:
        With ``logit_std_norm`` the cross-entropy sees the normalised logits too, as in the
        published CIFAR-10 recipe.
    """
    if soft is None:
        return soft_cross_entropy(logits, hard)
    matching = logit_matching_loss(logits, soft, config.logit_std_norm)
    scored = standardize_rows(logits.float()) if config.logit_std_norm else logits
    return config.logit_weight * matching + config.hard_weight * soft_cross_entropy(scored, hard)


def learning_rate_factor(epoch: int, config: EvaluationConfig) -> float:
    """Return the learning rate of an epoch relative to the initial one."""
    done = epoch / config.epochs
    if config.schedule == "step":
        return 0.5 ** sum(done >= milestone for milestone in (0.8, 0.9, 0.95))
    if config.schedule == "cos2" and done >= 5 / 6:
        # As published: it jumps from 0.63 to 0.105 and then falls along a line.
        return 0.5 * (1 + math.cos(math.pi * 5 / 12)) * (1 - done)
    zeta = 1 if config.schedule == "cosine" else 2
    return 0.5 * (1 + math.cos(math.pi * done / zeta))


def build_optimizer(
    model: nn.Module, config: EvaluationConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of a student; vectors have no weight decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate, on_gpu = adjustable_rate(config.learning_rate, device), device.type == "cuda"
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=on_gpu)
    if config.optimizer == "muon":
        return Muon(groups, rate)
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=on_gpu)
