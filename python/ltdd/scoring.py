"""How well networks learn from a distilled set, and from what it is compared with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import EvaluationConfig, ExpertsConfig, InitializationConfig
from ltdd.context import Context
from ltdd.data.long_tail import accuracy_groups
from ltdd.metrics import accuracy_report, confusion_matrix, summarize
from ltdd.runtime import Runtime
from ltdd.stages.evaluation import (
    LabelSource,
    fkd_labels,
    online_labels,
    static_labels,
    train_student,
)
from ltdd.stages.initialization import initialize_images
from ltdd.stages.relabeling import fkd_bytes, label_views
from ltdd.targets import LayerStatistics


@dataclass(frozen=True)
class Distillation:
    """What stages 1 to 5 made.

    Attributes:
        observer: network whose statistics were matched.
        teacher: network that gives soft labels.
        statistics: of the observer on the real images, one a layer.
        initial: float32 (M, C, H, W) in [0, 1], what the images were before recovery.
        images: uint8 (M, C, H, W).
        images_key: hash of everything that decided images and teacher.
        labels: int64 (M,).
        logits: float32 (M, K), the teacher's, of the un-augmented images.
    """

    observer: nn.Module
    teacher: nn.Module
    statistics: list[LayerStatistics]
    initial: Tensor
    images: Tensor
    images_key: str
    labels: Tensor
    logits: Tensor


def score(context: Context, made: Distillation, student: str, labels: str) -> dict[str, Any]:
    """Train students and baselines; return the content of ``results.json``.

    Args:
        context: of the run.
        made: the distilled set and its experts.
        student: architecture of the students.
        labels: what they learn from.
    """
    config, data = context.config, context.data
    source = label_source(context, made, labels)
    label_bytes = made.logits.numel() * made.logits.element_size()
    if labels == "fkd":
        label_bytes += fkd_bytes(config.evaluation.epochs, *made.logits.shape)
    predictions = {
        "student": students(context, made, "student", made.images, source, labels),
        "teacher": context.predict(made.teacher)[None],
        "observer": context.predict(made.observer)[None],
    }
    if "random_real" in config.evaluation.baselines:
        settings = InitializationConfig(method="random_real")
        real = initialize_images(made.teacher, data, config.ipc, settings, context.runtime)
        images = to_uint8(real.images)
        predictions["random_real"] = students(context, made, "random_real", images, None, "hard")
    if "full_long_tailed" in config.evaluation.baselines:
        model, _ = context.expert("full_long_tailed", student, plain_training(context))
        predictions["full_long_tailed"] = context.predict(model)[None]
    scores = {
        who: summarize([accuracy_report(p, data.test_labels, data.counts) for p in rows])
        for who, rows in predictions.items()
    }
    return {
        "student": scores["student"]
        | {"arch": student, "labels": labels, "epochs": config.evaluation.epochs},
        "teacher": scores["teacher"] | {"arch": config.experts.teacher_name},
        "observer": scores["observer"] | {"arch": config.experts.observer},
        "baselines": {name: scores[name] for name in config.evaluation.baselines},
        "stages": context.stages.costs,
        "bytes": {"images": made.images.numel(), "labels": label_bytes},
        "ipc": config.ipc,
        "groups": dataclasses.asdict(accuracy_groups(data.counts)),
        "counts": list(data.counts),
        "class_names": list(data.class_names),
        "confusion": {
            who: confusion_matrix(
                rows.flatten(), data.test_labels.repeat(len(rows)), data.num_classes
            ).tolist()
            for who, rows in predictions.items()
        },
    }


def label_source(context: Context, made: Distillation, labels: str) -> LabelSource | None:
    """Stage 5: return the teacher's labels of the given kind; ``hard`` has none."""
    if labels == "hard":
        return None
    if labels == "static":
        return static_labels(made.logits)
    if labels == "online":
        return online_labels(made.teacher, context.runtime)
    schedule = context.views()
    key = context.stages.key("relabeling", view_settings(schedule.config), [made.images_key])
    table = context.stages.run(
        "relabeling",
        key,
        lambda runtime: {
            "logits": label_views(
                made.images, made.teacher, schedule, context.mean, context.std, runtime
            )
        },
    )["logits"]
    return fkd_labels(table)


def plain_training(context: Context) -> ExpertsConfig:
    """Return the experts' recipe without mixing and debiasing, for the full-data baseline."""
    experts, epochs = context.config.experts, context.config.evaluation.full_epochs
    return dataclasses.replace(experts, loss="ce", epochs=epochs or experts.epochs)


def students(
    context: Context,
    made: Distillation,
    who: str,
    images: Tensor,
    source: LabelSource | None,
    labels: str,
) -> Tensor:
    """Return the test predictions (seeds, N) of students trained on the images."""
    schedule, config = context.views(), context.config
    settings = dataclasses.asdict(config.evaluation)
    recipe = {k: v for k, v in settings.items() if k not in ("seeds", "baselines", "full_epochs")}
    upstream = [made.images_key] if who == "student" else []
    rows = []
    for number in range(config.evaluation.seeds):
        given = {"who": who, "number": number, "labels": labels, "ipc": config.ipc}
        key = context.stages.key("evaluation", recipe | given, upstream)

        def compute(runtime: Runtime, number: int = number) -> dict[str, Tensor]:
            model = train_student(
                images,
                made.labels,
                source,
                context.data.num_classes,
                schedule,
                context.mean,
                context.std,
                who,
                number,
                runtime,
            )
            return {"predictions": context.predict(model)}

        rows.append(context.stages.run("evaluation", key, compute)["predictions"])
    return torch.stack(rows)


def view_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that decide the views, and with them the ``fkd`` logits."""
    names = ("epochs", "batch_size", "crop_min_scale", "cutmix", "randaugment")
    return {name: getattr(config, name) for name in names}


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 0..255."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
