"""Students: schedules, loss, averaged parameters, learning, reproducibility, bad numbers."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltdd.config import EvaluationConfig
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.engine.turns import finished
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.inference import predict_logits
from ltdd.models.muon import Muon
from ltdd.stages.evaluation import training
from ltdd.stages.evaluation.loss import student_loss
from ltdd.stages.evaluation.optimizer import learning_rate_factor
from ltdd.stages.evaluation.training import StudentName, train_student
from ltdd.stages.label_sources import HardLabels, StaticLabels
from ltdd.stages.losses import matching_loss, soft_cross_entropy, standardize_rows


def factors(schedule: str, epochs: int = 1000) -> list[float]:
    config = EvaluationConfig(schedule=schedule, epochs=epochs)
    return [learning_rate_factor(epoch, config) for epoch in range(epochs)]


def test_step_schedule_halves_at_its_milestones() -> None:
    values = factors("step")
    assert [i for i in range(1, 1000) if values[i] != values[i - 1]] == [800, 900, 950]
    assert [values[i] for i in (0, 800, 900, 950)] == [1, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("smoothed_cosine", 0.5)])
def test_cosine_schedules_fall_smoothly(schedule: str, last: float) -> None:
    values = factors(schedule)
    assert values[0] == 1
    assert values[-1] == pytest.approx(last, abs=2e-3)
    assert all(a > b for a, b in itertools.pairwise(values))
    zeta = 2 if schedule == "smoothed_cosine" else 1
    assert values[250] == pytest.approx((1 + math.cos(math.pi * 0.25 / zeta)) / 2)


def test_cos2_jumps_at_five_sixths_and_ends_at_zero() -> None:
    values, smooth = factors("cos2", 1200), factors("smoothed_cosine", 1200)
    assert values[:1000] == smooth[:1000]
    level = (1 + math.cos(5 * math.pi / 12)) / 2
    assert values[999] == pytest.approx(level, abs=1e-3)
    assert values[1000] == pytest.approx(level / 6)
    steps = [a - b for a, b in itertools.pairwise(values[1000:])]
    assert min(steps) == pytest.approx(max(steps))
    assert values[-1] == pytest.approx(level / 1200)


def test_halfway_drops_once_to_a_tenth() -> None:
    values = factors("halfway")
    assert [i for i in range(1, 1000) if values[i] != values[i - 1]] == [501]
    assert (values[0], values[-1]) == (1.0, 0.1)


def test_idc_drops_twice_to_a_fifth() -> None:
    values = factors("idc")
    assert [i for i in range(1, 1000) if values[i] != values[i - 1]] == [666, 833]
    assert [values[i] for i in (0, 666, 833)] == pytest.approx([1, 0.2, 0.04])


def test_student_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, soft = torch.randn(2, 4, 5, generator=generator)
    hard = torch.eye(5)[:4]
    config = EvaluationConfig(logit_weight=0.7, hard_weight=0.025)
    expected = 0.7 * ((logits - soft) ** 2).mean() + 0.025 * soft_cross_entropy(logits, hard)
    torch.testing.assert_close(student_loss(logits, soft, hard, config), expected)
    normalised = dataclasses.replace(config, logit_std_norm=True)
    student, teacher = standardize_rows(logits), standardize_rows(soft)
    expected = 0.7 * ((student - teacher) ** 2).mean() + 0.025 * soft_cross_entropy(student, hard)
    torch.testing.assert_close(student_loss(logits, soft, hard, normalised), expected)
    divergence = EvaluationConfig(loss="kl", temperature=4.0, logit_weight=0.7, hard_weight=0.0)
    expected = 0.7 * matching_loss(logits, soft, "kl", 4.0)
    torch.testing.assert_close(student_loss(logits.double(), soft, hard, divergence), expected)
    # Class labels alone: plain cross-entropy with full weight.
    torch.testing.assert_close(
        student_loss(logits, None, hard, config), soft_cross_entropy(logits, hard)
    )


@pytest.fixture
def problem(balanced: LongTailedData, runtime: Runtime) -> dict[str, Any]:
    """Arguments of `train_student` on 18 separable images, labels as logits."""
    labels = balanced.train_labels
    config = EvaluationConfig(
        student="convnet3",
        epochs=31,
        batch_size=6,
        learning_rate=3e-3,
        crop_min_scale=0.5,
        ema_decay=0.9,
        seeds=1,
    )
    return {
        "shown": ImageSet(balanced.train_images, labels),
        "source": StaticLabels(5 * torch.eye(3)[labels], torch.device("cpu")),
        "schedule": ViewSchedule(0, 18, 8, 8, False, config),
        "spec": balanced.spec(flip=False),
        "name": StudentName("student", 0),
        "runtime": runtime,
    }


def changed(problem: dict[str, Any], **settings: Any) -> dict[str, Any]:
    plan: ViewSchedule = problem["schedule"]
    return problem | {
        "schedule": dataclasses.replace(plan, config=dataclasses.replace(plan.config, **settings))
    }


def untrained(problem: dict[str, Any], seed: int = 0) -> nn.Module:
    """A new student of the architecture that the problem names."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(problem["schedule"].config.student, 3, 8, 3)


