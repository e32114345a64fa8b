"""Where the time of labels and of a student's step goes, beside their convolutions alone.

A step is one of 25 views of 100 images, as stage 6 takes it. ``convolutions`` is every convolution
of the network at its own input, as the package computes it (``ltdd_ext.nn.convolve``): forward and
its gradients for a step, forward alone for labels. One thread, CPU time of that thread.

``python -m benchmarks -s -k student`` prints the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from benchmarks.timing import keep_freed_pages
from ltdd.config import EvaluationConfig
from ltdd.data.augmentation.student_views import ViewSchedule, mix_labels, render
from ltdd.data.image_spec import Normalization
from ltdd.engine.cuda_graphs import MovingAverage
from ltdd.engine.runtime import Runtime
from ltdd.models import Network, build_model
from ltdd.models.inference import fused
from ltdd.stages.evaluation.loss import student_loss
from ltdd.stages.evaluation.optimizer import build_optimizer
from ltdd.stages.relabeling import label_views
from ltdd_ext.nn import convolve

IMAGES, CLASSES, STEPS = 100, 10, 60
Seconds = dict[str, list[float]]


def alone(
    network: Network,
    images: Tensor,
    gradients: bool,
    by: Callable[[nn.Module, Tensor], Tensor] = convolve,
) -> Callable[[], None]:
    """Return a run of every convolution at its own input, in the precision autocast asks for."""
    work: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: work.append((layer, given[0])))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert isinstance(network.body, nn.Sequential)
    blocks = [block for block in network.body if isinstance(block, nn.Sequential)]
    separate = nn.Sequential(*(nn.Sequential(*block) for block in blocks))
    with torch.no_grad():
        separate(images)
    for hook in hooks:
        hook.remove()
    first = work[0][1]
    kept = [(layer, x.detach().requires_grad_(x is not first)) for layer, x in work]

    def run() -> None:
        for layer, x in kept:
            y = by(layer, x)
            if gradients:
                wanted = [*([x] if x.requires_grad else []), *layer.parameters()]
                torch.autograd.grad(y, wanted, torch.ones_like(y))

    return run


def timed(seconds: Seconds, name: str, work: Callable[[], object]) -> None:
    start = time.thread_time()
    work()
    seconds.setdefault(name, []).append(time.thread_time() - start)


class Parts(AbstractContextManager["Parts"]):
    """Measures the parts of a step that follow each other."""

    def __init__(self, seconds: Seconds) -> None:
        self._seconds, self._start = seconds, 0.0

    def __enter__(self) -> Parts:
        self._start = self._last = time.thread_time()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._seconds.setdefault("whole step", []).append(time.thread_time() - self._start)

    def end(self, name: str) -> None:
        now = time.thread_time()
        self._seconds.setdefault(name, []).append(now - self._last)
        self._last = now


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3)])
def test_parts_of_a_student_step(side: int, channels: int, precision: str) -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runtime = Runtime(torch.device("cpu"), "bf16" if precision == "bf16" else "fp32", quiet=True)
    config = EvaluationConfig(epochs=-(-STEPS // 4), optimizer="muon")
    schedule = ViewSchedule(0, IMAGES, side, side, True, config)
    images = torch.randint(0, 256, (IMAGES, channels, side, side), dtype=torch.uint8)
    labels, soft = torch.arange(IMAGES) % CLASSES, torch.randn(25, CLASSES)
    normalization = Normalization((0.5,) * channels, (0.25,) * channels)
    mean, std = normalization.tensors()

    network = build_model("convnet3", CLASSES, side, channels)
    network = network.to(memory_format=torch.channels_last).train()
    averaged, optimizer = (
        MovingAverage(network, 0.99),
        build_optimizer(network, config, mean.device),
    )
    shown = render(next(iter(schedule.epoch(0))), images[:25], mean, std)
    with runtime.autocast():
        convolutions = alone(network, shown, gradients=True)
    seconds: Seconds = {}
    for view in (view for epoch in range(config.epochs) for view in schedule.epoch(epoch)):
        with Parts(seconds) as parts:
            batch = render(view, images[view.indices], mean, std)
            parts.end("views")
            with runtime.autocast():
                logits = network(batch)
            parts.end("forward")
            loss = student_loss(logits, soft, mix_labels(view, labels, CLASSES), config)
            parts.end("loss")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            parts.end("backward")
            optimizer.step()
            parts.end("optimizer")
            averaged.update()
            parts.end("average")
        with runtime.autocast():
            timed(seconds, "convolutions", convolutions)
    step = {name: 1e3 * median(times[4:]) for name, times in seconds.items()}
    print(f"\nstudent, convnet3, {side} px, {precision}: ms of a step of 25 views")
    for name, value in step.items():
        print(f"{name:>14}: {value:7.3f}, {value / step['whole step']:4.0%}")

    teacher = build_model("convnet3_bn", CLASSES, side, channels)
    teacher = teacher.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    with runtime.autocast():
        convolutions = alone(teacher, shown, gradients=False)
    answer, seconds = fused(teacher), {}

    def label_all() -> None:
        label_views(images, [teacher], schedule, normalization, runtime)

    for _ in range(7):
        timed(seconds, "labels", label_all)
        with runtime.autocast(), torch.no_grad():
            timed(seconds, "teacher, 25 views", lambda: answer(shown))
            timed(seconds, "convolutions", convolutions)
    views = IMAGES * config.epochs
    took = median(seconds["labels"])
    print(f"labels, convnet3_bn: {views / took:.0f} views/s, {25e3 * took / views:.3f} ms for 25")
    for name in ("teacher, 25 views", "convolutions"):
        print(f"{name:>18}: {1e3 * median(seconds[name]):7.3f} ms")
