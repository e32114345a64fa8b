"""Experts' trajectories: GSAM and its limits, the class-aware order, what is stored and found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.stripes import Recorder, make_data
from helpers.tiny_run import QUIET, TINY, shared
from torch import Tensor

from ltdd.config import (
    CorrectReal,
    DistillConfig,
    EvaluationConfig,
    NoRecovery,
    TrajectoryRecovery,
)
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.flat_network import FlatNetwork
from ltdd.preflight import check_disk_space, check_networks, estimated_bytes
from ltdd.stages.run import Run
from ltdd.stages.trajectories import Trajectories, train_trajectories, trajectory_bytes
from ltdd.stages.trajectories.class_aware import class_aware_order
from ltdd.stages.trajectories.gsam import gsam_direction, perpendicular
from ltdd.stages.trajectories.training import Course, train_expert

PATHS = TrajectoryRecovery(
    network="convnet1", trajectories=2, trajectory_epochs=4, trajectory_batch_size=12,
    trajectory_learning_rate=0.05, start_max=1, expert_epochs=2, iterations=2, steps=2,
)  # fmt: skip
DECOUPLED = dataclasses.replace(PATHS, phases="decoupled", classifier_steps=2, classifier_epochs=3)


def configured(recovery: TrajectoryRecovery) -> DistillConfig:
    return dataclasses.replace(TINY, recovery=recovery)


def trained(
    recovery: TrajectoryRecovery, data: LongTailedData, out: Path, options: RunOptions = QUIET
) -> Trajectories:
    found = train_trajectories(Run.create(configured(recovery), data, out, options))
    assert found is not None
    return found


# --- GSAM ---


def curved(theta: Tensor) -> Tensor:
    """Gradient of a loss whose curvature differs between directions and places."""
    theta = theta.detach().requires_grad_()
    loss = (theta.square() * torch.tensor([1.0, 5.0, 0.2])).sum() + (theta[0] * theta[1]).sin()
    return torch.autograd.grad(loss, theta)[0]


PLACE = torch.tensor([0.5, -1.0, 2.0])


def test_gsam_without_radius_is_sgd() -> None:
    for weight in (0.0, 0.3, 1.0):
        got = gsam_direction(curved, PLACE, radius=0.0, weight=weight)
        assert torch.allclose(got, curved(PLACE), atol=1e-6)


def test_gsam_without_weight_is_adaptive_sam() -> None:
    plain, radius = curved(PLACE), 0.2
    scaled = PLACE.abs() * plain
    ahead = PLACE + radius * PLACE.abs() * scaled / scaled.norm()
    got = gsam_direction(curved, PLACE, radius, weight=0.0)
    assert torch.allclose(got, curved(ahead), rtol=1e-5)
    assert not torch.allclose(got, plain, rtol=1e-2)
    assert float(((ahead - PLACE) / PLACE.abs()).norm()) == pytest.approx(radius, rel=1e-5)


def test_what_gsam_takes_away_stands_at_right_angles_to_the_perturbed_gradient() -> None:
    perturbed = gsam_direction(curved, PLACE, radius=0.2, weight=0.0)
    got = gsam_direction(curved, PLACE, radius=0.2, weight=0.7)
    taken = (perturbed - got) / 0.7
    assert float(taken.norm()) > 1e-2
    assert abs(float(torch.dot(taken, perturbed))) < 1e-5 * float(perturbed.norm())
    along = curved(PLACE) - taken
    cosine = F.cosine_similarity(along, perturbed, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(perpendicular(perturbed, torch.zeros(3)), perturbed)


# --- the class-aware order ---


def test_classes_come_in_turns_whatever_their_size() -> None:
    data = make_data((24, 5, 2, 1))
    members = [data.members(label) for label in range(4)]
    order = class_aware_order(members, torch.Generator().manual_seed(0))
    assert len(order) == 4 * 24
    visits = data.train_labels[order].view(-1, 4)
    assert (visits == visits[:, :1]).all(), "four images of one class at each visit"
    for cycle in visits[:, 0].view(-1, 4):
        assert sorted(cycle.tolist()) == [0, 1, 2, 3]
    for own in members:  # 24 draws of each class: all its images equally often, up to one
        drawn = torch.bincount(order, minlength=len(data.train_labels))[own]
        assert int(drawn.sum()) == 24
        assert int(drawn.max() - drawn.min()) <= 1
    other = class_aware_order(members, torch.Generator().manual_seed(1))
    assert not torch.equal(order, other)


# --- training ---


def course(network: FlatNetwork, **changes: object) -> Course:
    start, nothing = network.vector(), torch.empty(0)
    return Course("expert", 0, start, nothing, 2, 2, 0.0)._replace(**changes)


def test_an_expert_takes_the_steps_of_sgd(data: LongTailedData, runtime: Runtime) -> None:
    """Whole batches without augmentation: the same as torch's own optimizer."""
    config = dataclasses.replace(PATHS, trajectory_batch_size=1000, dsa_operations=())
    network = FlatNetwork(build_model("convnet1", 3, 8, 3), "convnet1")
    decay = 0.1
    way = course(network, weight_decay=decay)
    got = train_expert(network, way, data, config, True, runtime)
    model = build_model("convnet1", 3, 8, 3)
    model = FlatNetwork(model, "convnet1").with_parameters(network.vector()).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=decay)
    mean, std = (v.view(-1, 1, 1) for v in data.normalization.tensors())
    images = (data.train_images / 255 - mean) / std
    for epoch in range(2):
        reached = FlatNetwork(model, "convnet1").vector()
        assert torch.allclose(got["snapshots"][epoch], reached, atol=1e-6)
        optimizer.zero_grad()
        F.cross_entropy(model(images), data.train_labels).backward()
        optimizer.step()
    assert torch.allclose(got["last"], FlatNetwork(model, "convnet1").vector(), atol=1e-6)
    assert torch.equal(got["last"], got["snapshots"][2])


