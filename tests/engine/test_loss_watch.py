"""Losses looked at late, where a device goes on meanwhile, tell and refuse the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltdd.config import (
    EvaluationConfig,
    ExpertsConfig,
    RecoveryConfig,
    StatisticsConfig,
)
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine import loss_watch
from ltdd.engine.cuda_graphs import RecordedSteps
from ltdd.engine.loss_watch import LossWatch
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.checkpoint import StageCheckpoint
from ltdd.engine.turns import finished
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.stages.evaluation import training
from ltdd.stages.experts import training as expert_training
from ltdd.stages.label_sources import HardLabels
from ltdd.stages.recovery import alignment
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics


@pytest.fixture(params=[False, True], ids=["at once", "later"])
def later(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether losses are looked at a group later, as on a GPU."""
    if request.param:
        monkeypatch.setattr(loss_watch, "DELAYED", {"cpu"})
    return request.param


def groups(watch: LossWatch, *values: list[float]) -> list[list[float]]:
    """Give a watch groups of losses; return what it has told after each."""
    told, counts, step = list[Tensor](), list[int](), 0
    for group in values:
        for value in group:
            watch.add(step, torch.tensor(value))
            step += 1
        watch.end_group(told.append)
        counts.append(len(told))
    watch.settle()
    assert [losses.tolist() for losses in told] == list(values)
    return [list(values[:count]) for count in counts]


def test_a_group_is_looked_at_when_the_next_one_ends(later: bool, runtime: Runtime) -> None:
    watch = LossWatch("stage", runtime)
    first, second = [1.0, 2.0], [3.0]
    wanted = [[], [first]] if later else [[first], [first, second]]
    assert groups(watch, first, second) == wanted
    assert watch.newest == 3
    assert watch.delayed == later


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_first_bad_step_is_named(later: bool, runtime: Runtime, bad: float) -> None:
    watch, told = LossWatch("stage", runtime), list[Tensor]()
    said = f"stage: expected a finite loss at step 1, got {bad}"
    with pytest.raises(UserError, match=said):  # noqa: PT012
        for group in range(3):
            for step in (2 * group, 2 * group + 1):
                watch.add(step, torch.tensor([bad if step in (1, 2, 5) else 1.0, 0.0]))
            watch.end_group(told.append)
            assert group == 0
            assert later
    assert not told
    alone = LossWatch("stage", runtime)
    alone.add(1, torch.tensor(bad))
    with pytest.raises(UserError, match=said):  # noqa: PT012
        alone.end_group()
        assert later
        alone.settle()


@pytest.mark.parametrize("ended", [False, True], ids=["in the group", "in the group before"])
def test_no_bad_step_is_saved(later: bool, runtime: Runtime, ended: bool) -> None:
    watch = LossWatch("stage", runtime)
    watch.add(0, torch.tensor(1.0))
    watch.add(1, torch.tensor(torch.nan))
    with pytest.raises(UserError, match="stage: expected a finite loss at step 1"):  # noqa: PT012
        if ended:
            watch.end_group()
        watch.state_dict()


def test_losses_survive_a_checkpoint(later: bool, runtime: Runtime) -> None:
    watch, told = LossWatch("stage", runtime), list[Tensor]()
    watch.add(0, torch.tensor(4.0))
    watch.end_group(told.append)
    watch.add(1, torch.tensor(1.0))
    state = watch.state_dict()
    assert len(told) == 1  # what has ended is told before it could be lost
    again = LossWatch("stage", runtime)
    again.load_state_dict(state)
    again.add(2, torch.tensor(5.0))
    again.end_group(told.append)
    again.settle()
    assert [losses.tolist() for losses in told] == [[4], [1, 5]]


# --- stages ---

Train = Callable[[Runtime], list[Tensor]]


def expert(data: LongTailedData, observer: nn.Module) -> Train:
    config = ExpertsConfig(epochs=8, batch_size=12)

    def train(runtime: Runtime) -> list[Tensor]:
        model = finished(
            expert_training.train_expert("observer", "convnet3", data, config, True, runtime)
        )
        return list(model.state_dict().values())

    return train


