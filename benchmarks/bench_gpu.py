"""Operators and recovery steps on a GPU: CUDA events, the cache flushed, with and without a graph.

``graph`` is our form replayed from a CUDA graph, ``compile`` is torch.compile, launched the
ordinary way. The yardstick is a copy (a sum for class statistics) of the same number of bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import ltdd_ext
from benchmarks import report, rivals
from benchmarks.cases import (
    CLASSES,
    DTYPES,
    LAYOUTS,
    Forms,
    activation,
    agree,
    bn_act_forms,
    compiled,
    moments_forms,
    statistics_forms,
)
from benchmarks.shapes import EVERY, Shape

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SETTING = "CUDA events, 256 MiB written between runs to empty the cache; torch's caching allocator"
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


def median_milliseconds(forms: Forms) -> dict[str, float]:
    """Run the forms in turn, after warm-ups, and return the median time of each."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for form in forms.values():
        for _ in range(3):
            form()
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            form()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {
        name: statistics.median(start.elapsed_time(end) for start, end in pairs)
        for name, pairs in events.items()
    }


def measure(group: str, forms: Forms, shape: Shape, layout: str, dtype: str, passes: float) -> None:
    """Time all forms in turn and keep the row; they move the activation ``passes`` times."""
    agree(forms, dtype)
    size = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    source = torch.ones(size // 4, device="cuda")
    target = torch.empty_like(source)
    forms = {**forms, "graph": graphed(forms["ours"])}
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


def recovery_forms(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Forms:
    """Return a recovery step of a frozen network: ours, with the hooks of others, with neither."""
    model = model.eval().requires_grad_(False)
    labels = torch.arange(x.shape[0], device=x.device) % CLASSES
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    means = [torch.zeros(norm.num_features, device=x.device) for norm in norms]
    variances = [torch.ones(norm.num_features, device=x.device) for norm in norms]
    observed = ltdd_ext.nn.convert_observer(model, strict=True)

    def fused(x: Tensor) -> Tensor:
        logits, seen = observed(x)
        loss = ltdd_ext.align_loss(
            [one.mean for one in seen],
            [one.m2 for one in seen],
            [one.spatial_size for one in seen],
            labels,
            means,
            variances,
        )
        return F.cross_entropy(logits.float(), labels) + loss

    def hooked(gap: Callable[..., Tensor] | None) -> Callable[[Tensor], Tensor]:
        def loss(x: Tensor) -> Tensor:
            gaps: list[Tensor] = []
            handles = [
                norm.register_forward_pre_hook(
                    lambda _, inputs, i=i: gaps.append(gap(inputs[0], means[i], variances[i]))
                )
                for i, norm in enumerate(norms)
                if gap is not None
            ]
            total = F.cross_entropy(model(x).float(), labels)
            for handle in handles:
                handle.remove()
            return total + sum(gaps)

        return loss

    def run(form: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
                loss = form(x)
            return torch.autograd.grad(loss, x)[0]

        return step

    return {
        "ours": run(fused),
        "peer": run(hooked(rivals.published_gap)),
        "plain": run(hooked(rivals.plain_gap)),
        "compile": run(compiled(hooked(rivals.plain_gap))),
        "no alignment": run(hooked(None)),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_recovery(name: str, layout: str, dtype: str) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=CLASSES)
    model = model.to("cuda", memory_format=LAYOUTS[layout])
    shape = (100, 3, 224, 224)
    forms = recovery_forms(model, activation(shape, layout, "fp32", "cuda"), DTYPES[dtype])
    want = forms["plain"]()
    error = float((forms["ours"]() - want).norm() / want.norm())
    assert error <= (1e-3 if dtype == "fp32" else 0.2), f"relative error {error:.1e}"
    forms["graph"] = graphed(forms["ours"])
    text = "x".join(map(str, shape))
    report.add_row(
        f"recovery step, {name}", text, layout, dtype, median_milliseconds(forms), SETTING
    )