def test_experts_move_and_say_how_far(
    data: LongTailedData, runtime: Runtime, log: Recorder
) -> None:
    config = dataclasses.replace(PATHS, sharpness="gsam")
    network = FlatNetwork(build_model("convnet1", 3, 8, 3), "convnet1")
    got = train_expert(network, course(network, epochs=3), data, config, True, runtime)
    snapshots = got["snapshots"]
    assert snapshots.shape == (3, network.size)
    assert torch.equal(snapshots[0], network.vector())
    assert len({tuple(row[:5].tolist()) for row in (*snapshots, got["last"])}) == 4
    (moved,) = [event["moved"] for event in log.of("train") if "moved" in event]
    assert moved == pytest.approx(float((snapshots[2] - snapshots[0]).norm()))


# --- what is stored ---


def test_fewer_experts_are_found_inside_more(data: LongTailedData, tmp_path: Path) -> None:
    store = tmp_path / "store"
    more = dataclasses.replace(PATHS, trajectories=3)
    all_of_them = trained(more, data, tmp_path / "a", shared(store))
    fewer = trained(PATHS, data, tmp_path / "b", shared(store))
    assert [path.key for path in fewer.paths] == [path.key for path in all_of_them.paths][:2]
    assert len(list(store.glob("trajectories-*"))) == 3
    first, second = (path.value.snapshots for path in fewer.paths)
    assert first.shape == (PATHS.last_read + 1, fewer.network.size)
    assert not torch.equal(first[0], second[0])
    other = trained(dataclasses.replace(PATHS, image_learning_rate=7.0), data, tmp_path / "c")
    assert [path.key for path in other.paths] == [path.key for path in fewer.paths]
    gsam = trained(dataclasses.replace(PATHS, sharpness="gsam"), data, tmp_path / "c")
    assert {path.key for path in gsam.paths}.isdisjoint(path.key for path in fewer.paths)
    assert torch.equal(gsam.paths[0].value.snapshots[0], first[0])


