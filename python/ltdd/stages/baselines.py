"""How well networks learn from a distilled set, and from what it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import EvaluationConfig, ExpertsConfig, InitializationConfig
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.long_tail import accuracy_groups
from ltdd.data.packed_logits import PackedLogits, pack, packing_settings
from ltdd.engine.runtime import Runtime
from ltdd.models import build_model
from ltdd.models.inference import predict_logits
from ltdd.stages.alignment_targets import LayerStatistics
from ltdd.stages.evaluation import (
    LabelSource,
    fkd_labels,
    hard_labels,
    online_labels,
    static_labels,
    train_student,
)
from ltdd.stages.initialization import initialize_images
from ltdd.stages.metrics import (
    accuracy_report,
    augmentation_robust_score,
    confusion_matrix,
    label_robust_score,
    summarize,
)
from ltdd.stages.relabeling import label_views
from ltdd.stages.run import Context


@dataclass(frozen=True)
class Distillation:
    """What stages 1 to 5 made.

    Attributes:
        observer: network whose statistics were matched.
        teacher: network that gives soft labels.
        teacher_key: hash of everything that decided the teacher.
        statistics: of the observer on the real images, one a layer.
        initial: float32 (M, C, H, W) in [0, 1], what the images were before recovery.
        images: uint8 (M, C, H, W).
        images_key: hash of everything that decided images and teacher.
        labels: int64 (M,).
        logits: (M, K), the teacher's, of the un-augmented images, calibrated and packed.
        tau: strength of the label calibration, 0 without.
        shift: float32 (K,), what calibration subtracts from the teacher's logits.
        fkd: (epochs, M, K), of every view, calibrated, if they are published too.
    """

    observer: nn.Module
    teacher: nn.Module
    teacher_key: str
    statistics: list[LayerStatistics]
    initial: Tensor
    images: Tensor
    images_key: str
    labels: Tensor
    logits: PackedLogits
    tau: float
    shift: Tensor
    fkd: PackedLogits | None = None


@dataclass(frozen=True)
class Comparison:
    """What students of a kind learn from.

    Attributes:
        real: random real images instead of the distilled ones.
        hard: class labels instead of the kind of labels that was asked for.
        augmented: views of the recipe instead of the bare images.
    """

    real: bool = False
    hard: bool = False
    augmented: bool = True


COMPARISONS: Mapping[str, Comparison] = {
    "student": Comparison(),
    "random_real": Comparison(real=True, hard=True),
    "random_real_soft": Comparison(real=True),
    "distilled_hard": Comparison(hard=True),
    "distilled_bare": Comparison(augmented=False),
    "random_real_bare": Comparison(real=True, augmented=False),
}
LRS_BASELINES = ("full_long_tailed", "distilled_hard", "random_real_soft")
ARS_BASELINES = ("random_real_soft", "distilled_bare", "random_real_bare")


def score(context: Context, made: Distillation, student: str, labels: str) -> dict[str, Any]:
    """Train students and baselines; return the content of ``results.json``.

    Args:
        context: of the run.
        made: the distilled set and its experts.
        student: architecture of the students.
        labels: what they learn from.
    """
    config, data = context.config, context.data
    label_bytes = {"static": made.logits.nbytes}
    if labels == "fkd":
        table = made.fkd or fkd_logits(context, made)
        made = dataclasses.replace(made, fkd=table)
        label_bytes["fkd"] = table.nbytes
    predictions = {
        "student": students(context, made, "student", labels),
        "teacher": context.predict(made.teacher)[None],
        "observer": context.predict(made.observer)[None],
    }
    for name in config.evaluation.baselines:
        if name == "full_long_tailed":
            model, _ = context.expert(name, student, plain_training(context))
            predictions[name] = context.predict(model)[None]
        else:
            predictions[name] = students(context, made, name, labels)
    reports = {
        who: [accuracy_report(p, data.test_labels, data.counts) for p in rows]
        for who, rows in predictions.items()
    }
    scores = {who: summarize(rows) for who, rows in reports.items()}
    return {
        "student": scores["student"]
        | {"arch": student, "labels": labels, "epochs": config.evaluation.epochs},
        "teacher": scores["teacher"] | {"arch": config.experts.teacher_name},
        "observer": scores["observer"] | {"arch": config.experts.observer},
        "baselines": {name: scores[name] for name in config.evaluation.baselines},
        "robustness": robustness(
            {who: [report["accuracy"] for report in rows] for who, rows in reports.items()}
        ),
        "calibration": {"method": config.relabeling.calibration, "tau": made.tau},
        "stages": context.stages.costs,
        "files": context.stages.files,
        "bytes": {"images": made.images.numel(), "labels": sum(label_bytes.values())},
        "label_bytes": label_bytes,
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


def robustness(accuracies: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return LRS and ARS as far as the baselines that they compare with were trained.

    Deviation from DD-Ranking: "real" is the long-tailed training set the images were distilled
    from; class labels come with the recipe's augmentation; all networks share the recipe's learning
    rate and are measured after the last epoch instead of at their best.
    """
    known, student = accuracies, accuracies["student"]
    found: dict[str, Any] = {}
    if all(name in known for name in LRS_BASELINES):
        found["lrs"] = label_robust_score(
            known["full_long_tailed"] * len(student),
            known["distilled_hard"],
            student,
            known["random_real_soft"],
        )
    if all(name in known for name in ARS_BASELINES):
        found["ars"] = augmentation_robust_score(
            student,
            known["random_real_soft"],
            known["distilled_bare"],
            known["random_real_bare"],
        )
    return found


