"""Operators and recovery steps on a GPU: CUDA events, the cache emptied, with and without a graph.

``graph`` is our form replayed from a CUDA graph and ``compile, graph`` the compiled one; the others
are launched the ordinary way. The yardstick is a copy (a sum for class statistics) of the same
number of bytes.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torchvision
from torch import nn

from benchmarks import report
from benchmarks.bench_step import convnet
from benchmarks.cases import (
    CLASSES,
    DTYPES,
    LAYOUTS,
    Forms,
    activation,
    agree,
    bn_act_forms,
    moments_forms,
    statistics_forms,
    training_norm_forms,
)
from benchmarks.recovery_forms import recovery_forms
from benchmarks.shapes import EVERY, TRAINED, Shape

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SETTING = "CUDA events, 256 MiB written and read before each run; torch's caching allocator"
ROUNDS = 30


def graphed(form: Callable[[], Any]) -> Callable[[], Any]:
    """Capture a form, after warm-ups on a stream of its own, and return its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            form()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        form()
    return graph.replay


def with_graphs(forms: Forms) -> Forms:
    """Add the forms that are replayed from a graph."""
    return {
        **forms,
        "graph": graphed(forms["ours"]),
        "compile, graph": graphed(forms["compile"]),
    }


def median_milliseconds(forms: Forms) -> dict[str, float]:
    """Run the forms in turn, each round in another order, and return the median time of each.

    The cache is written and then read: lines that wait to be written back would cost the form that
    is timed next as much as its own.
    """
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for form in forms.values():
        for _ in range(3):
            form()
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in forms}
    turns, shuffle = list(forms.items()), random.Random(0).shuffle
    for _ in range(ROUNDS):
        shuffle(turns)
        for name, form in turns:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            flush.sum()
            start.record()
            form()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {
        name: statistics.median(start.elapsed_time(end) for start, end in pairs)
        for name, pairs in events.items()
    }


def measure(
    group: str,
    forms: Forms,
    shape: Shape,
    layout: str,
    dtype: str,
    passes: float,
    through_relu: bool = False,
) -> None:
    """Time all forms in turn and keep the row; they move the activation ``passes`` times."""
    agree(forms, dtype, through_relu)
    size = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    source = torch.ones(size // 4, device="cuda")
    target = torch.empty_like(source)
    forms = with_graphs(forms)
    forms["yardstick"] = source.sum if passes <= 1 else lambda: target.copy_(source)
    times = median_milliseconds(forms)
    moved = (1 if passes <= 1 else 2) * size
    report.add_row(
        group,
        "x".join(map(str, shape)),
        layout,
        dtype,
        times,
        SETTING,
        gigabytes_per_second=passes * size / times["ours"] / 1e6,
        yardstick_gigabytes_per_second=moved / times["yardstick"] / 1e6,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", EVERY, ids=lambda s: "x".join(map(str, s)))
def test_class_statistics(shape: Shape, layout: str) -> None:
    forms = statistics_forms(activation(shape, layout, "fp32", "cuda"))
    measure("class statistics", forms, shape, layout, "fp32", 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", EVERY, ids=lambda s: "x".join(map(str, s)))
def test_moments(shape: Shape, layout: str, dtype: str) -> None:
    forms = moments_forms(activation(shape, layout, dtype, "cuda"))
    measure("moments, forward and backward", forms, shape, layout, dtype, 3)


@pytest.mark.parametrize("pool", [False, True], ids=["relu", "relu-pool"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", EVERY, ids=lambda s: "x".join(map(str, s)))
def test_bn_act_moments(shape: Shape, layout: str, dtype: str, pool: bool) -> None:
    group = "BN + ReLU" + (" + pool" if pool else "") + " + moments, forward and backward"
    quarter = 0.25 if pool else 1.0
    forms = bn_act_forms(activation(shape, layout, dtype, "cuda"), pool)
    measure(group, forms, shape, layout, dtype, 3 + 2 * quarter)


@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", TRAINED, ids=lambda s: "x".join(map(str, s)))
def test_norm_act(shape: Shape, layout: str, dtype: str, over: Literal["batch", "image"]) -> None:
    group = f"norm over the {over} + ReLU + pool in training, forward and backward"
    forms = training_norm_forms(activation(shape, layout, dtype, "cuda"), over)
    # x twice and y; x and the gradient of y twice each, and dx.
    measure(group, forms, shape, layout, dtype, 2.25 + (2 * 1.25 + 1), through_relu=True)


def network(name: str) -> tuple[nn.Module, Shape]:
    """Return a network and the batch that recovery gives it."""
    if name == "convnet3":
        return convnet(), (100, 3, 32, 32)
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(num_classes=CLASSES)
    return model, (100, 3, 224, 224)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["convnet3", "resnet18", "resnet50"])
def test_recovery(name: str, layout: str, dtype: str) -> None:
    model, shape = network(name)
    model = model.to("cuda").to(memory_format=LAYOUTS[layout])
    forms = recovery_forms(model, activation(shape, layout, "fp32", "cuda"), DTYPES[dtype])
    want = forms["plain"]()
    error = float((forms["ours"]() - want).norm() / want.norm())
    assert error <= (1e-3 if dtype == "fp32" else 0.2), f"relative error {error:.1e}"
    times = median_milliseconds(with_graphs(forms))
    text = "x".join(map(str, shape))
    report.add_row(f"recovery step, {name}", text, layout, dtype, times, SETTING)
