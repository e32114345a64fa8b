"""Train a network of one's own on a distilled set, with the recipe that the set brings along."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ltdd.config import Device, DistillConfig, Precision
from ltdd.data.augmentation.crops import normalize
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.formation import decode_set
from ltdd.data.image_spec import ImageSet, ImageSpec
from ltdd.data.packed_logits import PackedLogits
from ltdd.data.reading.given_arrays import check_scale, given_images, given_labels
from ltdd.engine.public import public
from ltdd.engine.runtime import NullLog, Runtime
from ltdd.engine.turns import finished
from ltdd.errors import UserError, first_line, shown
from ltdd.models.inference import predict_logits
from ltdd.results.distilled_set import DistilledSet, load
from ltdd.stages.evaluation import training
from ltdd.stages.evaluation.training import StudentName
from ltdd.stages.label_sources import HardLabels, LabelSource, StaticLabels, StoredLabels
from ltdd.stages.metrics import Report, accuracy_report
from ltdd.stages.relabeling import VIEW_FIELDS

StudentLabels = Literal["static", "fkd", "hard"]
_OF_RUNS = ("student", "seeds", "baselines", "full_epochs")  # without effect on a given network


class TrainedStudent(NamedTuple):
    """A network trained on a distilled set.

    Attributes:
        model: the network that was given, with the averaged parameters, in evaluation mode.
        report: accuracies as fractions (``accuracy``, ``per_class``, ``head``, ``medium``,
            ``tail``, ...), None without test images.
    """

    model: nn.Module
    report: Report | None


@public(model="build the network first")
def train_student(
    folder: str | Path,
    model: nn.Module,
    *,
    labels: StudentLabels | None = None,
    test: tuple[Any, Any] | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    quiet: bool = False,
    **changes: Any,
) -> TrainedStudent:
    """Train any network on a distilled set: optimizer, augmentation, loss and averaging as there.

    The network is tried on two images before any work, and left as it was if it does not fit.

    Args:
        folder: a finished run, or its published files (``stages/`` is not needed).
        model: maps normalised float32 images (B, C, H, W) to logits (B, K), or to an object with
            ``logits`` such as GoogLeNet's, whose auxiliary heads are then not trained. It is
            trained in place.
        labels: ``static``, one logit vector an image, of the teacher or learned; ``fkd``, the
            stored logits of every view; ``hard``, class labels alone. None takes ``fkd`` where the
            folder has them, else ``static``.
        test: images and labels as `ltdd.data.from_tensors` takes them, not normalised: uint8 or
            floating point in [0, 1], of the set's channels and size; every class occurs.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``auto``.
        quiet: no progress output.
        changes: fields of `EvaluationConfig` that replace those of the set's recipe, such as
            ``epochs=100``; not those that only a run reads.

    Returns:
        The model and its accuracies.

    Raises:
        UserError: no distilled set there, labels that it has not, a network or test images that do
            not fit it, or a loss that is NaN or infinite.
    """
    for name in _OF_RUNS:
        if name in changes:
            raise UserError(f"train_student: expected no {name}, which only a run reads, got one")
    distilled = load(folder)
    classes = len(distilled.class_names)
    stored = DistillConfig.from_dict(distilled.manifest["config"]).of_classes(classes)
    config = DistillConfig.from_dict(
        stored.to_dict() | {"evaluation": _recipe(distilled, stored) | {"seeds": 1} | changes}
    ).of_classes(classes)
    runtime = Runtime.from_config(
        dataclasses.replace(config, device=device, precision=precision), NullLog(), quiet
    )
    source = _label_source(distilled, stored, config, labels, runtime.device)
    size, channels = distilled.images.shape[2], distilled.images.shape[1]
    spec = ImageSpec(size, channels, classes, distilled.normalization, config.horizontal_flip)
    tested = None if test is None else _test_set(test, distilled)
    stored_images = ImageSet(distilled.images, distilled.labels)
    decoded = decode_set(stored_images, config.evaluation.decode)
    batches = -(-len(decoded.labels) // config.evaluation.batch_size)
    two = decoded.images[: min(2, len(decoded.labels) // batches)]  # no batch is smaller
    _try(model, normalize(two, *spec.normalization.tensors()), classes, runtime)
    student = _Logits(model)
    views = ViewSchedule(
        config.seed,
        len(decoded.labels),
        size,
        size,
        config.horizontal_flip,
        config.evaluation,
    )
    who = StudentName("student", 0)
    steps = training.train_student(student, decoded, source, views, spec, who, runtime)
    trained = finished(steps)
    student.load_state_dict(trained.state_dict())
    report = None
    if tested is not None:
        predictions = predict_logits(student, tested[0], spec.normalization, runtime).argmax(1)
        report = accuracy_report(predictions, tested[1], distilled.manifest["counts"])
    return TrainedStudent(model.eval(), report)


def _recipe(distilled: DistilledSet, stored: DistillConfig) -> dict[str, Any]:
    """Return the settings of the students' training, with the learned rate where one was."""
    evaluation: dict[str, Any] = stored.to_dict()["evaluation"]
    if evaluation["learning_rate"] is None:
        evaluation["learning_rate"] = distilled.manifest["student_training"]["learning_rate"]
    return evaluation