def student(data: LongTailedData, observer: nn.Module) -> Train:
    config = EvaluationConfig(epochs=12, batch_size=9)
    shown = ImageSet(data.train_images[:18], data.train_labels[:18])

    def train(runtime: Runtime) -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model("convnet3", 3, 8, 3)
        views, name = ViewSchedule(0, 18, 8, 8, True, config), training.StudentName("student", 0)
        given = (model, shown, HardLabels(), views, data.spec(flip=True), name, runtime)
        return list(finished(training.train_student(*given)).state_dict().values())

    return train


def images(data: LongTailedData, observer: nn.Module) -> Train:
    config, targets = RecoveryConfig(iterations=25, max_batch=6), StatisticsConfig()

    def train(runtime: Runtime) -> list[Tensor]:
        statistics = class_statistics(observer, data, targets, runtime)
        noise = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        own = torch.arange(3).repeat_interleave(4)
        start = InitialImages(noise, own, torch.full_like(own, -1))
        observed = [alignment.Observed(observer, statistics)]
        spec = data.spec(flip=True)
        return [alignment.align_images(start, observed, spec, config, targets, runtime)]

    return train


STAGES = {
    "expert": (expert, expert_training, "experts: observer", 1),
    "student": (student, training, "evaluation: student", 0),
    "images": (images, alignment, "recovery", 0),
}
EVERY_STAGE = pytest.mark.parametrize("name", STAGES)


@EVERY_STAGE
def test_stages_tell_the_same(
    name: str,
    data: LongTailedData,
    observer: nn.Module,
    runtime: Runtime,
    log: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = STAGES[name][0](data, observer)
    runtime = dataclasses.replace(runtime, log=log)
    at_once, told = train(runtime), list(log.events)
    log.events.clear()
    monkeypatch.setattr(loss_watch, "DELAYED", {"cpu"})
    later = train(runtime)
    assert len(told) > 1
    assert log.events == told
    assert all(torch.equal(one, other) for one, other in zip(at_once, later, strict=True))


@EVERY_STAGE
@pytest.mark.parametrize("bad", [0, 3, 7])
def test_stages_name_the_step_that_went_wrong(
    name: str,
    bad: int,
    later: bool,
    data: LongTailedData,
    observer: nn.Module,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, stage, said, first = STAGES[name]
    taken = 0

    class Spoilt(RecordedSteps):
        def __call__(self, *inputs: Any, variant: Any = None) -> Tensor:
            nonlocal taken
            loss = super().__call__(*inputs, variant=variant)
            taken += 1
            return loss + torch.nan if taken > bad else loss

    monkeypatch.setattr(stage, "RecordedSteps", Spoilt)
    with pytest.raises(UserError, match=f"{said}: expected a finite loss at step {bad + first},"):
        make(data, observer)(runtime)


@EVERY_STAGE
@pytest.mark.parametrize("last", [1, 5, 12])
def test_stages_go_on_after_any_step(
    name: str,
    last: int,
    later: bool,
    data: LongTailedData,
    observer: nn.Module,
    runtime: Runtime,
    log: Any,
    tmp_path: Path,
) -> None:
    class Killed(BaseException):
        pass

    class KilledLater(StageCheckpoint):
        left = last

        def step(self, **state: Any) -> None:
            super().step(**state)
            self.left -= 1
            if self.left == 0:
                raise Killed

    train = STAGES[name][0](data, observer)
    runtime = dataclasses.replace(runtime, log=log)
    whole, told = train(runtime), list(log.events)
    log.events.clear()
    path = tmp_path / "stage.checkpoint"
    with pytest.raises(Killed):
        train(dataclasses.replace(runtime, checkpoint=KilledLater(path, "ab" * 32, seconds=0)))
    again = train(
        dataclasses.replace(runtime, checkpoint=StageCheckpoint(path, "ab" * 32, seconds=0))
    )
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))
    assert log.events == told


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_losses_of_a_gpu_are_looked_at_while_it_goes_on() -> None:
    runtime = Runtime(torch.device("cuda"), quiet=True)
    watch, told = LossWatch("stage", runtime), list[Tensor]()
    values = torch.arange(6.0, device="cuda")
    for step in range(0, 6, 2):
        torch.cuda._sleep(10_000_000)  # what computes the losses
        watch.add(step, values[step] * 2)
        watch.add(step + 1, values[step + 1] * 2)
        watch.end_group(told.append)
    watch.settle()
    assert [losses.tolist() for losses in told] == [[0, 2], [4, 6], [8, 10]]
