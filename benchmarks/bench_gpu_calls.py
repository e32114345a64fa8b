"""What a call of each public operator costs on a GPU: microseconds of the host, and of the GPU.

The host queues 200 calls without waiting for them; the GPU replays a graph of 20. Small tensors, so
neither is time of the memory. Prints a table; nothing is stored.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ltdd_ext
from benchmarks.bench_gpu import graphed

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CALLS, IN_GRAPH, ROUNDS = 200, 20, 9
LAYERS = (1, 20, 53)


def align(layers: int, backward: bool) -> Callable[[], object]:
    """Return the alignment loss of so many layers of 64 channels."""
    rows = [torch.rand(100, 64, dtype=torch.float64, device="cuda") for _ in range(2 * layers)]
    if backward:
        rows = [one.requires_grad_() for one in rows]
    target = [torch.rand(64, device="cuda") for _ in range(layers)]
    labels = torch.zeros(100, dtype=torch.int64, device="cuda")

    def call() -> object:
        loss = ltdd_ext.align_loss(
            rows[:layers], rows[layers:], [64] * layers, labels, target, target
        )
        return torch.autograd.grad(loss, rows) if backward else loss

    return call


def calls() -> dict[str, Callable[[], object]]:
    """Return one call of each operator, by what it says of itself."""
    x = torch.rand(4, 8, 4, 4, device="cuda")
    wanting = x.clone().requires_grad_()
    k, h = torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")
    labels = torch.arange(4, device="cuda") % 2
    mean, m2 = ltdd_ext.row_moments(x)
    state = ltdd_ext.ClassMoments.zeros(2, 8, "cuda")

    def gradient(outputs: tuple[Tensor, ...]) -> object:
        return torch.autograd.grad(outputs, wanting, [torch.ones_like(one) for one in outputs])

    return {
        "row_moments": lambda: ltdd_ext.row_moments(x),
        "row_moments, both ways": lambda: gradient(ltdd_ext.row_moments(wanting)),
        "bn_act_moments": lambda: ltdd_ext.bn_act_moments(x, k, h),
        "bn_act_moments, both ways": lambda: gradient(ltdd_ext.bn_act_moments(wanting, k, h)),
        "norm_act": lambda: ltdd_ext.norm_act(x, k, h, "image"),
        "norm_act, both ways": lambda: gradient(ltdd_ext.norm_act(wanting, k, h, "image")[:1]),
        "class_moments": lambda: ltdd_ext.class_moments(x, labels, 2),
        "ClassMoments.update_": lambda: state.update_(mean, m2, 16, labels),
        **{f"align_loss, {n} layers": align(n, False) for n in LAYERS},
        **{f"align_loss, {n} layers, both ways": align(n, True) for n in LAYERS},
    }


def host_microseconds(call: Callable[[], object]) -> float:
    """Return the median time that the host needs to queue a call."""
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS)
    torch.cuda.synchronize()
    return 1e6 * statistics.median(times)


def gpu_microseconds(call: Callable[[], object]) -> float:
    """Return the median time of a call in a graph."""

    def several() -> None:
        for _ in range(IN_GRAPH):
            call()

    replay = graphed(several)
    times: list[float] = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / IN_GRAPH)
    return 1e3 * statistics.median(times)


def test_calls() -> None:
    print("\n| call | host us | GPU us |\n| --- | --- | --- |")
    for name, call in calls().items():
        for _ in range(5):
            call()
        print(f"| {name} | {host_microseconds(call):.1f} | {gpu_microseconds(call):.1f} |")
