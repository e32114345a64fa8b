"""A stage stopped at any step and started again gives the same bytes as one that ran through."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltdd.config import (
    DistributionMatching,
    EvaluationConfig,
    GradientMatching,
    RecoveryConfig,
    StatisticsConfig,
    TrajectoryRecovery,
    form_of,
)
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine import interruption
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.engine.storage.checkpoint import StageCheckpoint
from ltdd.engine.turns import finished
from ltdd.errors import UserError
from ltdd.models import build_model
from ltdd.models.flat_network import FlatNetwork
from ltdd.stages.evaluation.training import StudentName, train_student
from ltdd.stages.experts.training import train_expert
from ltdd.stages.label_sources import StaticLabels
from ltdd.stages.recovery.alignment import Observed, align_images
from ltdd.stages.recovery.distribution import match_distributions
from ltdd.stages.recovery.gradient import match_gradients
from ltdd.stages.recovery.trajectory import match_trajectories
from ltdd.stages.run import InitialImages
from ltdd.stages.statistics import class_statistics
from ltdd.stages.trajectories import Trajectories, Trajectory
from ltdd.stages.trajectories.training import Course
from ltdd.stages.trajectories.training import train_expert as train_expert_path

KEY = "ab" * 32
Stage = Callable[[Runtime], list[Tensor]]


class Killed(BaseException):
    """Ends a stage where a test wants it to."""


class KilledAt(StageCheckpoint):
    """Saves after every step and dies after the given one."""

    def __init__(self, path: Path, last: int) -> None:
        super().__init__(path, KEY, seconds=0)
        self.left = last

    def step(self, **state: Any) -> None:
        super().step(**state)
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, data: LongTailedData, observer: nn.Module, runtime: Runtime
) -> Stage:
    """The stage that the test's parameter names, as a function of its surroundings."""
    spec = data.spec(flip=True)

    def expert(runtime: Runtime, **settings: Any) -> list[Tensor]:
        form = form_of("experts", settings.get("loss"))
        config = form(epochs=3, batch_size=12, **settings)
        model = finished(train_expert("observer", "resnet32_w16", data, config, True, runtime))
        return list(model.state_dict().values())

    def recovery(
        runtime: Runtime, targets: StatisticsConfig | None = None, **settings: Any
    ) -> list[Tensor]:
        targets = targets or StatisticsConfig()
        observed = Observed(observer, class_statistics(observer, data, targets, runtime))
        labels = torch.arange(3).repeat_interleave(4)
        images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        config = RecoveryConfig(iterations=3, max_batch=6, **settings)
        start = InitialImages(images, labels, torch.full_like(labels, -1))
        return [align_images(start, [observed], spec, config, targets, runtime)]

    labels = torch.arange(3).repeat_interleave(2)
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = InitialImages(images, labels, torch.full_like(labels, -1))

    def gradient(runtime: Runtime, **settings: Any) -> list[Tensor]:
        config = GradientMatching(
            network="convnet3_w32",
            outer=2,
            inner=3,
            network_epochs=2,
            network_batch=4,
            network_momentum=0.9,
            augmentation=("color", "crop"),
            network_augmentation=("color", "crop"),
            **settings,
        )
        return [match_gradients(noise, data, spec, config, runtime)]

    def distribution(runtime: Runtime, **settings: Any) -> list[Tensor]:
        config = DistributionMatching(
            network="convnet3_w32",
            iterations=6,
            pool=3,
            pool_period=2,
            network_steps=2,
            network_batch=8,
            network_momentum=0.9,
            **settings,
        )
        return [match_distributions(noise, data, spec, config, runtime)]

    def student(runtime: Runtime) -> list[Tensor]:
        config = EvaluationConfig(student="convnet3", epochs=3, batch_size=4, seeds=1)
        labels = torch.arange(3).repeat_interleave(3)
        images = data.train_images[: len(labels)]
        source = StaticLabels(torch.nn.functional.one_hot(labels, 3).float(), runtime.device)
        schedule = ViewSchedule(3, len(labels), 8, 8, True, config)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model(config.student, 3, 8, 3)
        shown, name = ImageSet(images, labels), StudentName("student", 0)
        trained = finished(train_student(model, shown, source, schedule, spec, name, runtime))
        return list(trained.state_dict().values())

    def trajectory(runtime: Runtime) -> list[Tensor]:
        config = TrajectoryRecovery(
            network="convnet1", trajectories=1, trajectory_batch_size=20, sharpness="gsam",
            dsa_operations=("color", "crop"),
        )  # fmt: skip
        with runtime.global_stream("network"):
            network = FlatNetwork(build_model("convnet1", 3, 8, 3), "convnet1")
        course = Course("expert", 0, network.vector(), torch.empty(0), 3, 2, 0.01)
        return list(train_expert_path(network, course, data, config, True, runtime).values())

    def matching(runtime: Runtime) -> list[Tensor]:
        config = TrajectoryRecovery(
            network="convnet1", iterations=6, steps=2, start_max=1, expert_epochs=1,
            learned_labels=True, synthetic_batch=4, student_learning_rate=0.05,
        )  # fmt: skip
        with runtime.global_stream("network"):
            network = FlatNetwork(build_model("convnet1", 3, 8, 3), "convnet1")
        generator = torch.Generator().manual_seed(0)
        steps = 0.02 * torch.randn(2, network.size, generator=generator)
        snapshots = network.vector() + steps.cumsum(0)
        path = Stored(Trajectory(snapshots, snapshots[1]), "path")
        labels = torch.arange(3).repeat_interleave(2)
        images = torch.rand(6, 3, 8, 8, generator=generator)
        start, counts = InitialImages(images, labels, labels), data.counts
        experts = Trajectories(network, [path])
        found = match_trajectories(start, experts, counts, spec, config, runtime)
        return [found[name] for name in ("images", "logits", "learning_rate", "matching_loss")]

    stages: dict[str, Stage] = {
        "experts, cosine": lambda r: expert(r, schedule="cosine"),
        "experts, one cycle": lambda r: expert(r, schedule="one_cycle", loss="ce"),
        "experts, averaged": lambda r: expert(r, averaging="ema", loss="unimix", warmup_epochs=2),
        "recovery": recovery,
        "recovery, edc": lambda r: recovery(
            r,
            StatisticsConfig(layers="batch_norm_and_conv", global_target="running"),
            momentum=0.8,
            order="class_major",
            class_part="pooled",
            hook_drop=0.4,
            jitter=4,
        ),
        "recovery, gradient": gradient,
        "recovery, representatives": lambda r: gradient(
            r, representatives="clusters", interval=2, real_batch=5, clamp=True, pixels="unit"
        ),
        "recovery, distribution": lambda r: distribution(r, augmentation=("color", "crop")),
        "recovery, characteristic": lambda r: distribution(
            r, distance="characteristic", entry_steps=2, trained_networks=1, frequencies=32
        ),
        "trajectory": trajectory,
        "matching": matching,
        "student": student,
    }
    return stages[request.param]


