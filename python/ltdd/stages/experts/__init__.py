"""Stage 1: train an observer and a teacher on the long-tailed data, or take given weights.

With ``distil_from`` a stronger network comes first, which they imitate.
"""

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
    """

    observers: list[Stored[nn.Module]]
    teacher: Stored[nn.Module]


def train_experts(run: Run) -> Experts:
    """Stage 1: train the observers and the teacher, or take weights that were given."""
    settings, master = run.config.experts, _master(run)
    extra = enumerate(settings.extra_observers, 2)
    wanted = [(OBSERVER, settings.observer, settings.observer_weights)]
    wanted += [(f"{OBSERVER}{n}", name, None) for n, name in extra]
    watched = len(wanted)
    if settings.teacher != "same":
        wanted.append((TEACHER, settings.teacher, settings.teacher_weights))
    extra = enumerate(settings.extra_teachers, 2)
    wanted += [(f"{TEACHER}{n}", name, None) for n, name in extra]
    calls = [_trained_or_given(run, *who, master) for who in wanted]
    made = run.stages.run_all(calls, splittable=True)
    experts = [_frozen(run, who[1], stored) for who, stored in zip(wanted, made, strict=True)]
    observers, members = experts[:watched], experts[watched:]
    if settings.teacher == "same":
        members = experts
    if len(members) == 1:
        return Experts(observers, members[0])
    networks = [member.value for member in members]
    key = fingerprint([member.key for member in members])
    return Experts(observers, Stored(MeanLogits(networks), key))


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
    run: Run, role: str, architecture: str, file: str | None, master: Stored[Master] | None
) -> Call:
    """Return how an expert gets the weights of a file, or is trained if there is none."""
    if file is None:
        settings = run.config.experts.of_role(role.rstrip("0123456789"))
        return _training(run, role, architecture, settings, "experts", master)
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
) -> Call:
    flip = run.config.horizontal_flip
    start = None if settings.init_weights is None else starting_weights(settings.init_weights)
    imitated = None if master is None else master.value

    def train(runtime: Runtime) -> Mapping[str, Tensor]:
        data = run.data
        trained = train_expert(role, architecture, data, settings, flip, runtime, start, imitated)
        return trained.state_dict()

    who = {"role": role, "architecture": architecture}
    if start is not None:
        who["init_weights"] = start.sha256
    inputs = [] if master is None else [master]
    return Call(stage, deciding_settings(settings) | who, inputs, train)


def _frozen(run: Run, architecture: str, stored: Stored[dict[str, Tensor]]) -> Stored[nn.Module]:
    model = run.build(architecture)
    model.load_state_dict(stored.value)
    moved = model.to(run.runtime.device).to(memory_format=torch.channels_last)
    return Stored(moved.eval().requires_grad_(False), stored.key)
