"""One whole recovery step of ConvNet-3 (width 128, batch norm, 100 images of 32 px).

Forward, cross-entropy, whole-batch alignment of all three layers, gradient by the images; weights
are frozen. ``convolutions`` is every convolution at its own input, forward and gradient by the
input, and nothing between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ltdd_ext
from benchmarks import report, rivals
from benchmarks.timing import SETTING, keep_freed_pages, median_seconds

WIDTH, CLASSES, BATCH, SIDE = 128, 10, 100, 32

pytestmark = [pytest.mark.benchmark(timer=time.thread_time, group="recovery step")]


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, WIDTH, WIDTH):
        layers += [nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        layers.append(nn.AvgPool2d(2))
    layers += [nn.Flatten(), nn.Linear(WIDTH * 16, CLASSES)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def convolutions_alone(model: nn.Sequential, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return a run of every convolution of the model at its true shape, layout and dtype."""
    work = []
    order = torch.channels_last if not x.is_contiguous() else torch.contiguous_format
    for module in model:
        if isinstance(module, nn.Conv2d):
            values = x.detach().to(dtype).contiguous(memory_format=order).requires_grad_()
            assert module.bias is not None
            weight, bias = module.weight.to(dtype), module.bias.to(dtype)
            gradient = torch.randn_like(F.conv2d(values, weight, bias, padding=1).detach())
            work.append((values, weight, bias, gradient))
        if isinstance(module, nn.Flatten):
            break
        x = module(x)

    def run() -> None:
        for values, weight, bias, gradient in work:
            torch.autograd.grad(F.conv2d(values, weight, bias, padding=1), values, gradient)

    return run


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_step(benchmark: Any, layout: str, dtype: str) -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    order = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    model = convnet().to(memory_format=order)
    observed = ltdd_ext.nn.convert_observer(model, strict=True)
    norms = [module for module in model if isinstance(module, nn.BatchNorm2d)]
    torch.manual_seed(2)
    x = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=order).requires_grad_()
    labels = torch.arange(BATCH) % CLASSES
    means = [torch.randn(WIDTH) * 0.1 for _ in norms]
    variances = [torch.rand(WIDTH) for _ in norms]

    def seen_by_hooks(gap: Callable[..., Tensor], x: Tensor) -> Tensor:
        total = torch.zeros(())
        values = x
        at = 0
        for module in model:
            if isinstance(module, nn.BatchNorm2d):
                total = total + gap(values, means[at], variances[at])
                at += 1
            values = module(values)
        return F.cross_entropy(values.float(), labels) + total

    def fused(x: Tensor) -> Tensor:
        logits, moments = observed(x)
        loss = ltdd_ext.align_loss(
            [one.mean for one in moments],
            [one.m2 for one in moments],
            [one.spatial_size for one in moments],
            labels,
            means,
            variances,
        )
        return F.cross_entropy(logits.float(), labels) + loss

    torch._dynamo.reset()
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": fused,
        "peer": lambda x: seen_by_hooks(rivals.published_gap, x),
        "plain": lambda x: seen_by_hooks(rivals.plain_gap, x),
        "compile": torch.compile(lambda x: seen_by_hooks(rivals.plain_gap, x), dynamic=False),
        "no alignment": lambda x: F.cross_entropy(model(x).float(), labels),
    }

    def run(form: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            context: Any = (
                torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else nullcontext()
            )
            with context:
                loss = form(x)
            return torch.autograd.grad(loss, x)[0]

        return step

    variants: dict[str, Callable[[], Any]] = {name: run(form) for name, form in forms.items()}
    variants["convolutions"] = convolutions_alone(
        model, x, torch.bfloat16 if dtype == "bf16" else torch.float32
    )
    want = variants["plain"]()
    for name in ("ours", "peer", "compile"):
        error = float((variants[name]() - want).norm() / want.norm())
        assert error <= (1e-3 if dtype == "fp32" else 0.2), f"{name}: relative error {error:.1e}"
    # Without instructions for bf16, every form takes seconds.
    seconds = median_seconds(variants, rounds=7 if dtype == "fp32" else 3)
    report.add_row(
        benchmark.group,
        f"{BATCH}x3x{SIDE}x{SIDE}",
        layout,
        dtype,
        {name: 1e3 * value for name, value in seconds.items()},
        SETTING,
    )
    benchmark.pedantic(variants["ours"], rounds=1, warmup_rounds=0)
