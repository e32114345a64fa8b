"""Measure a teacher on held-out images, before anything is distilled from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltdd.config import DistillConfig, OnBadImage
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import NullLog, Runtime
from ltdd.engine.storage.files import read_json
from ltdd.engine.storage.run_folder import open_run
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.inference import predict_logits
from ltdd.models.weights import load_weights, read_weights
from ltdd.pipeline import load_source
from ltdd.stages.experts import train_experts
from ltdd.stages.metrics import GROUPS, accuracy_report, usual_floor
from ltdd.stages.run import Run


@dataclass(frozen=True)
class TeacherCheck:
    """Accuracies of a teacher.

    Attributes:
        name: the architecture.
        data: whose test images were shown.
        report: of `accuracy_report`.
    """

    name: str
    data: LongTailedData
    report: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Fraction of all test images that are right."""
        return float(self.report["accuracy"])

    @property
    def chance(self) -> float:
        """Accuracy of guessing on a balanced test set."""
        return 1 / self.data.num_classes

    @property
    def usual_floor(self) -> float:
        """Accuracy below which something is probably wrong."""
        return usual_floor(self.data.num_classes)

    def table(self) -> str:
        """Return accuracies in percent: overall, per group, per class."""
        lines = [
            f"{self.name} on {len(self.data.test_labels)} held-out images of {self.data.source}"
        ]
        rows = [("overall", self.report["accuracy"])]
        rows += [(name.replace("_", " "), self.report[name]) for name in GROUPS]
        lines += [f"  {name:<12}{100 * value:6.1f} %" for name, value in rows if value is not None]
        width = max(5, *(len(name) for name in self.data.class_names))
        lines.append(f"{'class':<{width}}  training images  accuracy")
        lines += [
            f"{name:<{width}}  {count:>15}  "
            + ("     - (no test images)" if value is None else f"{100 * value:6.1f} %")
            for name, count, value in zip(
                self.data.class_names, self.data.counts, self.report["per_class"], strict=True
            )
        ]
        return "\n".join(lines)


def check_run(
    out: Path,
    source: str | None = None,
    imbalance_factor: float | None = None,
    image_size: int | None = None,
    on_bad_image: OnBadImage = "fail",
) -> TeacherCheck:
    """Measure the teacher of a run whose experts are trained.

    Args:
        out: folder of the run, finished or not.
        source: other data with the same classes, in whose test images to look; None: the run's own.
        imbalance_factor, image_size: of that data.
        on_bad_image: as the run was made with.

    Raises:
        UserError: the folder holds no run, its experts are not trained, or the data do not fit.
    """
    stored = read_json(out / "run.json").get("config")
    if not isinstance(stored, dict):
        raise UserError(f"check-teacher: expected the configuration of a run in {out / 'run.json'}")
    config = DistillConfig.from_dict(stored)
    options = RunOptions(quiet=True, on_bad_image=on_bad_image)
    data = load_source(config, options)
    shown = data
    if source is not None:
        size = image_size or data.image_size
        shown = load_source(
            dataclasses.replace(
                config, data=source, imbalance_factor=imbalance_factor, image_size=size
            ),
            options,
        )
        if (shown.class_names, shown.channels) != (data.class_names, data.channels):
            raise UserError(
                f"check-teacher: expected data with the run's {data.num_classes} classes and "
                f"{data.channels} channels, got {shown.num_classes} classes and {shown.channels} "
                f"channels, or another order, in {source}"
            )
    with open_run(out, config.to_dict(), data.split_sha256):
        run = Run.create(config, data, out, options, finished=frozenset({"experts"}))
        teacher = train_experts(run).teacher.value
        # Normalised as in the run, whatever the data that are shown.
        seen = dataclasses.replace(
            run, data=dataclasses.replace(shown, mean=data.mean, std=data.std)
        )
        predictions = seen.predict(teacher)
    report = accuracy_report(predictions, shown.test_labels, shown.counts)
    return TeacherCheck(config.experts.teacher_name, shown, report)


def check_weights(
    file: Path,
    architecture: str,
    class_map: Path | None,
    source: str,
    imbalance_factor: float | None = None,
    image_size: int | None = None,
    on_bad_image: OnBadImage = "fail",
) -> TeacherCheck:
    """Measure weights from a file as the teacher of a run on the same data would be.

    Args:
        file: the weights.
        architecture: a name that `build_model` knows.
        class_map: JSON file with the class names in the order of the outputs, or None.
        source, imbalance_factor, image_size, on_bad_image: as in `load_data`.

    Raises:
        UserError: weights, architecture and data do not fit each other.
    """
    config = DistillConfig(data=source, imbalance_factor=imbalance_factor, image_size=image_size)
    data = load_data(source, imbalance_factor, image_size, on_bad_image)
    weights = read_weights(file, class_map)
    model = build_model(architecture, data.num_classes, data.image_size, data.channels)
    load_weights(model, weights, data.class_names)
    runtime = Runtime.from_config(config, NullLog(), quiet=True)
    model = model.to(runtime.device).to(memory_format=torch.channels_last)
    logits = predict_logits(model, data.test_images, data.normalization, runtime)
    predictions = logits.argmax(1)
    report = accuracy_report(predictions, data.test_labels, data.counts)
    return TeacherCheck(architecture, data, report)
