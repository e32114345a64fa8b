"""A pool of networks of different ages, each trained a little now and then (arXiv:2307.09742)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltdd.config import DistributionMatching
from ltdd.data.augmentation.student_views import one_hot
from ltdd.engine.runtime import Runtime
from ltdd.models import Network
from ltdd.stages.recovery.distances import Spectrum
from ltdd.stages.recovery.matching_networks import (
    RealImages,
    fresh_network,
    network_optimizer,
    train_step,
)


@dataclass
class Member:
    """A network of the pool.

    Attributes:
        number: in order of birth, from 0.
        network: in training mode.
        optimizer: its own, with its momentum.
        accuracy: mean over the batches that it was trained on, each before its step; in [0, 1].
        steps: batches it was trained on.
        reality: what it makes of the real images of each class that this rank has, as long as it
            stays as it is.
        scale: of the frequencies that fit its features.
    """

    number: int
    network: Network
    optimizer: torch.optim.Optimizer
    accuracy: float = 0.0
    steps: int = 0
    reality: dict[int, Tensor] | dict[int, Spectrum] | None = None
    scale: float = 1.0


class NetworkPool:
    """Networks of different ages; the oldest one leaves when a fresh one finds no room.

    Args:
        real: what they are trained on.
        config: size of the pool, and how much its networks are trained.
        runtime: device, seed.

    Attributes:
        members: the oldest first.
    """

    def __init__(self, real: RealImages, config: DistributionMatching, runtime: Runtime) -> None:
        self.members: list[Member] = []
        self._real, self._config, self._runtime = real, config, runtime
        self._born = 0

    def admit(self) -> None:
        """Add a fresh network, trained as long as it has to be on entry."""
        member = self._member(self._born)
        self._born += 1
        self._learn(member, self._config.entry_steps, self._born, "entry")
        self.members = [*self.members, member][-self._config.pool :]

    def draw(self, generator: torch.Generator) -> Member:
        """Return any of the networks."""
        return self.members[int(torch.randint(len(self.members), (), generator=generator))]

    def train(self, iteration: int, generator: torch.Generator) -> None:
        """Train some of the networks."""
        order = torch.randperm(len(self.members), generator=generator)
        for place in order[: self._config.trained_networks].tolist():
            self._learn(self.members[place], self._config.network_steps, iteration, place)

    def _learn(self, member: Member, steps: int, *names: int | str) -> None:
        """Train a network on real images without augmentation; names address the draws."""
        config, real = self._config, self._real
        generator = self._runtime.stream("recovery", "training", *names)
        count = min(config.network_batch, len(real.data.train_labels))
        right = torch.zeros((), device=self._runtime.device)
        for _ in range(steps):
            indices = real.of_all(count, config.network_data == "balanced", generator)
            targets = one_hot(real.labels(indices), len(real.members))
            _, share = train_step(member.network, member.optimizer, real.shown(indices), targets)
            right += share
        if steps:
            total = member.accuracy * member.steps + float(right)
            member.steps += steps
            member.accuracy, member.reality = total / member.steps, None

    def _member(self, number: int) -> Member:
        config = self._config
        network = fresh_network(number, self._real.data, config.network, self._runtime)
        return Member(number, network, network_optimizer(network, config))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        kept = [
            {
                "number": member.number,
                "network": member.network.state_dict(),
                "optimizer": member.optimizer.state_dict(),
                "accuracy": member.accuracy,
                "steps": member.steps,
            }
            for member in self.members
        ]
        return {"born": self._born, "members": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._born, self.members = state["born"], []
        for kept in state["members"]:
            member = self._member(kept["number"])
            member.network.load_state_dict(kept["network"])
            member.optimizer.load_state_dict(kept["optimizer"])
            member.accuracy, member.steps = kept["accuracy"], kept["steps"]
            self.members.append(member)
