"""The recoverer of trajectories: windows, threshold, restarts, first labels, both phases."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.stripes import Recorder, make_data
from torch import Tensor

from ltdd.config import TrajectoryRecovery
from ltdd.data.augmentation.dsa import DsaDraw
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.flat_network import FlatNetwork
from ltdd.stages.initialization.correct_real import walk
from ltdd.stages.initialization.random_real import random_real_images
from ltdd.stages.recovery.learned_set import LearnedSet, start_logits
from ltdd.stages.recovery.trajectory import (
    class_weights,
    match_trajectories,
    student_loss,
    window,
)
from ltdd.stages.recovery.unrolled import Synthetic
from ltdd.stages.run import InitialImages
from ltdd.stages.trajectories import Trajectories, Trajectory
from ltdd.stages.trajectories.training import Course, train_expert

CONFIG = TrajectoryRecovery(
    network="convnet1", trajectories=2, trajectory_epochs=6, trajectory_batch_size=12,
    trajectory_learning_rate=0.01, start_max=2, expert_epochs=2, iterations=2, steps=4,
    student_learning_rate=0.01, image_learning_rate=30.0, learned_labels=True,
    label_learning_rate=1.0, rate_learning_rate=1e-5, synthetic_batch=4,
)  # fmt: skip
DECOUPLED = dataclasses.replace(CONFIG, phases="decoupled", classifier_steps=3, classifier_epochs=3)
SMALL = make_data((5, 2, 1))  # classes of five, two and one image


def paths(data: LongTailedData, config: TrajectoryRecovery, runtime: Runtime) -> Trajectories:
    found = []
    for number in range(config.trajectories):
        with runtime.global_stream("test", number):
            network = FlatNetwork(build_model("convnet1", data.num_classes, 8, 3), "convnet1")
        start, nothing = network.vector(), torch.empty(0)
        first = Course("expert", number, start, nothing, 6, config.last_read, 0.0)
        tensors = list(train_expert(network, first, data, config, True, runtime).values())
        if config.phases == "decoupled":
            frozen, start = tensors[1].tensor_split([network.classifier])
            second = Course("classifier", number, start, frozen, 3, 2, 0.0, True)
            tensors += train_expert(network, second, data, config, True, runtime).values()
        found.append(Stored(Trajectory(*tensors), str(number)))
    return Trajectories(network, found)


def first_images(data: LongTailedData, ipc: int, runtime: Runtime) -> InitialImages:
    images, labels = random_real_images(data, ipc, runtime)
    return InitialImages(images / 255, labels, torch.zeros_like(labels))


def recovered(
    data: LongTailedData, config: TrajectoryRecovery, runtime: Runtime
) -> dict[str, Tensor]:
    start, experts = first_images(data, 2, runtime), paths(data, config, runtime)
    spec = data.spec(flip=True)
    return match_trajectories(start, experts, data.counts, spec, config, runtime)


# --- the schedule ---


def test_the_window_grows_and_stays_within_its_bounds() -> None:
    config = TrajectoryRecovery(
        start_min=3, start_max=20, curriculum_from=10, curriculum_iterations=100
    )
    assert window(config, 0) == range(3, 10)
    assert window(config, 55) == range(3, 15)  # 10 + int(5.5)
    assert window(config, 99) == range(3, 19)
    assert window(config, 100) == window(config, 10_000) == range(3, 20)
    whole = dataclasses.replace(config, curriculum_from=None)
    assert window(whole, 0) == window(whole, 500) == range(3, 20)


# --- the set that is learned ---


def small_set(config: TrajectoryRecovery = CONFIG) -> LearnedSet:
    start = Synthetic(torch.ones(2, 1, 2, 2), torch.zeros(2, 3), torch.tensor(0.1))
    return LearnedSet(start, config)


def gradients(images: float = 1e-3, labels: float = 1e-2, rate: float = 10.0) -> Synthetic:
    parts = torch.full((2, 1, 2, 2), images), torch.full((2, 3), labels), torch.tensor(rate)
    return Synthetic(*parts)


def test_each_part_moves_with_its_own_rate_and_momentum() -> None:
    learned = small_set()
    for _ in range(2):
        assert learned.update(torch.tensor(0.5), gradients())
    images, labels, rate = learned.shown
    assert torch.allclose(images, torch.full((), 1 - 30 * 1e-3 * (1 + 1.5)))
    assert torch.allclose(labels, torch.full((), -1 * 1e-2 * (1 + 1.9)))
    assert float(rate) == pytest.approx(0.1 - 1e-5 * 10 * (1 + 1.5))


def test_a_loss_above_the_threshold_changes_nothing_at_all() -> None:
    learned = small_set(dataclasses.replace(CONFIG, threshold=1.0))
    before = Synthetic(*(part.clone() for part in learned.shown))
    assert not learned.update(torch.tensor(1.01), gradients())
    assert all(map(torch.equal, learned.shown, before))
    assert learned.update(torch.tensor(1.0), gradients())
    moved = [not torch.equal(*pair) for pair in zip(learned.shown, before, strict=True)]
    assert moved == [True, True, True]


def test_class_labels_stay(runtime: Runtime) -> None:
    learned = small_set(dataclasses.replace(CONFIG, learned_labels=False))
    learned.update(torch.tensor(0.5), gradients())
    assert torch.equal(learned.shown.labels, torch.zeros(2, 3))


@pytest.mark.parametrize(("rate", "end"), [(1e7, 1e-5), (-1e7, 1.0)])
def test_the_rate_stays_in_its_range(rate: float, end: float) -> None:
    learned = small_set()
    learned.update(torch.tensor(0.5), gradients(rate=rate))
    assert float(learned.shown.rate) == pytest.approx(end)


@pytest.mark.parametrize("what", ["loss", "gradient", "step"])
def test_what_is_no_number_is_taken_back(what: str) -> None:
    learned = small_set()
    learned.update(torch.tensor(0.5), gradients())
    learned.update(torch.tensor(0.4), gradients())
    good = Synthetic(*(part.clone() for part in learned.shown))
    loss, by = torch.tensor(0.3), gradients()
    if what == "loss":  # of the set after the last step, which was therefore a bad one
        loss, good = torch.tensor(torch.nan), learned._good
    elif what == "gradient":
        by, good = gradients(images=torch.inf), learned._good
    else:
        by = gradients(images=3e38)
    assert not learned.update(loss, by)
    assert learned.restarts == 1
    assert all(map(torch.equal, learned.shown, good))
    before = learned.shown.images.clone()
    assert learned.update(torch.tensor(0.5), gradients())
    assert learned.restarts == 0
    first_step = before - learned.shown.images
    assert torch.allclose(first_step, torch.tensor(0.03), atol=1e-6), "momentum was not forgotten"


# --- labels ---


def test_first_labels_are_those_of_the_experts_that_are_right() -> None:
    answers = torch.tensor(
        [
            [[4.0, 0.0, 1.0], [0.0, 3.0, 0.0], [5.0, 0.0, 0.0]],
            [[2.0, 0.0, 0.0], [7.0, 1.0, 0.0], [0.0, 6.0, 1.0]],
        ]
    )
    labels = torch.tensor([0, 1, 2])

    def network(theta: Tensor, images: Tensor) -> Tensor:
        return answers[int(theta)]

    got = start_logits(network, map(torch.tensor, (0, 1)), torch.zeros(3, 1, 2, 2), labels)  # type: ignore[arg-type]
    wanted = torch.tensor([[3.0, 0.0, 0.5], [0.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    assert torch.equal(got, wanted)


def test_the_class_weights_are_the_classes_shares() -> None:
    weights = class_weights((24, 8, 2))
    assert float(weights.sum()) == pytest.approx(1.0)
    assert torch.allclose(weights, torch.tensor([24 / 34, 8 / 34, 2 / 34]))


def test_class_weights_stand_inside_the_sum_over_classes() -> None:
    network = FlatNetwork(build_model("convnet1", 3, 8, 3), "convnet1")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 8, 8, generator=generator)
    labels = torch.randn(4, 3, generator=generator)
    weights = torch.tensor([0.6, 0.3, 0.1])
    theta = network.vector()
    got = student_loss(network, True, weights)(theta[:0], theta, images, labels, DsaDraw())
    logs, shares = F.log_softmax(network(theta, images), 1), labels.softmax(1)
    wanted = sum(-weights[k] * shares[i, k] * logs[i, k] for i in range(4) for k in range(3)) / 4
    assert float(got) == pytest.approx(float(wanted), rel=1e-5)
    one_hot = F.one_hot(torch.arange(4) % 3)
    hard = student_loss(network, False)(theta[:0], theta, images, one_hot, DsaDraw())
    plain = F.cross_entropy(network(theta, images), torch.arange(4) % 3)
    assert float(hard) == pytest.approx(float(plain), rel=1e-5)


# --- the first images ---


def looks(answers: list[list[int]], asked: list[tuple[int, list[int]]]) -> list[Any]:
    """Return experts; each gives images 0.. the classes of its list, the surer the larger."""

    def expert(number: int) -> Any:
        def look(rows: Tensor) -> Tensor:
            asked.append((number, rows.tolist()))
            given = torch.tensor(answers[number])[rows]
            sure = 1 + rows[:, None] / 10
            return F.log_softmax(sure * F.one_hot(given, 3), 1)

        return look

    return [expert(number) for number in range(len(answers))]


def test_experts_walk_one_after_another_and_no_further_than_they_must() -> None:
    asked: list[tuple[int, list[int]]] = []
    members = torch.tensor([5, 3, 4, 0, 1, 2])
    experts = looks([[0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0]], asked)
    assert walk(experts, members, 1, 3, at_once=2).tolist() == [3, 1, 0]
    assert asked == [(0, [5, 3]), (0, [4, 0]), (0, [1, 2]), (1, [5, 4]), (1, [0, 2])]
    asked.clear()
    assert walk(experts, members, 1, 1, at_once=2).tolist() == [3]
    assert asked == [(0, [5, 3])]


def test_a_dead_class_gives_its_surest_images_and_then_repeats() -> None:
    asked: list[tuple[int, list[int]]] = []
    experts = looks([[0, 0, 0, 0]] * 3, asked)
    # The experts are surer of another class the larger the number, so less sure of this one.
    assert walk(experts, torch.tensor([2, 0, 3]), 1, 5, at_once=9).tolist() == [0, 2, 3, 0, 2]
    assert len(asked) == 6, "each expert walks once and is asked once more"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_right_images_come_before_sure_ones(count: int) -> None:
    members = torch.arange(count)
    got = walk(looks([[0, 1, 0, 1, 0]], []), members, 1, 4, at_once=2).tolist()
    assert got == {1: [0, 0, 0, 0], 2: [1, 0, 1, 0], 5: [1, 3, 0, 2]}[count]


def test_a_class_of_right_images_alone_repeats_them() -> None:
    def look(rows: Tensor) -> Tensor:
        assert len(rows), "networks are not asked for nothing"
        return F.log_softmax(F.one_hot(torch.ones_like(rows), 3).float(), 1)

    assert walk([look, look], torch.tensor([7, 2]), 1, 5, at_once=9).tolist() == [7, 2, 7, 2, 7]


# --- everything together ---


@pytest.mark.parametrize("config", [CONFIG, DECOUPLED], ids=["one", "decoupled"])
def test_images_labels_and_rate_are_learned(
    config: TrajectoryRecovery, data: LongTailedData, runtime: Runtime, log: Recorder
) -> None:
    got = recovered(
        data, dataclasses.replace(config, image_learning_rate=1.0, iterations=21), runtime
    )
    start = first_images(data, 2, runtime)
    before, after, published = got["matching_loss"].tolist()
    unmoved = 1.0 if config.phases == "one" else 2.0  # of students that stay where they are
    assert after < 0.95 * min(before, unmoved)
    assert published < min(before, unmoved)
    assert got["images"].shape == start.images.shape
    assert 0 <= float(got["images"].min()) <= float(got["images"].max()) <= 1
    assert not torch.equal(got["images"], start.images)
    assert got["logits"].shape == (6, 3)
    assert 1e-5 <= float(got["learning_rate"]) <= 1
    assert float(got["learning_rate"]) != pytest.approx(0.01, abs=1e-6)
    (told,) = log.of("matched")
    views = 4 * (4 if config.phases == "one" else 4 + 3)
    assert (told["images_per_iteration"], told["before"]) == (views, before)
    assert told["seconds_per_iteration"] > 0
    logged = log.of("recover")
    assert [event["iteration"] for event in logged] == [0, 10, 20]
    both = [name in logged[0] for name in ("backbone", "classifier")]
    assert both == 2 * [config.phases == "decoupled"]


@pytest.mark.parametrize("config", [CONFIG, DECOUPLED], ids=["one", "decoupled"])
def test_classes_of_five_two_and_one_image_are_matched(
    config: TrajectoryRecovery, runtime: Runtime
) -> None:
    got = recovered(SMALL, config, runtime)
    assert all(torch.isfinite(part).all() for part in got.values())


def test_a_phase_without_weight_adds_nothing(data: LongTailedData, runtime: Runtime) -> None:
    without = dataclasses.replace(DECOUPLED, classifier_weight=0.0, iterations=2)
    shorter = dataclasses.replace(without, classifier_steps=1)
    other = dataclasses.replace(without, classifier_weight=1.0)
    images = [recovered(data, config, runtime)["images"] for config in (without, shorter, other)]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_blown_up_step_is_taken_back_and_said(
    data: LongTailedData, runtime: Runtime, log: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = torch.tensor(torch.nan)
    monkeypatch.setattr("ltdd.stages.recovery.unrolled._distance", lambda *_: nowhere)
    with pytest.raises(UserError, match=r"recovery: expected a finite loss at step \d+, got none"):
        recovered(data, dataclasses.replace(CONFIG, iterations=12), runtime)
    assert [event["restarts"] for event in log.of("restart")] == list(range(1, 11))