def trained(problem: dict[str, Any], **other: Any) -> nn.Module:
    return finished(train_student(**({"model": untrained(problem)} | problem | other)))


def accuracy(model: nn.Module, data: LongTailedData, runtime: Runtime) -> float:
    predictions = predict_logits(model, data.test_images, data.normalization, runtime).argmax(1)
    return float((predictions == data.test_labels).float().mean())


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("static", "adamw"), ("hard", "adamw"), ("static", "muon")]
)
def test_a_student_learns(
    problem: dict[str, Any],
    balanced: LongTailedData,
    runtime: Runtime,
    log: Any,
    kind: str,
    optimizer: str,
) -> None:
    source = {"source": HardLabels()} if kind == "hard" else {}
    model = trained(changed(problem, optimizer=optimizer), **source)
    assert not model.training
    assert accuracy(model, balanced, runtime) > 0.9
    events = log.of("student")
    assert [event["epoch"] for event in events] == [0, 10, 20, 30]
    assert all(event["who"] == "student" and event["seed"] == 0 for event in events)
    assert events[-1]["loss"] < 0.85 * events[0]["loss"]


def test_initial_parameters_decide_the_student(problem: dict[str, Any]) -> None:
    short = changed(problem, epochs=1)

    def weights(seed: int, **other: Any) -> Tensor:
        return trained(short, model=untrained(short, seed), **other).classifier.weight

    first = weights(0)
    assert torch.equal(weights(0), first)
    assert torch.equal(weights(0, name=StudentName("random_real", 1)), first)  # names only
    assert not torch.equal(weights(1), first)


def test_the_last_iterate_without_averaging(problem: dict[str, Any]) -> None:
    live = untrained(problem)
    model = trained(changed(problem, epochs=2, ema_decay=0.0), model=live)
    for ours, stepped in zip(model.parameters(), live.parameters(), strict=True):
        assert torch.equal(ours, stepped)


def test_averaged_parameters_lag_and_buffers_are_live(problem: dict[str, Any]) -> None:
    given = changed(problem, epochs=1, student="convnet3_bn")
    live = untrained(given)
    model = trained(given, model=live)
    live_state = live.state_dict()
    assert int(live_state["body.0.1.num_batches_tracked"]) == 3
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, live_state[name]), name
    for name, parameter in model.named_parameters():
        # Biases before a batch norm have no gradient and stand still.
        if not name.endswith("0.bias"):
            assert not torch.equal(parameter, live_state[name]), name


def test_the_average_follows_its_formula(
    problem: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    iterates: list[Tensor] = []
    update = training.MovingAverage.update

    def spy(self: training.MovingAverage) -> None:
        shape = self.module.classifier.weight.shape
        weight = next(new for new in self._new if new.shape == shape)
        iterates.append(weight.detach().clone())
        update(self)

    monkeypatch.setattr(training.MovingAverage, "update", spy)
    model = trained(changed(problem, epochs=2))
    expected = iterates[0]
    for iterate in iterates[1:]:
        expected = 0.9 * expected + 0.1 * iterate
    assert len(iterates) == 6
    torch.testing.assert_close(model.classifier.weight, expected)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """Return the list to which every student's optimizer is added."""
    optimizers: list[torch.optim.Optimizer] = []
    original = training.build_optimizer

    def watch(*given: Any) -> torch.optim.Optimizer:
        optimizers.append(original(*given))
        return optimizers[-1]

    monkeypatch.setattr(training, "build_optimizer", watch)
    return optimizers


def test_sgd_takes_its_step_and_keeps_its_momentum(
    problem: dict[str, Any], made: list[torch.optim.Optimizer]
) -> None:
    trained(changed(problem, epochs=1, optimizer="sgd", momentum=0.5, learning_rate=0.01))
    (optimizer,) = made
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_muon_takes_the_settings_of_the_recipe(
    problem: dict[str, Any], made: list[torch.optim.Optimizer]
) -> None:
    trained(changed(problem, epochs=1, optimizer="muon", learning_rate=0.003))
    (optimizer,) = made
    assert isinstance(optimizer, Muon)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.003, 0.003]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_weight_decay_spares_vectors(problem: dict[str, Any]) -> None:
    # With a learning rate of 1e-3 and this decay a decayed tensor shrinks to 0.6 a step.
    free, decayed = untrained(problem), untrained(problem)
    for model, decay in ((free, 0.0), (decayed, 400.0)):
        given = changed(problem, epochs=1, learning_rate=1e-3, weight_decay=decay)
        trained(given, model=model)
    for (name, ours), theirs in zip(decayed.named_parameters(), free.parameters(), strict=True):
        ratio = float(ours.detach().abs().mean() / theirs.detach().abs().mean())
        if ours.ndim > 1:
            assert ratio < 0.4, name
        else:
            assert ratio > 0.8, name


def test_a_set_smaller_than_a_batch(problem: dict[str, Any]) -> None:
    model = trained(changed(problem, batch_size=100, epochs=1))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_numbers_that_are_not_finite_stop_the_stage(problem: dict[str, Any]) -> None:
    bad = StaticLabels(torch.full((18, 3), float("inf")), torch.device("cpu"))
    with pytest.raises(UserError, match="evaluation: student: expected a finite loss at step 0"):
        trained(problem, source=bad)