def plain_training(context: Context) -> ExpertsConfig:
    """Return the experts' recipe without mixing and debiasing, for the full-data baseline.

    Images keep their size: the students' architectures take no other.
    """
    experts, epochs = context.config.experts, context.config.evaluation.full_epochs
    return dataclasses.replace(
        experts, loss="ce", epochs=epochs or experts.epochs, progressive_resizing=False
    )


def students(context: Context, made: Distillation, who: str, labels: str) -> Tensor:
    """Return the test predictions (seeds, N) of students.

    Args:
        context: of the run.
        made: the distilled set and its experts.
        who: one of `COMPARISONS`.
        labels: the kind that the run's students learn from.
    """
    config, compared = context.config, COMPARISONS[who]
    schedule = context.views() if compared.augmented else bare_views(context)
    images = random_real_images(context, made) if compared.real else made.images
    if compared.hard:
        labels = "hard"
    elif not compared.augmented and labels != "hard":
        labels = "static"  # the labels of bare images, whoever gives them and when
    upstream = [made.images_key]
    if compared.real:  # the data alone decide the images, and the teacher only soft labels
        upstream = [made.teacher_key] if labels != "hard" else []
    source = label_source(context, made, compared, images, schedule, labels, upstream)
    settings = dataclasses.asdict(schedule.config)
    recipe = {k: v for k, v in settings.items() if k not in ("seeds", "baselines", "full_epochs")}
    if labels != "hard" and made.tau:
        recipe["tau"] = made.tau
    if labels in ("static", "fkd"):  # of the others nothing is stored
        recipe["packing"] = packing_settings(config.relabeling)
    rows = []
    for number in range(config.evaluation.seeds):
        given = {"who": who, "number": number, "labels": labels, "ipc": config.ipc}
        key = context.stages.key("evaluation", recipe | given, upstream)

        def compute(runtime: Runtime, number: int = number) -> dict[str, Tensor]:
            data = context.data
            with runtime.global_stream("evaluation", who, number):
                model: nn.Module = build_model(
                    config.evaluation.student, data.num_classes, data.image_size, data.channels
                )
            model = train_student(
                model,
                images,
                made.labels,
                source,
                data.num_classes,
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


def label_source(
    context: Context,
    made: Distillation,
    compared: Comparison,
    images: Tensor,
    schedule: ViewSchedule,
    labels: str,
    upstream: list[str],
) -> LabelSource:
    """Stage 5: return the teacher's labels of the given kind; ``hard`` are none of the teacher's.

    Stages store the teacher's own labels; calibration is applied when they are read, so that it
    needs no second table, and packing too, so that students learn from what is published.

    Args:
        context: of the run.
        made: the distilled set and its experts.
        compared: says whose images they are.
        images: uint8 (M, C, H, W).
        schedule: the views of the students' training.
        labels: kind of labels.
        upstream: hashes of what decided images and teacher.
    """
    stages, teacher, device = context.stages, made.teacher, context.runtime.device
    whose = {"who": "random_real", "ipc": context.config.ipc} if compared.real else {}
    match labels:
        case "hard":
            return hard_labels()
        case "online":
            return online_labels(teacher, context.runtime, made.shift.to(device))
        case "static" if not compared.real:
            return static_labels(made.logits[:], device)
        case "static":
            logits = stages.run(
                "relabeling",
                stages.key("relabeling", {"labels": "static"} | whose, upstream),
                lambda runtime: {"logits": static_logits(context, teacher, images, runtime)},
            )["logits"]
            packed = pack(logits - made.shift, context.config.relabeling)
            return static_labels(packed[:], device)
    if made.fkd is not None and not compared.real:
        return fkd_labels(made.fkd)
    key = stages.key("relabeling", view_settings(schedule.config) | whose, upstream)
    return fkd_labels(packed_views(context, made, images, schedule, key))


def fkd_logits(context: Context, made: Distillation) -> PackedLogits:
    """Stage 5: return the logits (epochs, M, K) of every view of the students' training."""
    schedule = context.views()
    key = context.stages.key("relabeling", view_settings(schedule.config), [made.images_key])
    return packed_views(context, made, made.images, schedule, key)


def packed_views(
    context: Context, made: Distillation, images: Tensor, schedule: ViewSchedule, key: str
) -> PackedLogits:
    """Return the teacher's logits of a schedule's views, calibrated and packed."""
    table = context.stages.run(
        "relabeling",
        key,
        lambda runtime: {
            "logits": label_views(
                images, made.teacher, schedule, context.mean, context.std, runtime
            )
        },
    )["logits"]
    packed = pack(table, context.config.relabeling)
    return dataclasses.replace(packed, shift=made.shift) if made.tau else packed


def static_logits(context: Context, teacher: nn.Module, images: Tensor, runtime: Runtime) -> Tensor:
    """Return one logit vector an image; it travels with the set, so in full precision.

    It is stored like every result: another number of threads would round it differently.
    """
    exact = dataclasses.replace(runtime, precision="fp32")
    return predict_logits(teacher, images, context.mean, context.std, exact)


def random_real_images(context: Context, made: Distillation) -> Tensor:
    """Return as many real images as were distilled, uint8, drawn at random within each class."""
    settings = InitializationConfig(method="random_real")
    start = initialize_images(
        made.teacher, context.data, context.config.ipc, settings, context.runtime
    )
    return to_uint8(start.images)


def bare_views(context: Context) -> ViewSchedule:
    """Return views that are the images themselves, in batches of changing order."""
    plain = dataclasses.replace(
        context.config.evaluation, crop_min_scale=1.0, cutmix=False, randaugment=False
    )
    return dataclasses.replace(context.views(), flip=False, config=plain)


def view_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that decide the views, and with them the ``fkd`` logits."""
    names = ("epochs", "batch_size", "crop_min_scale", "cutmix", "randaugment")
    return {name: getattr(config, name) for name in names}


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 0..255."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
