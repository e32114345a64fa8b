"""Choose what students are compared with, and what each kind of them learns from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ltdd.config import Labels, PlainExperts, with_form
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.engine.stage_runner import Stored
from ltdd.stages.evaluation import TrainingSet
from ltdd.stages.experts import Experts, train_network
from ltdd.stages.initialization.random_real import random_real_images
from ltdd.stages.relabeling import SoftLabels
from ltdd.stages.run import Run

FULL = "full_long_tailed"
"""The baseline that is one network trained on all long-tailed images."""


@dataclass(frozen=True)
class Comparison:
    """Kind of images, labels and views that students learn from.

    Attributes:
        real: random real images instead of the distilled ones.
        every: all long-tailed images instead of the distilled ones, in as many steps.
        hard: class labels instead of the kind of labels that was asked for.
        augmented: views of the schedule instead of the bare images.
    """

    real: bool = False
    every: bool = False
    hard: bool = False
    augmented: bool = True

    def kind(self, asked: Labels) -> Labels:
        """Return the kind of labels, given the one that was asked for."""
        if self.hard or asked == "hard":
            return "hard"
        return asked if self.augmented else "static"  # the labels of bare images, whenever given


COMPARISONS: Mapping[str, Comparison] = {
    "student": Comparison(),
    "random_real": Comparison(real=True, hard=True),
    "random_real_soft": Comparison(real=True),
    "all_real_soft": Comparison(every=True),
    "distilled_hard": Comparison(hard=True),
    "distilled_bare": Comparison(augmented=False),
    "random_real_bare": Comparison(real=True, augmented=False),
}


def training_sets(run: Run, images: Stored[ImageSet], labels: SoftLabels) -> list[TrainingSet]:
    """Return what the students and the students of every baseline learn from.

    Args:
        run: its evaluation names the baselines, its relabeling the kind of labels.
        images: the distilled ones.
        labels: of the teacher.
    """
    names = ["student", *(name for name in run.config.evaluation.baselines if name != FULL)]
    real = _random_real(run) if any(COMPARISONS[who].real for who in names) else images
    distilled = labels.shown
    sets = []
    for who in names:
        compared = COMPARISONS[who]
        shown = real if compared.real else _all_real(run) if compared.every else distilled
        schedule = run.schedule if compared.augmented else _bare(run.schedule)
        if compared.every:
            schedule = _of_as_many_steps(schedule, len(shown.value.labels))
        elif compared.real:  # one for every distilled image, and whole
            schedule = dataclasses.replace(schedule, num_images=len(shown.value.labels))
        kind = compared.kind(run.config.relabeling.labels)
        sets.append(TrainingSet(who, shown, labels.source(kind, shown, schedule), schedule))
    return sets


def evaluate_references(run: Run, experts: Experts) -> dict[str, Tensor]:
    """Return the test predictions (1, N) of the experts and of a network trained on all images."""
    predictions = {
        "teacher": run.predict(experts.teacher.value)[None],
        "observer": run.predict(experts.observers[0].value)[None],
    }
    if FULL in run.config.evaluation.baselines:
        student, settings = run.config.evaluation.student, _plain_training(run)
        network = train_network(run, FULL, student, settings, stage="evaluation")
        predictions[FULL] = run.predict(network.value)[None]
    return predictions


def _random_real(run: Run) -> Stored[ImageSet]:
    """Return as many real images as are distilled, drawn at random within each class."""
    images = random_real_images(run.data, run.config.ipc, run.runtime)
    return Stored(images, run.stages.key("random_real", {"ipc": run.config.ipc}))


def _all_real(run: Run) -> Stored[ImageSet]:
    """Return the long-tailed training images."""
    images = ImageSet(run.data.train_images, run.data.train_labels)
    return Stored(images, run.stages.key("all_real", {}))


def _of_as_many_steps(schedule: ViewSchedule, count: int) -> ViewSchedule:
    """Return views of another number of images in as many steps, or a part of an epoch more."""
    steps = schedule.config.epochs * schedule.steps
    longer = dataclasses.replace(schedule, num_images=count)
    config = dataclasses.replace(schedule.config, epochs=math.ceil(steps / longer.steps))
    return dataclasses.replace(longer, config=config)


def _plain_training(run: Run) -> PlainExperts:
    """Return the experts' training without mixing and debiasing.

    Images keep their size: the students' architectures take no other. It starts from fresh
    weights, as students do.
    """
    experts, epochs = run.config.experts, run.config.evaluation.full_epochs
    plain: PlainExperts = with_form(
        experts.of_role("baseline"),
        "ce",
        epochs=epochs or experts.epochs,
        progressive_resizing=False,
        init_weights=None,
    )
    return plain


def _bare(schedule: ViewSchedule) -> ViewSchedule:
    """Return views that are the images themselves, in batches of changing order."""
    plain = dataclasses.replace(
        schedule.config,
        augmentation="crops",
        crop_min_scale=1.0,
        mixup=0.0,
        cutmix=False,
        randaugment=False,
    )
    return dataclasses.replace(schedule, flip=False, config=plain)