def _label_source(
    distilled: DistilledSet,
    stored: DistillConfig,
    config: DistillConfig,
    labels: StudentLabels | None,
    device: torch.device,
) -> LabelSource:
    if labels == "hard":
        return HardLabels()
    table = None if labels == "static" else distilled.fkd_logits()
    if table is not None:
        _check_views(table, stored, config)
        return StoredLabels(table)
    if labels == "fkd":
        raise UserError(
            f"train_student: expected stored labels of every view in {distilled.root}, got only "
            "static ones; use labels='static'"
        )
    times = config.evaluation.decode**2
    return StaticLabels(distilled.logits.repeat_interleave(times, 0), device)


def _check_views(table: PackedLogits, stored: DistillConfig, config: DistillConfig) -> None:
    """Stored labels belong to the views of one schedule; it may only be cut short."""
    for name in (*VIEW_FIELDS, "decode"):
        was, now = getattr(stored.evaluation, name), getattr(config.evaluation, name)
        if was != now and name != "epochs":
            raise UserError(
                f"train_student: expected {name} = {was!r}, with which the stored labels of every "
                f"view were made, got {now!r}; use labels='static'"
            )
    if config.evaluation.epochs > table.shape[0]:
        raise UserError(
            f"train_student: expected at most {table.shape[0]} epochs, for which labels are "
            f"stored, got {config.evaluation.epochs}; use labels='static'"
        )


def _test_set(test: Any, distilled: DistilledSet) -> tuple[Tensor, Tensor]:
    """Return test images uint8 (N, C, H, W) and int64 labels (N,)."""
    if not isinstance(test, tuple | list) or len(test) != 2:
        raise UserError(f"train_student: expected test as (images, labels), got {shown(test)}")
    images = torch.from_numpy(given_images("test images", test[0]))
    labels = torch.from_numpy(given_labels("test labels", test[1]))
    shape, classes = tuple(distilled.images.shape[1:]), len(distilled.class_names)
    if images.shape[1:] != shape or labels.shape != images.shape[:1]:
        raise UserError(
            f"train_student: expected test images (N, {', '.join(map(str, shape))}) and labels "
            f"(N,), got {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    check_scale("test images", images)
    if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        got = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise UserError(f"train_student: expected test labels from 0 to {classes - 1}, got {got}")
    return images, labels


class _Logits(nn.Module):
    """A network whose output, or the output's ``logits``, are the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, C, H, W)."""
        output = self.model(images)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits


def _try(model: nn.Module, batch: Tensor, classes: int, runtime: Runtime) -> None:
    """Let a copy of the network predict a batch and learn from it, before any work.

    The network keeps its parameters, buffers and mode, and torch's random generators their state.

    Raises:
        UserError: it cannot, or returns something else than logits.
    """
    wanted = f"expected a model from {tuple(batch.shape)} to {(len(batch), classes)}"
    mode = "that can be copied"
    batch = batch.to(runtime.device)
    with torch.random.fork_rng():
        try:
            student = _Logits(copy.deepcopy(model)).to(runtime.device)
            for mode in ("in evaluation mode", "in training mode"):
                student.train(mode == "in training mode")
                with runtime.autocast():
                    output = student.model(batch)
                    logits = getattr(output, "logits", output)
                if not isinstance(logits, Tensor):
                    raise UserError(f"train_student: {wanted}, got {shown(output)} {mode}")
                if logits.shape != (len(batch), classes) or not logits.is_floating_point():
                    got = f"{logits.dtype} {tuple(logits.shape)}".removeprefix("torch.")
                    raise UserError(f"train_student: {wanted}, got {got} {mode}")
            torch.autograd.backward(logits.float().square().mean())
        except UserError:
            raise
        except Exception as error:  # anybody's code, which may raise anything
            raise UserError(f"train_student: {wanted}, got {first_line(error)} {mode}") from error
    if all(parameter.grad is None for parameter in student.parameters()):
        raise UserError(f"train_student: {wanted} with parameters that learn, got none")
