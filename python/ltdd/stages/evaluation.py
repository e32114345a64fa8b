"""Stage 6: train students on the distilled set and measure them on the balanced test set.

Loss of a student s on a view with teacher logits y~ and mixed class probabilities y (Eq. 10):
``kappa2 * mean (s - y~)^2 + kappa1 * CE(s, y)``. The averaged parameters of the last epoch are
evaluated; the test set is looked at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ltdd.config import EvaluationConfig
from ltdd.data.augmentation.student_views import View, ViewSchedule, mixed, mixed_labels, render
from ltdd.data.packed_logits import PackedLogits
from ltdd.engine.chunks import Chunks, whole_batch
from ltdd.engine.cuda_graphs import MovingAverage, RecordedSteps, adjustable_rate, restore
from ltdd.engine.muon import Muon
from ltdd.engine.runtime import Runtime, mean_of_losses
from ltdd.models.inference import view_logits
from ltdd.stages.losses import logit_matching_loss, soft_cross_entropy, standardise_rows


@dataclass(frozen=True)
class LabelSource:
    """Where a student's soft labels come from.

    Attributes:
        logits: (view, rendered batch, stored rows of its images) -> teacher logits (B, K), or None
            for class labels alone; it reads no value from the device.
        stored: logits (epochs, M, K) of every view, in the order in which they are shown, or None.
    """

    logits: Callable[[View, Tensor, Tensor], Tensor | None]
    stored: PackedLogits | None = None

    def rows(self, epoch: int, start: int, count: int) -> Tensor:
        """Return what is stored of an epoch's images from ``start`` on; (0,) if nothing is."""
        if self.stored is None:
            return torch.empty(0)
        return self.stored[epoch, start : start + count]


def hard_labels() -> LabelSource:
    """Use the class labels alone."""
    return LabelSource(lambda view, batch, rows: None)


def static_labels(logits: Tensor, device: torch.device) -> LabelSource:
    """Use one logit vector (M, K) an image, mixed like the view mixes the images."""
    logits = logits.to(device)
    return LabelSource(lambda view, batch, rows: mixed(view, logits[view.indices]))


def fkd_labels(table: PackedLogits) -> LabelSource:
    """Use the stored logits (epochs, M, K) of the very same views."""
    return LabelSource(lambda view, batch, rows: rows, table)


def online_labels(teacher: nn.Module, runtime: Runtime, shift: Tensor | float = 0.0) -> LabelSource:
    """Ask the teacher while the student trains, and subtract a shift (K,) from its logits."""

    def ask(view: View, batch: Tensor, rows: Tensor) -> Tensor:
        chunks = Chunks("relabeling", len(batch), runtime)
        return view_logits(teacher, batch, runtime, chunks).to(torch.float16).float() - shift

    teacher.eval()
    return LabelSource(ask)


@whole_batch("evaluation", "evaluation.batch_size")
def train_student(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    source: LabelSource,
    num_classes: int,
    schedule: ViewSchedule,
    mean: Tensor,
    std: Tensor,
    who: str,
    number: int,
    runtime: Runtime,
) -> nn.Module:
    """Train one student and return it with its averaged parameters, in evaluation mode.

    Args:
        model: the student with its initial parameters; it ends as the last iterate.
        images: uint8 (M, C, H, W).
        labels: int64 (M,).
        source: gives teacher logits.
        num_classes: K.
        schedule: the views; its config also holds the optimizer's settings.
        mean, std: (C,), in units of [0, 1].
        who: ``student`` or a baseline's name, for progress and events.
        number: which student, for progress and events.
        runtime: device, precision, seed.

    Raises:
        UserError: the loss became NaN or infinite, or a batch does not fit into memory.
    """
    config, device = schedule.config, runtime.device
    model = model.to(device).to(memory_format=torch.channels_last).train()
    averaged = MovingAverage(model, config.ema_decay)
    images, mean, std, labels = (t.to(device) for t in (images, mean, std, labels))
    optimizer = _optimizer(model, config, device)
    factor = LambdaLR(optimizer, lambda epoch: learning_rate_factor(epoch, config))
    title = f"evaluation: {who} {number + 1}/{config.seeds}"
    parts: dict[str, Any] = {
        "model": model,
        "averaged": averaged,
        "optimizer": optimizer,
        "factor": factor,
    }

    def take(view: View, picked: Tensor, rows: Tensor) -> Tensor:
        batch = render(view, picked, mean, std)
        soft = source.logits(view, batch, rows)
        with runtime.autocast():
            logits = model(batch)
        loss = student_loss(logits, soft, mixed_labels(view, labels, num_classes), config)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        averaged.update()
        return loss.detach()

    training = RecordedSteps(take, model, runtime)
    restored = runtime.checkpoint.restore()
    if restored:
        restore(parts, restored, device)
    first = restored.get("epoch", 0)
    with runtime.progress(config.epochs, title, first) as progress:
        for epoch, pictures in enumerate(schedule.pictures(images, first), first):
            start, skipped, losses = 0, 0, list[Tensor]()
            if restored and epoch == first:  # in the middle of an epoch
                skipped, losses = restored["start"], restored["losses"]
            for view in schedule.epoch(epoch):
                start += len(view.indices)
                if start <= skipped:
                    continue
                picked = pictures[view.indices.to(device, non_blocking=True)]
                rows = source.rows(epoch, start - len(view.indices), len(view.indices))
                losses.append(training(view, picked, rows))
                if start == len(labels):
                    factor.step()
                runtime.checkpoint.step(**parts, epoch=epoch, start=start, losses=losses)
            progress.step(images=len(labels))
            mean_loss = mean_of_losses(losses, f"evaluation: {who}", epoch * len(losses))
            if epoch % LOG_EVERY == 0 or epoch == config.epochs - 1:
                runtime.log.write("student", who=who, seed=number, epoch=epoch, loss=mean_loss)
    return averaged.module.eval()


LOG_EVERY = 10  # epochs between two events


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
    scored = standardise_rows(logits.float()) if config.logit_std_norm else logits
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


def _optimizer(
    model: nn.Module, config: EvaluationConfig, device: torch.device
) -> torch.optim.Optimizer:
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
