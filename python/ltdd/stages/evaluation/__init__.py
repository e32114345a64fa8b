"""Stage 6: train students on the distilled set and measure them on the balanced test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltdd.config import deciding_settings
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Call, Stored
from ltdd.engine.turns import Turns
from ltdd.stages.evaluation.training import StudentName, train_student
from ltdd.stages.label_sources import LabelSource
from ltdd.stages.run import Run


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
    seeds = run.config.evaluation.seeds
    calls = [_student(run, shown, number) for shown in sets for number in range(seeds)]
    made = iter(run.stages.run_all(calls))
    return {
        shown.who: torch.stack([next(made).value["predictions"] for _ in range(seeds)])
        for shown in sets
    }


def _student(run: Run, shown: TrainingSet, number: int) -> Call:
    config = run.config.evaluation

    def compute(runtime: Runtime) -> Turns[dict[str, Tensor]]:
        with runtime.global_stream("evaluation", shown.who, number):
            model = run.build(config.student)
        data, source = shown.images.value, shown.labels.value
        name = StudentName(shown.who, number)
        training = train_student(model, data, source, shown.schedule, run.spec, name, runtime)
        trained = yield from training
        return {"predictions": run.predict(trained)}

    settings = deciding_settings(shown.schedule.config) | {"who": shown.who, "number": number}
    inputs: list[Stored[Any]] = [shown.images, shown.labels]
    return Call("evaluation", settings, inputs, compute)