def test_the_second_set_moves_classifiers_alone(data: LongTailedData, tmp_path: Path) -> None:
    plain = trained(PATHS, data, tmp_path / "a")
    decoupled = trained(DECOUPLED, data, tmp_path / "a")
    split = plain.network.classifier
    for one, two in zip(plain.paths, decoupled.paths, strict=True):
        own = two.value
        assert torch.equal(own.snapshots, one.value.snapshots)
        assert own.classifier_snapshots is not None
        assert own.classifier_last is not None
        assert own.classifier_snapshots.shape == (3, plain.network.size - split)
        assert torch.equal(own.classifier_snapshots[0], own.last[split:])
        assert not torch.equal(own.classifier_last, own.last[split:])
        assert torch.equal(own.expert[:split], own.last[:split])
        assert torch.equal(own.expert[split:], own.classifier_last)


def test_the_bytes_are_known_before_they_are_written(
    data: LongTailedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, recovery in (("one", PATHS), ("two", DECOUPLED)):
        found = trained(recovery, data, tmp_path / name)
        written = sum(p.stat().st_size for p in (tmp_path / name / "stages").iterdir())
        expected = trajectory_bytes(recovery, found.network)
        assert expected < written < expected + 4 * 4096  # headers
    without = estimated_bytes(dataclasses.replace(TINY, recovery=NoRecovery()), data)
    large = configured(dataclasses.replace(PATHS, trajectories=100_000))
    needed = trajectory_bytes(large.recovery, found.network)
    assert estimated_bytes(large, data) == pytest.approx(without + needed, rel=0.01)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    with pytest.raises(UserError, match=r"out: expected about \d+ MiB free .* got 954 MiB"):
        check_disk_space(large, data, tmp_path / "three")


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start_max": 3}, "trajectory_epochs of start_max + expert_epochs = 5 or more, got 4"),
        ({"start_min": 1}, "start_min < curriculum_from <= start_max, got 1, None, 1"),
        ({"curriculum_from": 2}, "start_min < curriculum_from <= start_max, got 0, 2, 1"),
        ({"dsa_operations": ("flop",)}, "recovery.dsa_operations among .*; got 'flop'"),
        ({"phases": "decoupled", "classifier_epochs": 1}, "classifier_epochs of expert_epochs"),
    ],
)
def test_impossible_schedules_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("+", r"\+")):
        dataclasses.replace(PATHS, **changes)


def test_batch_norm_has_no_trajectory(data: LongTailedData) -> None:
    config = configured(dataclasses.replace(PATHS, network="convnet3_bn"))
    with pytest.raises(UserError, match=r"recovery\.network: expected .* got convnet3_bn"):
        check_networks(config, data)


def test_images_that_experts_get_right_want_experts(data: LongTailedData) -> None:
    config = dataclasses.replace(TINY, initialization=CorrectReal())
    with pytest.raises(UserError, match=r"whose experts .* correct_real asks, got .* alignment"):
        check_networks(config, data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"relabeling": {"labels": "learned"}}, "trajectory with recovery.learned_labels"),
        ({"evaluation": {"learning_rate": None}}, "which learns evaluation.learning_rate"),
    ],
)
def test_what_recovery_does_not_learn_is_not_to_be_had(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        DistillConfig.from_dict(changes)


def test_baselines_without_learned_labels_are_refused() -> None:
    recovery = dataclasses.replace(PATHS, learned_labels=True)
    config = {"recovery": dataclasses.asdict(recovery), "relabeling": {"labels": "learned"}}
    DistillConfig.from_dict(config)
    wanted = dataclasses.asdict(EvaluationConfig(baselines=("random_real_soft",)))
    with pytest.raises(UserError, match="which those have not, got random_real_soft"):
        DistillConfig.from_dict(config | {"evaluation": wanted})
    config["relabeling"] = {"labels": "learned", "calibration": "adsa"}
    with pytest.raises(UserError, match=r"calibration none with relabeling\.labels learned"):
        DistillConfig.from_dict(config)
