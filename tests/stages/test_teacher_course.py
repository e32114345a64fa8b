"""Labels of what a teacher was on its way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_run import FINISHED, QUIET, TINY
from torch import Tensor, nn

from ltdd import pipeline
from ltdd.config import EvaluationConfig, RelabelingConfig
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import Normalization
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.stage_store import read_stage
from ltdd.engine.turns import finished
from ltdd.errors import UserError
from ltdd.stages.experts.course import Course, weights_after
from ltdd.stages.experts.training import train_expert
from ltdd.stages.relabeling import label_views


class Saying(nn.Module):
    """A teacher that says one number, whatever it sees."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3), self.number)


@pytest.mark.parametrize("epochs", [1, 2, 7, 41])
@pytest.mark.parametrize("randaugment", [False, True])
def test_epochs_are_divided_among_the_teachers(
    epochs: int, randaugment: bool, runtime: Runtime
) -> None:
    config = EvaluationConfig(epochs=epochs, batch_size=4, randaugment=randaugment)
    plan = ViewSchedule(0, 6, 8, 8, True, config)
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    normalization = Normalization((0.5,) * 3, (0.5,) * 3)
    teachers = [Saying(number) for number in (1.0, 2.0, 3.0)]
    table = label_views(images, teachers, plan, normalization, runtime)
    wanted = [1 + 3 * epoch // epochs for epoch in range(epochs)]
    assert table[:, 0, 0].tolist() == wanted
    assert bool((table == table[:, :1, :1]).all())


def test_the_weights_are_those_of_a_training_that_stops_there(
    data: LongTailedData, runtime: Runtime
) -> None:
    config = dataclasses.replace(TINY.experts, epochs=4, batch_size=8, schedule="cosine")
    steps = len(data.train_labels) // 8
    kept = Course([0.25, 0.5])
    model = finished(train_expert("t", "convnet1_bn", data, config, False, runtime, kept=kept))
    tensors = {**model.state_dict(), **kept.tensors()}
    assert weights_after(tensors, 1).keys() == model.state_dict().keys()
    seen: dict[int, dict[str, Tensor]] = {}

    class Watch(Course):
        def look(self, step: int, total: int, network: nn.Module) -> None:
            if step in (steps, 2 * steps):
                seen[step] = {k: v.clone() for k, v in network.state_dict().items()}

    finished(train_expert("t", "convnet1_bn", data, config, False, runtime, kept=Watch([])))
    for share, step in ((0.25, steps), (0.5, 2 * steps)):
        weights = weights_after(tensors, share)
        floats = [key for key, value in weights.items() if value.is_floating_point()]
        assert all(torch.equal(weights[key], seen[step][key]) for key in floats)
    assert not torch.equal(
        weights_after(tensors, 0.5)["classifier.weight"], tensors["classifier.weight"]
    )


def views_of(folder: Path) -> Tensor:
    """Return the stored logits of every view."""
    tables = [
        read_stage(path) for path in sorted((folder / "stages").glob("relabeling-*.safetensors"))
    ]
    return next(t.tensors["logits"] for t in tables if t.tensors["logits"].dim() == 3)


def test_a_run_takes_its_labels_from_the_course(tmp_path: Path) -> None:
    """Half of the epochs are labelled by the teacher of half of its training."""
    base = dataclasses.replace(FINISHED, relabeling=RelabelingConfig())

    def run(name: str, *course: float) -> dict[str, Any]:
        experts = dataclasses.replace(base.experts, epochs=2, teacher_course=course)
        config = dataclasses.replace(base, experts=experts)
        return pipeline.distill(config, tmp_path / name, options=QUIET)

    whole, half, both = run("whole", 1.0), run("half", 0.5), run("both", 0.5, 1.0)
    assert whole["teacher"] == half["teacher"] == both["teacher"]
    tables = {name: views_of(tmp_path / name) for name in ("whole", "half", "both")}
    middle = len(tables["both"]) // 2
    assert torch.equal(tables["both"][:middle], tables["half"][:middle])
    assert torch.equal(tables["both"][middle:], tables["whole"][middle:])
    assert not torch.equal(tables["half"], tables["whole"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher_course": (0.5, 0.2)}, "one share or several ascending ones, got .0.5, 0.2."),
        ({"teacher_course": ()}, "one share or several ascending ones"),
        ({"teacher_course": (0.0, 1.0)}, "teacher_course"),
        ({"teacher_course": (0.5,), "averaging": "ema"}, "averaging none .* got 'ema'"),
        ({"teacher_course": (0.5,), "observer_weights": "w.pt"}, "whose weights are given"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataclasses.replace(TINY.experts, **settings)


def test_only_stored_labels_have_epochs() -> None:
    experts = dataclasses.replace(TINY.experts, teacher_course=(0.5, 1.0))
    with pytest.raises(UserError, match=r"labels fkd with .*teacher_course .* got 'online'"):
        dataclasses.replace(TINY, experts=experts, relabeling=RelabelingConfig(labels="online"))
