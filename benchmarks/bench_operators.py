"""Each operator against published code, plain PyTorch and torch.compile; agreement checked first.

pytest-benchmark times the operator alone; the report uses the interleaved medians of all forms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ltdd_ext
from benchmarks import report, rivals
from benchmarks.shapes import EVERY, SELECTED, Shape
from benchmarks.timing import SETTING, bandwidth, keep_freed_pages, median_seconds, reading

CLASSES = 10
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

pytestmark = [pytest.mark.benchmark(timer=time.thread_time, warmup=False)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    keep_freed_pages()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def activation(shape: Shape, layout: str, dtype: str) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(shape).to(DTYPES[dtype])
    return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def targets(channels: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(channels), torch.rand(channels)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def record(
    benchmark: Any, variants: dict[str, Any], shape: Shape, layout: str, dtype: str, passes: float
) -> None:
    """Time all variants in turn and keep what the report needs."""
    size = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    megabytes = max(1, size >> 20)
    yardstick = reading(megabytes) if passes <= 1 else bandwidth(megabytes)
    seconds = median_seconds({**variants, "yardstick": yardstick})
    moved = (1 if passes <= 1 else 2) * (megabytes << 20)
    report.add_row(
        benchmark.group,
        "x".join(map(str, shape)),
        layout,
        dtype,
        {name: 1e3 * value for name, value in seconds.items()},
        SETTING,
        gigabytes_per_second=passes * size / seconds["ours"] / 1e9,
        yardstick_gigabytes_per_second=moved / seconds["yardstick"] / 1e9,
    )
    benchmark.pedantic(variants["ours"], rounds=3, warmup_rounds=0)


def agree(got: Any, want: Any, dtype: str, what: str) -> None:
    """Refuse to time what computes something else; bf16 rivals round in between."""
    tolerance = 1e-4 if dtype == "fp32" else 4e-2
    got, want = got.float(), want.float()
    error = float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))
    assert error <= tolerance, f"{what}: relative error {error:.1e}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", EVERY, ids=lambda s: "x".join(map(str, s)))
def test_class_statistics(benchmark: Any, shape: Shape, layout: str) -> None:
    benchmark.group = "class statistics"
    x = activation(shape, layout, "fp32").detach()
    labels = torch.arange(shape[0]) % CLASSES
    compiled_form = compiled(rivals.row_statistics)
    forms = {
        "ours": rivals.fused_statistics,
        "loop": rivals.loop_statistics,
        "index_add": rivals.index_add_statistics,
        "compile": compiled_form,
    }
    want = rivals.fused_statistics(x, labels, CLASSES)
    for name, form in forms.items():
        for got, exact in zip(form(x, labels, CLASSES), want, strict=True):
            agree(got, exact, "fp32", name)
    variants = {name: (lambda f=form: f(x, labels, CLASSES)) for name, form in forms.items()}
    record(benchmark, variants, shape, layout, "fp32", 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SELECTED, ids=lambda s: "x".join(map(str, s)))
def test_moments(benchmark: Any, shape: Shape, layout: str, dtype: str) -> None:
    """Whole-batch alignment of one layer, forward and backward."""
    benchmark.group = "moments, forward and backward"
    x = activation(shape, layout, dtype)
    mean, var = targets(shape[1])
    labels = torch.zeros(shape[0], dtype=torch.int64)
    compiled_form = compiled(rivals.plain_gap)

    def run(form: Callable[..., Tensor], *extra: Tensor) -> Any:
        def step() -> Tensor:
            (grad,) = torch.autograd.grad(form(x, mean, var, *extra), x)
            return grad

        return step

    variants = {
        "ours": run(rivals.fused_gap, labels),
        "peer": run(rivals.published_gap),
        "plain": run(rivals.plain_gap),
        "compile": run(compiled_form),
    }
    want = variants["plain"]()
    for name, variant in variants.items():
        agree(variant(), want, dtype, name)
    record(benchmark, variants, shape, layout, dtype, 3)


@pytest.mark.parametrize("pool", [False, True], ids=["relu", "relu-pool"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SELECTED, ids=lambda s: "x".join(map(str, s)))
def test_bn_act_moments(benchmark: Any, shape: Shape, layout: str, dtype: str, pool: bool) -> None:
    """Frozen batch norm, ReLU, optional pool, and alignment, forward and backward."""
    benchmark.group = "BN + ReLU" + (" + pool" if pool else "") + " + moments, forward and backward"
    x = activation(shape, layout, dtype)
    mean, var = targets(shape[1])
    labels = torch.zeros(shape[0], dtype=torch.int64)
    size = shape[2] * shape[3]
    norm = {
        "mean": torch.randn(shape[1]) * 0.1,
        "var": torch.rand(shape[1]) + 0.5,
        "weight": torch.rand(shape[1]) + 0.5,
        "bias": torch.randn(shape[1]) * 0.1,
    }
    k = norm["weight"] * torch.rsqrt(norm["var"] + 1e-5)
    h = norm["bias"] - norm["mean"] * k
    incoming = torch.randn_like(rivals.norm_act_pool(x.detach(), norm, pool)) * 1e-3

    def ours() -> Tensor:
        y, row_mean, row_m2 = ltdd_ext.bn_act_moments(
            x, k, h, act="relu", pool="avg2" if pool else "none"
        )
        loss = ltdd_ext.align_loss([row_mean], [row_m2], [size], labels, [mean], [var])
        return torch.autograd.grad([y, loss], x, [incoming, torch.ones_like(loss)])[0]

    def forward(x: Tensor, gap: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        return rivals.norm_act_pool(x, norm, pool), gap(x, mean, var)

    compiled_forward = compiled(lambda x: forward(x, rivals.plain_gap))

    def run(form: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Any:
        def step() -> Tensor:
            y, loss = form(x)
            return torch.autograd.grad([y, loss], x, [incoming, torch.ones_like(loss)])[0]

        return step

    variants = {
        "ours": ours,
        "peer": run(lambda x: forward(x, rivals.published_gap)),
        "plain": run(lambda x: forward(x, rivals.plain_gap)),
        "compile": run(compiled_forward),
    }
    want = variants["plain"]()
    for name, variant in variants.items():
        agree(variant(), want, dtype, name)
    quarter = 0.25 if pool else 1.0
    record(benchmark, variants, shape, layout, dtype, (1 + quarter) + (1 + quarter + 1))
