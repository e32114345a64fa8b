"""Say what a run will take before it starts: passes through networks, and the minutes they need.

One step of every kind is timed on this machine. What is no pass through a network (drawing and
augmenting images, reading files) is not in it, nor whether a stage is found instead of computed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ltdd.config import (
    AnyExperts,
    DistillConfig,
    EvaluationConfig,
    ExpertsConfig,
    RecoveryConfig,
    UniMixExperts,
)
from ltdd.data.image_spec import ImageSpec
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.distributed.ranks import current
from ltdd.engine.runtime import Runtime
from ltdd.engine.watching import units
from ltdd.preflight import expert_networks
from ltdd.stages.baselines import COMPARISONS, FULL
from ltdd.stages.evaluation.optimizer import build_optimizer
from ltdd.stages.experts.training import training_size
from ltdd.stages.run import Run

_TRIED = 16  # images that the first, timed pass of a network sees
_TIMES = 5
_SHORT = 0.25  # seconds; a longer first pass is not tried with all images of a step


class Work(NamedTuple):
    """Equal steps of a stage.

    Attributes:
        stage: its name.
        what: said of them, in the plural.
        steps: how many.
        network: architecture.
        images: that go through it in a step.
        trains: whether gradients are taken too.
        share: of the cost of a step of whole images.
    """

    stage: str
    what: str
    steps: int
    network: str
    images: int
    trains: bool = True
    share: float = 1.0


def planned(config: DistillConfig, data: LongTailedData) -> Iterator[Work]:
    """Yield the work of a run in which nothing is found; recovery by alignment, or none of it.

    Args:
        config: of `DistillConfig.of_classes`.
        data: the long-tailed data.
    """
    experts, evaluation = config.experts, config.evaluation
    for field, name, file in expert_networks(experts):
        if file is None:
            is_master = field == "experts.distil_from"
            settings = experts.of_role("master") if is_master else experts
            training = _training("experts", name, settings, settings.epochs, data)
            yield training
            if experts.distil_from is not None and not is_master:
                looks = f"batches for {experts.distil_from}"
                yield training._replace(
                    what=looks, network=experts.distil_from, trains=False, share=1.0
                )
    observers = [experts.observer, *experts.extra_observers]
    count = data.num_classes * config.ipc
    if isinstance(config.recovery, RecoveryConfig):
        batch = min(config.recovery.max_batch, count)
        steps = config.recovery.iterations * math.ceil(count / batch)
        yield Work("recovery", "iterations", steps, observers[0], batch)
    shown = count * evaluation.decode**2
    batch = min(evaluation.batch_size, shown)
    steps = evaluation.epochs * math.ceil(shown / batch)
    teachers = experts.teacher_name.split("+")
    sets = ["student", *(name for name in evaluation.baselines if name != FULL)]
    kinds = [COMPARISONS[who].kind(config.relabeling.labels) for who in sets]
    tables = kinds.count("fkd") + evaluation.seeds * kinds.count("online")
    for name in teachers if tables else []:
        yield Work("relabeling", "batches of views", tables * steps, name, batch, trains=False)
    students = evaluation.seeds * len(sets)
    what = f"steps of {students} students"
    yield Work("evaluation", what, students * steps, evaluation.student, batch)
    if FULL in evaluation.baselines:
        epochs = evaluation.full_epochs or experts.epochs
        yield _training("evaluation", evaluation.student, experts.of_role("baseline"), epochs, data)


def _training(
    stage: str, network: str, experts: AnyExperts, epochs: int, data: LongTailedData
) -> Work:
    images = len(data.train_labels)
    batch = min(experts.batch_size, images)
    steps = images // batch
    epochs = max(epochs, math.ceil((experts.min_steps or 1) / steps))
    mixes = isinstance(experts, ExpertsConfig | UniMixExperts)
    share = 1.0
    if experts.progressive_resizing:
        sides = [training_size(experts, epoch, data.image_size) for epoch in range(experts.epochs)]
        share = sum(side**2 for side in sides) / len(sides) / data.image_size**2
    return Work(
        stage, f"steps of {network}", epochs * steps, network, batch * (1 + mixes), share=share
    )


def forecast(run: Run) -> str:
    """Return a table of the work of a run with the time it will need on this machine."""
    config = run.config
    known: dict[tuple[str, int, bool], float] = {}
    rows, total = [], 0.0
    for work in planned(config, run.data):
        kind = (work.network, work.images, work.trains)
        if kind not in known:
            known[kind] = _seconds(work, run)
        seconds = work.steps * work.share * known[kind] / current().world
        total += seconds
        rows.append((work.stage, f"{work.steps:,} {work.what}", units.duration(seconds)))
    other = config.recovery.method
    if other not in ("alignment", "none"):
        rows.append(("recovery", f"method {other}", "as its progress says"))
    lines = [f"  {stage:<11} {what:<34} {time}" for stage, what, time in rows]
    return "\n".join([f"from nothing about {units.duration(total)} of network passes:", *lines])


def _seconds(work: Work, run: Run) -> float:
    """Return the seconds of a step, the shortest of several where that is bearable."""
    runtime = run.runtime
    with runtime.global_stream("forecast"):
        network = run.build(work.network)
        network = network.to(runtime.device).to(memory_format=torch.channels_last)
        step = _step(network, work, run.spec, run.config.evaluation, runtime)
        tried = min(_TRIED, work.images)
        first = _timed(lambda: step(tried), runtime)
        if first > _SHORT:
            return first * work.images / tried
        step(work.images)
        # Others may be at work here, which only ever adds.
        return min(_timed(lambda: step(work.images), runtime) for _ in range(_TIMES))


def _step(
    network: nn.Module, work: Work, spec: ImageSpec, config: EvaluationConfig, runtime: Runtime
) -> Callable[[int], None]:
    """Return a step of so many images, with the gradients and the optimizer of the stage."""
    shape = (work.images, spec.channels, spec.size, spec.size)
    images = torch.rand(shape, device=runtime.device).contiguous(memory_format=torch.channels_last)
    recovers = work.stage == "recovery"
    network = network.train(work.trains and not recovers).requires_grad_(not recovers)
    rate = config.learning_rate or 1e-3  # a learned one is not known yet
    config = dataclasses.replace(config, learning_rate=rate)
    optimizer: torch.optim.Optimizer = torch.optim.SGD([images], lr=rate)
    if work.stage == "evaluation":
        optimizer = build_optimizer(network, config, runtime.device)
    elif work.stage == "experts":
        optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)

    def step(count: int) -> None:
        shown = images[:count].requires_grad_(recovers)
        with torch.set_grad_enabled(work.trains), runtime.autocast():
            logits = network(shown)
        if work.trains:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(logits.float().square().mean())
            optimizer.step()

    return step


def _timed(call: Callable[[], None], runtime: Runtime) -> float:
    start = time.perf_counter()
    call()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - start