EVERY_STAGE = pytest.mark.parametrize(
    "stage",
    [
        "experts, cosine",
        "experts, one cycle",
        "experts, averaged",
        "recovery",
        "recovery, edc",
        "recovery, gradient",
        "recovery, representatives",
        "recovery, distribution",
        "recovery, characteristic",
        "trajectory",
        "matching",
        "student",
    ],
    indirect=True,
)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@EVERY_STAGE
def test_a_killed_stage_gives_the_same_bytes(
    stage: Stage, runtime: Runtime, tmp_path: Path
) -> None:
    whole = stage(runtime)
    path = tmp_path / "stage.checkpoint"
    # Six steps in all for experts and recovery, nine for the student. Three attempts end inside the
    # first epoch, at its end (of two or three steps) and further on.
    attempts = 0
    for last in (1, 1, 2):
        checkpoint = KilledAt(path, last)
        with checkpoint, pytest.raises(Killed):
            stage(dataclasses.replace(runtime, checkpoint=checkpoint))
        attempts += last
    assert attempts == 4
    final = KilledAt(path, -1)
    with final:
        assert same(stage(dataclasses.replace(runtime, checkpoint=final)), whole)
    assert 1 <= -1 - final.left <= 5, "the last attempt did not start over"
    assert final.seconds_before > 0


def saved(path: Path, seconds: float = 0.0, **state: Any) -> StageCheckpoint:
    checkpoint = StageCheckpoint(path, KEY, seconds)
    with checkpoint:
        checkpoint.step(**state)
    return checkpoint


def restored(path: Path, key: str = KEY) -> dict[str, Any]:
    checkpoint = StageCheckpoint(path, key)
    with checkpoint:
        return checkpoint.restore()


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint"
    maps = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "maps": maps}}, "betas": (0.5, 0.9)},
        "rate": 0.1 + 0.2,
        "epochs": [1, 2],
        "nothing": None,
    }
    saved(path, **state)
    found = restored(path)
    assert found["optimizer"]["betas"] == (0.5, 0.9)
    assert (found["rate"], found["epochs"], found["nothing"]) == (0.1 + 0.2, [1, 2], None)
    entry = found["optimizer"]["state"][0]
    assert torch.equal(entry["maps"], maps)
    assert entry["maps"].stride() == maps.stride()
    assert entry["step"].shape == ()
    assert restored(path, key="cd" * 32) == {}
    assert restored(tmp_path / "nowhere") == {}


def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint"
    saved(path, pixels=torch.ones(100), iteration=3)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:-9] + b"\x01" + whole[-8:], b"", whole[8:]):
        path.write_bytes(content)
        assert restored(path) == {}


def test_time_decides_when_to_save(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint"
    checkpoint = saved(path, seconds=3600, iteration=1)
    assert not path.exists()
    checkpoint.step(iteration=2)
    assert not path.exists()
    saved(path, seconds=0, iteration=3)
    assert restored(path) == {"iteration": 3}


def test_a_state_that_is_no_number_does_not_replace_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "recovery-0123.checkpoint"
    saved(path, pixels=torch.ones(2), iteration=1)
    bad = {"state": {0: {"exp_avg": torch.tensor([1.0, torch.inf])}}}
    with pytest.raises(UserError, match=r"recovery: expected finite .* optimizer.state.0.exp_avg"):
        saved(path, optimizer=bad, iteration=2)
    assert restored(path)["iteration"] == 1


@EVERY_STAGE
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_saves(
    stage: Stage, number: int, runtime: Runtime, tmp_path: Path
) -> None:
    class SignalledAtSecondStep(StageCheckpoint):
        steps = 0

        def step(self, **state: Any) -> None:
            self.steps += 1
            if self.steps == 2:
                os.kill(os.getpid(), number)
            super().step(**state)

    checkpoint = SignalledAtSecondStep(tmp_path / "x.checkpoint", KEY)
    with interruption.handled(), checkpoint, pytest.raises(interruption.Interrupted) as stop:
        stage(dataclasses.replace(runtime, checkpoint=checkpoint))
    assert stop.value.exit_status == 128 + number
    assert checkpoint.steps == 2
    resumed = StageCheckpoint(checkpoint.path, KEY)
    with resumed:
        assert same(stage(dataclasses.replace(runtime, checkpoint=resumed)), stage(runtime))
