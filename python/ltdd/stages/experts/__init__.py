"""Stage 1: train an observer and a teacher on the long-tailed data, or take given weights.

With ``distil_from`` a stronger network comes first, which they imitate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import AnyExperts, deciding_settings
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Call, Stored
from ltdd.engine.storage.files import fingerprint
from ltdd.engine.turns import Turns
from ltdd.models.ensemble import MeanLogits
from ltdd.models.weights import (
    given_weights,
    load_weights,
    starting_weights,
)
from ltdd.stages.experts.course import Course, weights_after
from ltdd.stages.experts.objective import Master
from ltdd.stages.experts.training import train_expert
from ltdd.stages.label_calibration import label_shift
from ltdd.stages.run import Run

OBSERVER, TEACHER, MASTER = "observer", "teacher", "master"


@dataclass(frozen=True)
class Experts:
    """The trained networks of a run.

    Attributes:
        observers: networks whose statistics are matched, in turns.
        teacher: network that scores crops and gives soft labels.
        course: networks that label the students' views one after the other: the teacher alone, or
            what it was on its way.
    """

    observers: list[Stored[nn.Module]]
    teacher: Stored[nn.Module]
    course: list[Stored[nn.Module]]


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
    master = None if settings.all_given else _master(run)
    teaching = wanted if settings.teacher == "same" else wanted[watched:]
    calls = [
        _trained_or_given(run, *who, master, settings.teacher_course if who in teaching else (1.0,))
        for who in wanted
    ]
    made = run.stages.run_all(calls, splittable=True)
    pairs = list(zip((name for _, name, _ in wanted), made, strict=True))
    experts = [_frozen(run, *pair) for pair in pairs]
    teacher = _mean_logits(experts[-len(teaching) :])

    def after(share: float) -> Stored[nn.Module]:
        if share == 1:
            return teacher
        return _mean_logits([_frozen(run, *pair, share) for pair in pairs[-len(teaching) :]])

    return Experts(experts[:watched], teacher, [after(share) for share in settings.teacher_course])


def _mean_logits(networks: Sequence[Stored[nn.Module]]) -> Stored[nn.Module]:
    """Return several networks as one teacher."""
    if len(networks) == 1:
        return networks[0]
    key = fingerprint([network.key for network in networks])
    return Stored(MeanLogits([network.value for network in networks]), key)


def _master(run: Run) -> Stored[Master] | None:
    settings = run.config.experts
    if settings.distil_from is None:
        return None
    name, tau = settings.distil_from, settings.distil_prior
    call = _trained_or_given(run, MASTER, name, settings.distil_from_weights, None)
    network = _frozen(run, name, run.stages.run(*call))
    shift = label_shift(tau, run.data.counts).to(run.runtime.device)
    return network.map(lambda module: Master(module, shift))


def _trained_or_given(
    run: Run,
    role: str,
    architecture: str,
    file: str | None,
    master: Stored[Master] | None,
    course: Sequence[float] = (1.0,),
) -> Call:
    """Return how an expert gets the weights of a file, or is trained if there is none."""
    if file is None:
        settings = run.config.experts.of_role(role.rstrip("0123456789"))
        return _training(run, role, architecture, settings, "experts", master, course)
    given = given_weights(run.config.experts, file)
    origin = {"weights": given.sha256, "class_names": given.class_names}

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
    return Call("experts", origin | who, [], load)


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


def _training(
    run: Run,
    role: str,
    architecture: str,
    settings: AnyExperts,
    stage: str,
    master: Stored[Master] | None = None,
    course: Sequence[float] = (1.0,),
) -> Call:
    flip = run.config.horizontal_flip
    start = None if settings.init_weights is None else starting_weights(settings.init_weights)
    imitated = None if master is None else master.value
    ways = [share for share in course if share < 1]

    def train(runtime: Runtime) -> Turns[Mapping[str, Tensor]]:
        data, kept = run.data, Course(ways)
        trained = yield from train_expert(
            role, architecture, data, settings, flip, runtime, start, imitated, kept
        )
        return trained.state_dict() | kept.tensors()

    who: dict[str, Any] = {"role": role, "architecture": architecture}
    if ways:
        who["course"] = ways
    if start is not None:
        who["init_weights"] = start.sha256
    inputs = [] if master is None else [master]
    return Call(stage, deciding_settings(settings) | who, inputs, train)


def _frozen(
    run: Run, architecture: str, stored: Stored[dict[str, Tensor]], share: float = 1.0
) -> Stored[nn.Module]:
    """Return a network after a share of its training."""
    model = run.build(architecture)
    model.load_state_dict(weights_after(stored.value, share))
    moved = model.to(run.runtime.device).to(memory_format=torch.channels_last)
    key = stored.key if share == 1 else fingerprint([stored.key, share])
    return Stored(moved.eval().requires_grad_(False), key)
