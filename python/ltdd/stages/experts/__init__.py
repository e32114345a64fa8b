"""Stage 1: train an observer and a teacher on the long-tailed data, or take given weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltdd.config import AnyExperts, deciding_settings
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Call, Stored
from ltdd.engine.storage.files import fingerprint
from ltdd.models.ensemble import MeanLogits
from ltdd.models.weights import (
    given_weights,
    load_weights,
    starting_weights,
)
from ltdd.stages.experts.training import train_expert
from ltdd.stages.run import Run

OBSERVER, TEACHER = "observer", "teacher"


@dataclass(frozen=True)
class Experts:
    """The trained networks of a run.

    Attributes:
        observers: networks whose statistics are matched, in turns.
        teacher: network that scores crops and gives soft labels.
    """

    observers: list[Stored[nn.Module]]
    teacher: Stored[nn.Module]


def train_experts(run: Run) -> Experts:
    """Stage 1: train the observers and the teacher, or take weights that were given."""
    settings = run.config.experts
    extra = enumerate(settings.extra_observers, 2)
    wanted = [(OBSERVER, settings.observer, settings.observer_weights)]
    wanted += [(f"{OBSERVER}{n}", name, None) for n, name in extra]
    watched = len(wanted)
    if settings.teacher != "same":
        wanted.append((TEACHER, settings.teacher, settings.teacher_weights))
    extra = enumerate(settings.extra_teachers, 2)
    wanted += [(f"{TEACHER}{n}", name, None) for n, name in extra]
    made = run.stages.run_all([_trained_or_given(run, *who) for who in wanted], splittable=True)
    experts = [_frozen(run, who[1], stored) for who, stored in zip(wanted, made, strict=True)]
    observers, members = experts[:watched], experts[watched:]
    if settings.teacher == "same":
        members = experts
    if len(members) == 1:
        return Experts(observers, members[0])
    networks = [member.value for member in members]
    key = fingerprint([member.key for member in members])
    return Experts(observers, Stored(MeanLogits(networks), key))


def _trained_or_given(run: Run, role: str, architecture: str, file: str | None) -> Call:
    """Return how an expert gets the weights of a file, or is trained if there is none."""
    if file is None:
        return _training(run, role, architecture, run.config.experts, "experts")
    given = given_weights(run.config.experts, file)
    settings = {"weights": given.sha256, "class_names": given.class_names}

    def load(runtime: Runtime) -> Mapping[str, Tensor]:
        model = run.build(architecture)
        load_weights(model, given, run.data.class_names)
        if given.class_names is None:
            runtime.tell(
                "class_order_assumed",
                f"experts: {given.path} names no classes; its outputs are taken to be those of "
                "the data, in order; if they are not, give experts.class_map",
                file=str(given.path),
            )
        return model.state_dict()

    who = {"role": role, "architecture": architecture}
    return Call("experts", settings | who, [], load)


def train_network(
    run: Run, role: str, architecture: str, settings: AnyExperts, stage: str = "experts"
) -> Stored[nn.Module]:
    """Return one network trained on the long-tailed data.

    Args:
        run: the run.
        role: names the random streams and the events; another role is another network.
        architecture: a name that `build_model` knows.
        settings: how it is trained.
        stage: whose time and files it is.
    """
    stored = run.stages.run(*_training(run, role, architecture, settings, stage))
    return _frozen(run, architecture, stored)


def _training(run: Run, role: str, architecture: str, settings: AnyExperts, stage: str) -> Call:
    flip = run.config.horizontal_flip
    start = None if settings.init_weights is None else starting_weights(settings.init_weights)

    def train(runtime: Runtime) -> Mapping[str, Tensor]:
        trained = train_expert(role, architecture, run.data, settings, flip, runtime, start)
        return trained.state_dict()

    who = {"role": role, "architecture": architecture}
    if start is not None:
        who["init_weights"] = start.sha256
    return Call(stage, deciding_settings(settings) | who, [], train)


def _frozen(run: Run, architecture: str, stored: Stored[dict[str, Tensor]]) -> Stored[nn.Module]:
    model = run.build(architecture)
    model.load_state_dict(stored.value)
    moved = model.to(run.runtime.device).to(memory_format=torch.channels_last)
    return Stored(moved.eval().requires_grad_(False), stored.key)
