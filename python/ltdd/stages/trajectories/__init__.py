"""The paths of experts through their parameters, which trajectory matching follows.

Every expert is stored by itself under a key of its own, so that a smaller number of experts is
found again inside a larger one. DAMED trains the classifier of each a second time, on its last
backbone, with classes in turns; these paths are stored beside the first ones.

Not one of the six stages: initialization and recovery are handed what is made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltdd.config import TrajectoryRecovery, deciding_settings
from ltdd.engine.distributed.ranks import current
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Call, Stored
from ltdd.engine.storage.files import read_tensors
from ltdd.engine.storage.stage_store import StageStore
from ltdd.engine.watching import units
from ltdd.models.flat_network import FlatNetwork
from ltdd.stages.run import Run
from ltdd.stages.trajectories.training import Course, train_expert

STAGE = "trajectories"
_DECIDING = (
    "network", "trajectory_batch_size", "trajectory_learning_rate", "sharpness",
    "sharpness_radius", "sharpness_weight", "dsa_operations",
)  # fmt: skip


@dataclass(frozen=True)
class Trajectory:
    """Path of one expert; the tensors are mapped from its files.

    Attributes:
        snapshots: float32 (E + 1, P), before training and after each epoch.
        last: (P,), at the end of training.
        classifier_snapshots: (M + 1, Q), of the second training of the classifier; None without.
        classifier_last: (Q,), at its end.
    """

    snapshots: Tensor
    last: Tensor
    classifier_snapshots: Tensor | None = None
    classifier_last: Tensor | None = None

    @property
    def expert(self) -> Tensor:
        """Parameters of the trained expert, with the second classifier where there is one."""
        if self.classifier_last is None:
            return self.last
        return torch.cat([self.last[: -len(self.classifier_last)], self.classifier_last])


@dataclass(frozen=True)
class Trajectories:
    """Paths of all experts.

    Attributes:
        network: their form.
        paths: one an expert.
    """

    network: FlatNetwork
    paths: Sequence[Stored[Trajectory]]


def train_trajectories(run: Run) -> Trajectories | None:
    """Return the paths of experts that recovery matches; None where it matches none."""
    config = run.config.recovery
    if not isinstance(config, TrajectoryRecovery):
        return None
    network = FlatNetwork(run.build(config.network).to(run.runtime.device), config.network)
    size = trajectory_bytes(config, network)
    run.runtime.tell(
        "trajectories",
        f"trajectories: {config.trajectories} experts, {units.size(size)} on the disk",
        bytes=size,
        parameters=network.size,
    )
    paths = []
    ranks, numbers = current().world, range(config.trajectories)
    for first in numbers[::ranks]:  # as many at a time as ranks: all may be gigabytes
        paths += _paths(run, config, network, numbers[first : first + ranks])
    return Trajectories(network, paths)


def trajectory_bytes(config: TrajectoryRecovery, network: FlatNetwork) -> int:
    """Return the bytes that the paths take on the disk."""
    values = (config.last_read + 2) * network.size
    if config.phases == "decoupled":
        values += (config.expert_epochs + 2) * (network.size - network.classifier)
    return 4 * config.trajectories * values


def _paths(
    run: Run, config: TrajectoryRecovery, network: FlatNetwork, numbers: Sequence[int]
) -> list[Stored[Trajectory]]:
    """Return the paths of some experts, which ranks train one by one."""
    deciding = deciding_settings(config)
    shared = {name: deciding[name] for name in _DECIDING if name in deciding}
    decay, flip = config.trajectory_weight_decay, run.config.horizontal_flip
    nothing = torch.empty(0)

    def first(number: int) -> Call:
        def train(runtime: Runtime) -> dict[str, Tensor]:
            with runtime.global_stream(STAGE, "parameters", number):
                start = FlatNetwork(run.build(config.network), config.network).vector()
            course = Course(
                "expert", number, start, nothing, config.trajectory_epochs, config.last_read, decay
            )
            return train_expert(network, course, run.data, config, flip, runtime)

        settings = {
            "epochs": config.trajectory_epochs,
            "kept": config.last_read,
            "weight_decay": decay,
        }
        return Call(STAGE, shared | {"number": number} | settings, [], train)

    def second(number: int, path: Stored[dict[str, Tensor]]) -> Call:
        def train(runtime: Runtime) -> dict[str, Tensor]:
            frozen, start = path.value["last"].tensor_split([network.classifier])
            kept = config.expert_epochs
            course = Course(
                "classifier", number, start, frozen, config.classifier_epochs, kept, 0.0, True
            )
            return train_expert(network, course, run.data, config, flip, runtime)

        settings = {"epochs": config.classifier_epochs, "kept": config.expert_epochs}
        return Call(STAGE, shared | {"number": number} | settings, [path], train)

    paths = _trained(run, map(first, numbers))
    if config.phases == "one":
        return [path.map(lambda tensors: Trajectory(**tensors)) for path in paths]
    again = _trained(run, map(second, numbers, paths))
    return [
        Stored(Trajectory(*path.value.values(), *classifier.value.values()), classifier.key)
        for path, classifier in zip(paths, again, strict=True)
    ]


def _trained(run: Run, calls: Iterable[Call]) -> list[Stored[dict[str, Tensor]]]:
    """Return paths that are read from their files where they are used: all may be gigabytes."""
    paths, store = [], StageStore(run.out)
    for stored in run.stages.run_all(list(calls)):
        tensors, _ = read_tensors(store.path(STAGE, stored.key))
        path = {name: tensors[name] for name in ("snapshots", "last")}
        paths.append(Stored(path, stored.key))
    return paths
