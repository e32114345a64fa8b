"""Read this first: the six stages in order, and what flows between them.

    data --> experts --> statistics --> recovery --> relabeling --> evaluation
                 \\--> initialization --^

Every arrow is a stored artifact under a hash of everything that decides it (the stage's
configuration, its inputs' hashes, the split). The same command therefore continues where an earlier
one stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltdd import provenance
from ltdd.artifacts import (
    EventLog,
    fingerprint,
    load,
    open_run,
    record_files,
    save_distilled,
    write_json,
)
from ltdd.checkpoint import DEFAULT_SECONDS
from ltdd.config import (
    DistillConfig,
    EvaluationConfig,
    ExpertsConfig,
    InitializationConfig,
    Labels,
    OnBadImage,
)
from ltdd.data.datasets import LongTailedData, load_data
from ltdd.data.long_tail import accuracy_groups
from ltdd.data.views import ViewSchedule
from ltdd.errors import UserError
from ltdd.inference import predict_logits
from ltdd.metrics import accuracy_report, confusion_matrix, summarize
from ltdd.models import build_model
from ltdd.observation import batch_norm_layers
from ltdd.preflight import check_disk_space, check_networks, describe
from ltdd.runtime import Runtime, keep_freed_memory, resolve_device
from ltdd.stage_runner import StageRunner
from ltdd.stages.evaluation import (
    LabelSource,
    fkd_labels,
    online_labels,
    static_labels,
    train_student,
)
from ltdd.stages.experts import train_expert
from ltdd.stages.initialization import initialize_images
from ltdd.stages.recovery import recover_images
from ltdd.stages.relabeling import fkd_bytes, label_views
from ltdd.stages.statistics import calibrate_statistics
from ltdd.targets import LayerStatistics

REAL_EXAMPLES = 5  # real images a class kept for the report
BUILDING_STAGES = frozenset({"experts", "statistics", "initialization", "recovery"})


def distill(
    config: DistillConfig,
    out: Path,
    *,
    preset: str | None = None,
    quiet: bool = False,
    checkpoint_seconds: float = DEFAULT_SECONDS,
    on_bad_image: OnBadImage = "fail",
) -> dict[str, Any]:
    """Distill a long-tailed image set into ``config.ipc`` images a class, and evaluate them.

    Args:
        config: everything that decides the result.
        out: run folder; the same configuration continues an earlier run there.
        preset: name of the preset the configuration came from, for the record.
        quiet: no progress output.
        checkpoint_seconds: time between two saves of an unfinished stage; 0 saves after every step.
        on_bad_image: ``fail`` or ``skip``, for image files that cannot be read.

    Returns:
        The content of ``results.json``; accuracies are fractions of 1.

    Raises:
        UserError: the data, the configuration or the folder cannot be used, or the disk is full.
        FolderInUse: another process works in the folder.
    """
    resolve_device(config.device)
    data = load_data(config.data, config.imbalance_factor, config.image_size, on_bad_image)
    check_networks(config, data)
    check_disk_space(config, data, out)
    with open_run(out, config.to_dict(), data.split_sha256):
        if not quiet:
            print(describe(data), flush=True)
        origin = provenance.collect(preset)
        run = Run(config, data, out, quiet, checkpoint_seconds=checkpoint_seconds)
        for left_out in data.left_out:
            run.log.write("bad_image", file=left_out)
        run.build()
        run.publish()
        results = run.evaluate(config.evaluation.student, config.relabeling.labels)
        results["provenance"] = origin | {
            "seconds": sum(stage["seconds"] for stage in results["stages"].values())
        }
        write_json(out / "results.json", results)
        record_files(out, ["results.json"])
        run.log.write("done")
    return results


def evaluate(
    out: Path,
    student: str,
    seeds: int,
    labels: Labels,
    quiet: bool = False,
    on_bad_image: OnBadImage = "fail",
) -> dict[str, Any]:
    """Train other students on a finished run and write ``evaluations/<student>-<labels>.json``.

    Args:
        out: folder of a finished run.
        student: architecture.
        seeds: number of students.
        labels: ``static``, ``fkd``, ``online`` or ``hard``.
        quiet: no progress output.
        on_bad_image: as the run was made with.

    Returns:
        The same structure as ``results.json``, without baselines.

    Raises:
        UserError: the folder holds no finished run, or its data are no longer the same.
    """
    stored = load(out).manifest
    config = DistillConfig.from_dict(stored["config"])
    evaluation = dataclasses.replace(config.evaluation, student=student, seeds=seeds, baselines=())
    asked = dataclasses.replace(config, evaluation=evaluation)
    data = load_data(config.data, config.imbalance_factor, config.image_size, on_bad_image)
    if data.split_sha256 != stored["split_sha256"]:
        raise UserError(
            f"evaluate: expected the data of split {stored['split_sha256'][:12]}, "
            f"got split {data.split_sha256[:12]} from {config.data}"
        )
    check_networks(asked, data)
    with open_run(out, config.to_dict(), data.split_sha256):
        origin = provenance.collect(None)
        run = Run(asked, data, out, quiet, stored=BUILDING_STAGES)
        run.build()
        results = run.evaluate(student, labels)
        results["provenance"] = origin
        write_json(out / "evaluations" / f"{student}-{labels}.json", results)
    return results


class Run:
    """The stages of one configuration over one data set, stored below one folder.

    Args:
        config: everything that decides the result.
        data: the long-tailed data, drawn once and shared by every stage.
        out: run folder, already locked.
        quiet: no progress output.
        stored: names of stages that must be found in the folder, never computed.
        checkpoint_seconds: time between two saves of an unfinished stage.
    """

    def __init__(
        self,
        config: DistillConfig,
        data: LongTailedData,
        out: Path,
        quiet: bool,
        stored: frozenset[str] = frozenset(),
        checkpoint_seconds: float = DEFAULT_SECONDS,
    ) -> None:
        self.config, self.data, self.out = config, data, out
        self.log = EventLog(out / "events.jsonl")
        self.runtime = Runtime.from_config(config, self.log, quiet)
        if self.runtime.device.type == "cpu":
            keep_freed_memory()
        self.mean, self.std = torch.tensor(data.mean), torch.tensor(data.std)
        common = {
            "split": data.split_sha256,
            "pixels": data.content_sha256,
            "image_size": data.image_size,
            "normalization": [data.mean, data.std],
            "horizontal_flip": config.horizontal_flip,
            "seed": config.seed,
            "precision": self.runtime.precision,
            "device": self.runtime.device.type,
        }
        self.stages = StageRunner(out, common, self.runtime, self.log, stored, checkpoint_seconds)

    def build(self) -> None:
        """Run stages 1 to 4 and label the images."""
        config = self.config
        observer, observer_key = self.expert("observer", config.experts.observer, config.experts)
        if config.experts.teacher == "same":
            teacher, teacher_key = observer, observer_key
        else:
            teacher, teacher_key = self.expert("teacher", config.experts.teacher, config.experts)
        statistics, statistics_key = self.statistics(observer, observer_key)
        initial, initial_key = self.initial_images(teacher, teacher_key)
        recovered_key = self.stages.key(
            "recovery",
            dataclasses.asdict(config.recovery) | dataclasses.asdict(config.statistics),
            [statistics_key, initial_key],
        )
        recovered = self.stages.run(
            "recovery",
            recovered_key,
            lambda runtime: {
                "images": recover_images(
                    initial["images"],
                    initial["labels"],
                    observer,
                    statistics,
                    self.mean,
                    self.std,
                    config.horizontal_flip,
                    config.recovery,
                    config.statistics,
                    runtime,
                )
            },
        )
        self.observer, self.teacher = observer, teacher
        self.labels = initial["labels"]
        self.images = to_uint8(recovered["images"])
        self.images_key = fingerprint([recovered_key, teacher_key])
        self.logits = self.stages.run(
            "relabeling",
            self.stages.key("relabeling", {"labels": "static"}, [self.images_key]),
            lambda runtime: {"logits": self.static_logits(runtime)},
        )["logits"]

    def static_logits(self, runtime: Runtime) -> Tensor:
        """Return one logit vector an image; it travels with the set, so in full precision.

        It is stored like every result: another number of threads would round it differently.
        """
        exact = dataclasses.replace(runtime, precision="fp32")
        return predict_logits(self.teacher, self.images, self.mean, self.std, exact)

    def publish(self) -> None:
        """Write the distilled set and its manifest."""
        config, data = self.config, self.data
        save_distilled(
            self.out,
            self.images,
            self.labels,
            self.logits,
            class_names=data.class_names,
            counts=data.counts,
            split_sha256=data.split_sha256,
            normalization=(data.mean, data.std),
            config=config.to_dict(),
            student_recipe=dataclasses.asdict(config.evaluation)
            | {"labels": config.relabeling.labels, "horizontal_flip": config.horizontal_flip},
        )

    def expert(
        self, role: str, architecture: str, settings: ExpertsConfig
    ) -> tuple[nn.Module, str]:
        """Stage 1: return a trained expert and its key."""
        values = dataclasses.asdict(settings)
        recipe = {k: v for k, v in values.items() if k not in ("observer", "teacher")}
        key = self.stages.key("experts", recipe | {"role": role, "architecture": architecture}, [])
        data, flip = self.data, self.config.horizontal_flip
        weights = self.stages.run(
            "experts" if role in ("observer", "teacher") else "evaluation",
            key,
            lambda runtime: train_expert(
                role, architecture, data, settings, flip, runtime
            ).state_dict(),
        )
        runtime = self.runtime
        model = build_model(architecture, data.num_classes, data.image_size, data.channels)
        model.load_state_dict(weights)
        model = model.to(runtime.device).to(memory_format=torch.channels_last)
        return model.eval().requires_grad_(False), key

    def statistics(self, observer: nn.Module, key: str) -> tuple[list[LayerStatistics], str]:
        """Stage 2: return the per-class statistics of the observer and their key."""
        config = self.config.statistics
        key = self.stages.key(
            "statistics", {"batch_size": config.batch_size}, [key, self.config.backend]
        )

        def compute(runtime: Runtime) -> dict[str, Tensor]:
            layers = calibrate_statistics(observer, self.data, config, runtime)
            return {
                name: tensor
                for number, layer in enumerate(layers)
                for name, tensor in layer.tensors(str(number)).items()
            }

        tensors = self.stages.run("statistics", key, compute)
        layers = range(len(batch_norm_layers(observer)))
        return [LayerStatistics.from_tensors(str(n), tensors) for n in layers], key

    def initial_images(self, teacher: nn.Module, key: str) -> tuple[dict[str, Tensor], str]:
        """Stage 3: return initial images, their labels and some real images for the report."""
        config = self.config.initialization
        settings = dataclasses.asdict(config) | {"ipc": self.config.ipc}
        key = self.stages.key("initialization", settings, [key])

        def compute(runtime: Runtime) -> dict[str, Tensor]:
            start = initialize_images(teacher, self.data, self.config.ipc, config, runtime)
            return {
                "images": start.images,
                "labels": start.labels,
                "source": start.source,
                "real_examples": real_examples(self.data),
            }

        return self.stages.run("initialization", key, compute), key

    def schedule(self) -> ViewSchedule:
        """Return the views every student of this run trains on."""
        size = self.data.image_size
        return ViewSchedule(
            self.config.seed,
            self.data.num_classes * self.config.ipc,
            size,
            size,
            self.config.horizontal_flip,
            self.config.evaluation,
        )

    def label_source(self, labels: str) -> LabelSource | None:
        """Stage 5: return the teacher's labels of the given kind; ``hard`` has none."""
        if labels == "hard":
            return None
        if labels == "static":
            return static_labels(self.logits)
        if labels == "online":
            return online_labels(self.teacher, self.runtime)
        schedule = self.schedule()
        key = self.stages.key("relabeling", view_settings(schedule.config), [self.images_key])
        table = self.stages.run(
            "relabeling",
            key,
            lambda runtime: {
                "logits": label_views(
                    self.images, self.teacher, schedule, self.mean, self.std, runtime
                )
            },
        )["logits"]
        return fkd_labels(table)

    def evaluate(self, student: str, labels: str) -> dict[str, Any]:
        """Stage 6: train students and baselines; return the content of ``results.json``."""
        config, data = self.config, self.data
        source = self.label_source(labels)
        label_bytes = self.logits.numel() * self.logits.element_size()
        if labels == "fkd":
            label_bytes += fkd_bytes(config.evaluation.epochs, *self.logits.shape)
        predictions = {
            "student": self.students("student", self.images, source, labels),
            "teacher": self.predict(self.teacher)[None],
            "observer": self.predict(self.observer)[None],
        }
        if "random_real" in config.evaluation.baselines:
            settings = InitializationConfig(method="random_real")
            real = initialize_images(self.teacher, data, config.ipc, settings, self.runtime)
            images = to_uint8(real.images)
            predictions["random_real"] = self.students("random_real", images, None, "hard")
        if "full_long_tailed" in config.evaluation.baselines:
            model, _ = self.expert("full_long_tailed", student, self.plain_training())
            predictions["full_long_tailed"] = self.predict(model)[None]
        scores = {
            who: summarize([accuracy_report(p, data.test_labels, data.counts) for p in rows])
            for who, rows in predictions.items()
        }
        groups = dataclasses.asdict(accuracy_groups(data.counts))
        return {
            "student": scores["student"]
            | {"arch": student, "labels": labels, "epochs": config.evaluation.epochs},
            "teacher": scores["teacher"] | {"arch": self.teacher_name},
            "observer": scores["observer"] | {"arch": config.experts.observer},
            "baselines": {name: scores[name] for name in config.evaluation.baselines},
            "stages": self.stages.costs,
            "bytes": {"images": self.images.numel(), "labels": label_bytes},
            "ipc": config.ipc,
            "groups": groups,
            "counts": list(data.counts),
            "class_names": list(data.class_names),
            "confusion": {
                who: confusion_matrix(
                    rows.flatten(), data.test_labels.repeat(len(rows)), data.num_classes
                ).tolist()
                for who, rows in predictions.items()
            },
        }

    def plain_training(self) -> ExpertsConfig:
        """Return the experts' recipe without mixing and debiasing, for the full-data baseline."""
        experts, epochs = self.config.experts, self.config.evaluation.full_epochs
        return dataclasses.replace(experts, loss="ce", epochs=epochs or experts.epochs)

    @property
    def teacher_name(self) -> str:
        """Architecture of the teacher."""
        experts = self.config.experts
        return experts.observer if experts.teacher == "same" else experts.teacher

    def students(self, who: str, images: Tensor, source: LabelSource | None, labels: str) -> Tensor:
        """Return the test predictions (seeds, N) of students trained on the images."""
        schedule = self.schedule()
        settings = dataclasses.asdict(self.config.evaluation)
        recipe = {
            k: v for k, v in settings.items() if k not in ("seeds", "baselines", "full_epochs")
        }
        upstream = [self.images_key] if who == "student" else []
        rows = []
        for number in range(self.config.evaluation.seeds):
            given = {"who": who, "number": number, "labels": labels, "ipc": self.config.ipc}
            key = self.stages.key("evaluation", recipe | given, upstream)

            def compute(runtime: Runtime, number: int = number) -> dict[str, Tensor]:
                model = train_student(
                    images,
                    self.labels,
                    source,
                    self.data.num_classes,
                    schedule,
                    self.mean,
                    self.std,
                    who,
                    number,
                    runtime,
                )
                return {"predictions": self.predict(model)}

            rows.append(self.stages.run("evaluation", key, compute)["predictions"])
        return torch.stack(rows)

    def predict(self, model: nn.Module) -> Tensor:
        """Return the predicted classes (N,) of the test images."""
        logits = predict_logits(model, self.data.test_images, self.mean, self.std, self.runtime)
        return logits.argmax(1)


def view_settings(config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings that decide the views, and with them the ``fkd`` logits."""
    names = ("epochs", "batch_size", "crop_min_scale", "cutmix", "randaugment")
    return {name: getattr(config, name) for name in names}


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 0..255."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def real_examples(data: LongTailedData) -> Tensor:
    """Return the first real training images of every class, uint8 (K, 5, C, H, W)."""
    rows = []
    for label in range(data.num_classes):
        members = torch.nonzero(data.train_labels == label).flatten()
        rows.append(data.train_images[members[torch.arange(REAL_EXAMPLES) % len(members)]])
    return torch.stack(rows)
