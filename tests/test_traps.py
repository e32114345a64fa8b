"""Mistakes that published code of this field has made, and the test that keeps each away.

average that starts from zero         stages/test_evaluation: the_average_follows_its_formula
division by the full set's size       stages/test_statistics: equal_float64_over_all_elements
within-image variance as the target   stages/test_statistics: only_the_mixture..., worked_toy,
                                      the_recurrence_as_printed_loses_the_spread
gradients through the teacher         here: a_teacher_asked_online_gets_no_gradient
expert of an earlier epoch            here: an_expert_is_the_one_of_the_last_step
choice by the test set                here: test_images_decide_nothing
other normalization in another stage  stages/test_initialization: the_teacher_sees_its_own...,
                                      stages/test_experts: own_and_resampled_views...
one augmentation frozen for all       stages/test_experts: own_and_resampled_views_are_two_draws
another tail subset in each stage     here: stages_do_not_draw_data; stages/test_statistics:
                                      only_training_images_count
resnet50 that is a ResNeXt            models/test_models: parameter_counts
CutMix label without the clipping     stages/test_augment: kept_is_the_true_uncovered_area
warm-up after the first full epoch    stages/test_experts: warm_up_rises_to_the_peak
labels of pixels before rounding      test_given_experts: labels_are_those_of_the_stored_pixels
one crop or flip for a whole batch    stages/test_augment: random_crops...differ_between_images
partial batches, classes below ipc    stages/test_recovery: batches_are_stratified..., stages/
                                      test_initialization: crops_are_drawn_again...
pretrained weights nobody asked for   here: no_network_brings_weights_along
options that are set and never read   here: every_setting_is_read
images drawn with replacement         data/test_long_tail
cosine stopped at the wrong side      stages/test_losses: consistency_stops_at_the_projection
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltdd.config import STAGES, EvaluationConfig, InitializationConfig, PlainExperts
from ltdd.config.settings import fields_of
from ltdd.data.augmentation.student_views import ViewSchedule, render
from ltdd.data.long_tailed_data import LongTailedData, load_data
from ltdd.engine.runtime import Runtime
from ltdd.engine.turns import finished
from ltdd.models import ARCHITECTURES, build_model
from ltdd.stages.experts.training import train_expert
from ltdd.stages.initialization import initial_images
from ltdd.stages.label_sources import OnlineLabels

LTDD = Path(__file__).resolve().parents[1] / "python/ltdd"
FAST = PlainExperts(epochs=2, batch_size=64, learning_rate=0.05)


@pytest.fixture(scope="module")
def data() -> LongTailedData:
    return load_data("digits", imbalance_factor=50.0)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), quiet=True)


def test_a_teacher_asked_online_gets_no_gradient(data: LongTailedData, runtime: Runtime) -> None:
    teacher = build_model("convnet3", 10, 8, 1)
    assert all(p.requires_grad for p in teacher.parameters())
    schedule = ViewSchedule(0, 4, 8, 8, False, EvaluationConfig(batch_size=4))
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    view = next(schedule.epoch(0))
    batch = render(view, data.train_images[view.indices], mean, std)
    logits = OnlineLabels(teacher, runtime).logits(view, batch.requires_grad_(), torch.empty(0))
    assert not logits.requires_grad


def test_an_expert_is_the_one_of_the_last_step(
    data: LongTailedData, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    last: list[Tensor] = []
    original = torch.optim.SGD.step

    def watch(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        last[:] = [p.detach().clone() for p in self.param_groups[0]["params"]]
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", watch)
    model = finished(train_expert("observer", "convnet3_bn", data, FAST, False, runtime))
    for ours, theirs in zip(model.parameters(), last, strict=False):
        assert torch.equal(ours, theirs)
    steps = len(data.train_labels) // 64
    assert int(model.body[0][1].num_batches_tracked) == 2 * steps


def test_test_images_decide_nothing(data: LongTailedData, runtime: Runtime) -> None:
    other = dataclasses.replace(
        data, test_images=255 - data.test_images, test_labels=data.test_labels.flip(0)
    )
    made = []
    for source in (data, other):
        model = finished(train_expert("observer", "convnet3_bn", source, FAST, False, runtime))
        start = initial_images(model, source, 2, InitializationConfig(), runtime)
        made.append([*model.state_dict().values(), start.images])
    assert all(map(torch.equal, *made))


def test_stages_do_not_draw_data() -> None:
    drawing = {"load_data", "long_tailed_indices", "from_tensors", "from_datasets"}
    for path in (LTDD / "stages").glob("*.py"):
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & drawing, path


@pytest.mark.parametrize("name", [*ARCHITECTURES, "torchvision:mobilenet_v3_small"])
def test_no_network_brings_weights_along(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail(f"{name} asked for trained weights")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    kernels = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = build_model(name, 10, 32, 3)
        kernels.append(next(m.weight for m in net.modules() if isinstance(m, nn.Conv2d)))
    assert not torch.equal(*kernels)


def test_every_setting_is_read() -> None:
    settings_only = {"config.py", "presets.py", "rldd.py", "options.py"}
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in LTDD.rglob("*.py")
        if path.name not in settings_only
    )
    for form in itertools.chain(*STAGES.values()):
        for spec in fields_of(form):
            read = spec.name == form.FORM or re.search(rf"\.{spec.name}\b", source)
            assert read, f"{form.STAGE}.{spec.name} is never read"
