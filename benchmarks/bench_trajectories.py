"""Matching trajectories as published: what a student's step costs, times all steps of the schedule.

ConvNet-3 of width 128, CIFAR's images, ten a class: the cells of CIFAR-10. ``backbone`` steps move
all parameters, ``classifier`` ones only the last layer. Each is one step forward and its adjoint
backward. ``hours`` is the published number of iterations at this speed, without training experts.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from ltdd.config import TrajectoryRecovery
from ltdd.data.augmentation.dsa import draw_dsa
from ltdd.engine.runtime import Runtime
from ltdd.models import build_model
from ltdd.models.flat_network import FlatNetwork
from ltdd.recipes import configure, find_recipe
from ltdd.stages.recovery.trajectory import student_loss
from ltdd.stages.recovery.unrolled import Step, Stretch, Synthetic, Unrolled

CLASSES, IPC, SIDE, STEPS = 10, 10, 32, 1
PUBLISHED = ("mtt", "datm", "damed")

pytestmark = [pytest.mark.benchmark(timer=time.thread_time, group="trajectory matching")]


def steps_of(name: str) -> dict[str, int]:
    """Return the published steps of both kinds over all iterations."""
    config = configure(find_recipe(name), "paper", data="cifar10", ipc=IPC).recovery
    assert isinstance(config, TrajectoryRecovery)
    classifier = config.classifier_steps if config.phases == "decoupled" else 0
    return {
        "backbone": config.iterations * config.steps,
        "classifier": config.iterations * classifier,
    }


@pytest.mark.parametrize("kind", ["backbone", "classifier"])
def test_a_step_forward_and_back(kind: str, benchmark: Any) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    count, runtime = CLASSES * IPC, Runtime(torch.device("cpu"), quiet=True)
    network = FlatNetwork(build_model("convnet3", CLASSES, SIDE, 3), "convnet3")
    theta = network.vector()
    split = 0 if kind == "backbone" else network.classifier
    way = Stretch(theta[:split], theta[split:], theta[split:] + 0.01, network.size - split)
    images, labels = torch.randn(count, 3, SIDE, SIDE), torch.randn(count, CLASSES)
    shown = Synthetic(images, labels, torch.tensor(0.01))
    draw = draw_dsa(count, SIDE, ("color",), "single", torch.Generator().manual_seed(0))
    steps = [Step(torch.arange(count), draw)] * STEPS
    unrolled = Unrolled(student_loss(network, soft=True), network.network, runtime)
    benchmark.pedantic(unrolled.gradients, args=(way, shown, steps), rounds=2)
    seconds = benchmark.stats.stats.median / STEPS
    hours = {name: round(steps_of(name)[kind] * seconds / 3600, 1) for name in PUBLISHED}
    benchmark.extra_info.update(seconds=seconds, hours=hours)
    print(f"\n{kind}: {seconds:.3f} s a step of {count} images; published hours: {hours}")
