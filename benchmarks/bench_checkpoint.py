"""What saving the state of unfinished stages costs, at CIFAR size: experts, recovery, students.

Steps with and without a save alternate, so that other work on the machine costs both the same; all
times are those of the clock, waiting for the disk included. A run saves once per
`CHECKPOINT_SECONDS`: the share of a stage's time is that of one save in so many seconds of steps.

``python -m benchmarks -s -k saving`` prints the figures.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.timing import keep_freed_pages
from ltdd.config import EvaluationConfig, ExpertsConfig, RecoveryConfig, StatisticsConfig
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.run_options import CHECKPOINT_SECONDS
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.checkpoint import StageCheckpoint
from ltdd.engine.turns import finished
from ltdd.models import build_model
from ltdd.stages.evaluation.training import StudentName, train_student
from ltdd.stages.experts.training import train_expert
from ltdd.stages.label_sources import HardLabels
from ltdd.stages.recovery.alignment import Observed, align_images
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics

CLASSES, SIDE, PER_CLASS = 10, 32, 20
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
LIMIT = 0.03


def noise() -> LongTailedData:
    """Return images of CIFAR's shape; their content does not decide how long anything takes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    shape = (len(labels), 3, SIDE, SIDE)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(CLASSES)))
    return LongTailedData(images, labels, images, labels, names, MEAN, STD, "0" * 64, "noise")


class TimedCheckpoint(StageCheckpoint):
    """Saves after every second step, and notes how long steps and saves take."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "key", seconds=0.0)
        self._calls: list[tuple[float, float]] = []

    def step(self, **state: Any) -> None:
        begun = time.monotonic()
        if len(self._calls) % 2:
            super().step(**state)
        self._calls.append((begun, time.monotonic()))

    @property
    def step_seconds(self) -> float:
        """Median time of a step, without saving."""
        pairs = itertools.pairwise(self._calls)
        return statistics.median(begun - ended for (_, ended), (begun, _) in pairs)

    @property
    def save_seconds(self) -> float:
        """Median time of a save."""
        return statistics.median(ended - begun for begun, ended in self._calls[1::2])


def experts(data: LongTailedData, runtime: Runtime) -> None:
    config = ExpertsConfig(observer="convnet3_bn", epochs=4, batch_size=64)
    finished(train_expert("observer", "convnet3_bn", data, config, True, runtime))


def recovery(data: LongTailedData, runtime: Runtime) -> None:
    torch.manual_seed(0)
    observer = build_model("convnet3_bn", CLASSES, SIDE, 3).eval()
    config, targets = RecoveryConfig(iterations=10, max_batch=100), StatisticsConfig()
    plain = dataclasses.replace(runtime, checkpoint=Runtime(runtime.device).checkpoint)
    images = data.train_images.view(CLASSES, PER_CLASS, 3, SIDE, SIDE)[:, :10].flatten(0, 1) / 255
    labels = torch.arange(CLASSES).repeat_interleave(10)
    start = InitialImages(images, labels, torch.full_like(labels, -1))
    observed = Observed(observer, class_statistics(observer, data, targets, plain))
    align_images(start, [observed], data.spec(flip=True), config, targets, runtime)


def students(data: LongTailedData, runtime: Runtime) -> None:
    config = EvaluationConfig(epochs=6)
    shown = ImageSet(data.train_images[:100], data.train_labels[:100])
    views = ViewSchedule(0, 100, SIDE, SIDE, True, config)
    model, name = build_model("convnet3", CLASSES, SIDE, 3), StudentName("student", 0)
    finished(train_student(model, shown, HardLabels(), views, data.spec(flip=True), name, runtime))


@pytest.mark.parametrize("stage", [experts, recovery, students])
def test_share_of_saving(stage: Callable[[LongTailedData, Runtime], None], tmp_path: Path) -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    timed = TimedCheckpoint(tmp_path / "stage.checkpoint")
    stage(noise(), Runtime(torch.device("cpu"), quiet=True, checkpoint=timed))
    share = timed.save_seconds / (CHECKPOINT_SECONDS + timed.save_seconds)
    size = timed.path.stat().st_size / 2**20
    print(
        f"\n{stage.__name__}: a step {1e3 * timed.step_seconds:.1f} ms, a save "
        f"{1e3 * timed.save_seconds:.1f} ms of {size:.1f} MiB: {share:.3%} of the time at one save "
        f"in {CHECKPOINT_SECONDS:.0f} s"
    )
    assert share <= LIMIT
