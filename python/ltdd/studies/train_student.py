"""Train a network of one's own on a distilled set, with the recipe that the set brings along."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ltdd.config import DistillConfig, Precision
from ltdd.data.augmentation.crops import normalise
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.packed_logits import PackedLogits
from ltdd.engine.runtime import NullLog, Runtime
from ltdd.errors import UserError
from ltdd.models.inference import predict_logits
from ltdd.results.distilled_set import DistilledSet, load
from ltdd.stages import evaluation
from ltdd.stages.evaluation import LabelSource, fkd_labels, hard_labels, static_labels
from ltdd.stages.metrics import Report, accuracy_report

StudentLabels = Literal["static", "fkd", "hard"]
_VIEW_SETTINGS = ("batch_size", "crop_min_scale", "cutmix", "randaugment")


class TrainedStudent(NamedTuple):
    """A network trained on a distilled set.

    Attributes:
        model: the network that was given, with the averaged parameters, in evaluation mode.
        report: accuracies as fractions (``accuracy``, ``per_class``, ``head``, ``medium``,
            ``tail``, ...), None without test images.
    """

    model: nn.Module
    report: Report | None


def train_student(
    folder: str | Path,
    model: nn.Module,
    *,
    labels: StudentLabels | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    quiet: bool = False,
    **changes: Any,
) -> TrainedStudent:
    """Train any network on a distilled set: optimizer, augmentation, loss and averaging as there.

    Args:
        folder: a finished run, or its published files (``stages/`` is not needed).
        model: maps normalised images (B, C, H, W) to logits (B, K); it is trained in place.
        labels: ``static``, one logit vector an image; ``fkd``, the stored logits of every view;
            ``hard``, class labels alone. None takes ``fkd`` where the folder has them, else
            ``static``.
        test: images (N, C, H, W), uint8 or float in [0, 1], and int64 (N,) labels.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``auto``.
        quiet: no progress output.
        changes: fields of `EvaluationConfig` that replace those of the set's recipe, such as
            ``epochs=100``.

    Returns:
        The model and its accuracies.

    Raises:
        UserError: no distilled set there, labels that it has not, a network or test images that do
            not fit it, or a loss that is NaN or infinite.
    """
    distilled = load(folder)
    stored = DistillConfig.from_dict(distilled.manifest["config"])
    config = DistillConfig.from_dict(
        stored.to_dict() | {"evaluation": stored.to_dict()["evaluation"] | {"seeds": 1} | changes}
    )
    runtime = Runtime.from_config(
        dataclasses.replace(config, device=device, precision=precision), NullLog(), quiet
    )
    source = _label_source(distilled, stored, config, labels, runtime.device)
    mean, std = (torch.tensor(values) for values in distilled.normalization)
    if test is not None:
        _check_test(test, distilled)
    _check_model(model, distilled, mean, std, runtime)
    trained = evaluation.train_student(
        model,
        distilled.images,
        distilled.labels,
        source,
        len(distilled.class_names),
        ViewSchedule(
            config.seed,
            len(distilled),
            distilled.images.shape[2],
            distilled.images.shape[3],
            config.horizontal_flip,
            config.evaluation,
        ),
        mean,
        std,
        "student",
        0,
        runtime,
    )
    model.load_state_dict(trained.state_dict())
    report = None
    if test is not None:
        predictions = predict_logits(model, test[0], mean, std, runtime).argmax(1)
        report = accuracy_report(predictions, test[1].cpu(), distilled.manifest["counts"])
    return TrainedStudent(model.eval(), report)


def _label_source(
    distilled: DistilledSet,
    stored: DistillConfig,
    config: DistillConfig,
    labels: StudentLabels | None,
    device: torch.device,
) -> LabelSource:
    if labels == "hard":
        return hard_labels()
    if labels not in (None, "static", "fkd"):
        raise UserError(f"train_student: expected labels static, fkd or hard, got {labels!r}")
    table = None if labels == "static" else distilled.fkd_logits()
    if table is not None:
        _check_views(table, stored, config)
        return fkd_labels(table)
    if labels == "fkd":
        raise UserError(
            f"train_student: expected stored labels of every view in {distilled.root}, got only "
            "static ones; use labels='static'"
        )
    return static_labels(distilled.logits, device)


def _check_views(table: PackedLogits, stored: DistillConfig, config: DistillConfig) -> None:
    """Stored labels belong to the views of one schedule; it may only be cut short."""
    for name in _VIEW_SETTINGS:
        was, now = getattr(stored.evaluation, name), getattr(config.evaluation, name)
        if was != now:
            raise UserError(
                f"train_student: expected {name} = {was!r}, with which the stored labels of every "
                f"view were made, got {now!r}; use labels='static'"
            )
    if config.evaluation.epochs > table.shape[0]:
        raise UserError(
            f"train_student: expected at most {table.shape[0]} epochs, for which labels are "
            f"stored, got {config.evaluation.epochs}; use labels='static'"
        )


def _check_test(test: tuple[Tensor, Tensor], distilled: DistilledSet) -> None:
    images, labels = test
    shape, classes = tuple(distilled.images.shape[1:]), len(distilled.class_names)
    if images.shape[1:] != shape or labels.shape != images.shape[:1]:
        raise UserError(
            f"train_student: expected test images (N, {', '.join(map(str, shape))}) and labels "
            f"(N,), got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        got = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise UserError(f"train_student: expected test labels from 0 to {classes - 1}, got {got}")


@torch.no_grad()
def _check_model(
    model: nn.Module, distilled: DistilledSet, mean: Tensor, std: Tensor, runtime: Runtime
) -> None:
    """Try the network on two images before any work."""
    batch, classes = normalise(distilled.images[:2], mean, std), len(distilled.class_names)
    was_training = model.training
    try:
        logits = model.eval().to(runtime.device)(batch.to(runtime.device))
        got = str(tuple(logits.shape))
    except RuntimeError as error:
        got = str(error).partition("\n")[0]
    model.train(was_training)
    if got != str((len(batch), classes)):
        raise UserError(
            f"train_student: expected a model from {tuple(batch.shape)} to "
            f"{(len(batch), classes)}, got {got}"
        )
