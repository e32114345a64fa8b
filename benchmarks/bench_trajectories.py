"""Matching trajectories as published: what a student's step costs, times all steps of the schedule.

ConvNet-3 of width 128, CIFAR's images, ten a class: the cells of CIFAR-10. ``backbone`` steps move
all parameters, ``classifier`` ones only the last layer; each is one step forward and its adjoint
backward. Beside them a recovery step of RLDD, a ResNet-32 and as many images, and a step of plain
training. Hours are the published numbers of steps at this speed, without the training of experts:
`-s -k published` prints them and leaves a dated file in ``results``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime, timezone

import pytest
import torch

from benchmarks.recovery_forms import recovery_forms
from benchmarks.report import RESULTS, commit, machine_name
from benchmarks.timing import SETTING, keep_freed_pages, median_seconds
from ltdd.config import RecoveryConfig, TrajectoryRecovery
from ltdd.data.augmentation.dsa import draw_dsa
from ltdd.engine.runtime import Runtime
from ltdd.engine.storage.files import write_text
from ltdd.engine.watching.units import duration
from ltdd.models import build_model
from ltdd.models.flat_network import FlatNetwork
from ltdd.recipes import configure, find_recipe
from ltdd.results.tables import markdown_table
from ltdd.stages.recovery.trajectory import student_loss
from ltdd.stages.recovery.unrolled import Step, Stretch, Synthetic, Unrolled

CLASSES, IPC, SIDE, ROUNDS = 10, 10, 32, 5
COUNT = CLASSES * IPC
PUBLISHED = ("rldd", "mtt", "tesla", "ftd", "datm", "damed")

pytestmark = [pytest.mark.benchmark(timer=time.thread_time, group="trajectory matching")]


def published_steps(name: str) -> dict[str, int]:
    """Return how many steps of each kind the published schedule of CIFAR-10 takes."""
    config = configure(find_recipe(name), "paper", data="cifar10", ipc=IPC).recovery
    if isinstance(config, RecoveryConfig):
        return {"recovery": config.iterations * math.ceil(COUNT / config.max_batch)}
    assert isinstance(config, TrajectoryRecovery)
    classifier = config.classifier_steps if config.phases == "decoupled" else 0
    return {
        "backbone": config.iterations * config.steps,
        "classifier": config.iterations * classifier,
    }


def step_forms() -> dict[str, Callable[[], object]]:
    """Return one step of each kind."""
    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"), quiet=True)
    network = FlatNetwork(build_model("convnet3", CLASSES, SIDE, 3), "convnet3")
    unrolled = Unrolled(student_loss(network, soft=True), network.network, runtime)
    theta = network.vector()
    images, labels = torch.randn(COUNT, 3, SIDE, SIDE), torch.randn(COUNT, CLASSES)
    shown = Synthetic(images, labels, torch.tensor(0.01))
    draw = draw_dsa(COUNT, SIDE, ("color",), "single", torch.Generator().manual_seed(0))

    def step(split: int) -> Callable[[], object]:
        start = theta[split:]
        way = Stretch(theta[:split], start, start + 0.01, len(start))
        return lambda: unrolled.gradients(way, shown, [Step(torch.arange(COUNT), draw)])

    def train() -> object:
        leaf = theta.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(leaf, images), labels.softmax(1))
        return torch.autograd.grad(loss, leaf)

    observer = build_model("resnet32", CLASSES, SIDE, 3).to(memory_format=torch.channels_last)
    seen = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    return {
        "training": train,
        "backbone": step(0),
        "classifier": step(network.classifier),
        "recovery": recovery_forms(observer, seen, torch.float32)["ours"],
    }


def test_published_schedules() -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    seconds = median_seconds(step_forms(), ROUNDS)
    totals = {
        name: sum(seconds[kind] * count for kind, count in published_steps(name).items())
        for name in PUBLISHED
    }
    kinds = [
        [kind, f"{value:.3f} s", f"{value / seconds['training']:.1f}"]
        for kind, value in seconds.items()
    ]
    counted = ("backbone", "classifier", "recovery")
    systems = []
    for name, total in totals.items():
        steps = published_steps(name)
        systems.append([name, *(f"{steps.get(kind, 0):,}" for kind in counted), duration(total)])
    said = (
        f"DAMED as published: {totals['damed'] / 3600:.0f} hours on this machine, RLDD: "
        f"{totals['rldd'] / 60:.1f} minutes, of recovery alone and on one thread."
    )
    day = datetime.now(timezone.utc).date().isoformat()
    text = "\n\n".join(
        [
            "# Matching trajectories as published",
            said,
            f"CIFAR-10, {IPC} images a class, fp32; {machine_name()}, torch {torch.__version__}, "
            f"commit {commit()}, {day}, medians of {ROUNDS}; {SETTING}:",
            "```sh\npython -m benchmarks -s -k published_schedules\n```",
            markdown_table(["step of 100 images", "seconds", "steps of training"], kinds),
            markdown_table(["system", *(f"{kind} steps" for kind in counted), "in all"], systems),
        ]
    )
    write_text(RESULTS / f"trajectories-{machine_name()}-{day}.md", text + "\n")
    print(f"\n{text}")
    assert totals["damed"] >= 20 * totals["rldd"]
