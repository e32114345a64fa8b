"""One whole recovery step of ConvNet-3 (width 128, batch norm, 100 images of 32 px).

Forward, cross-entropy, whole-batch alignment of all three layers, gradient by the images; weights
are frozen. ``convolutions`` is the same step without anything but the convolutions and the head.
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
from benchmarks import rivals
from benchmarks.timing import keep_freed_pages, median_seconds

WIDTH, CLASSES, BATCH, SIDE = 128, 10, 100, 32

pytestmark = [pytest.mark.benchmark(timer=time.thread_time, group="recovery step")]


def convnet(norm: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, WIDTH, WIDTH):
        layers.append(nn.Conv2d(inputs, WIDTH, 3, padding=1))
        if norm:
            layers += [nn.BatchNorm2d(WIDTH), nn.ReLU()]
        layers.append(nn.AvgPool2d(2) if norm else _Shrink())
    layers += [nn.Flatten(), nn.Linear(WIDTH * 16, CLASSES)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


class _Shrink(nn.Module):
    """Take every second pixel: a stand-in for pooling that costs next to nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_step(benchmark: Any, layout: str, dtype: str) -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    order = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    model, bare = convnet(True).to(memory_format=order), convnet(False).to(memory_format=order)
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
        "convolutions": lambda x: F.cross_entropy(bare(x).float(), labels),
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

    variants = {name: run(form) for name, form in forms.items()}
    want = variants["plain"]()
    for name in ("ours", "peer", "compile"):
        error = float((variants[name]() - want).norm() / want.norm())
        assert error <= (1e-3 if dtype == "fp32" else 0.2), f"{name}: relative error {error:.1e}"
    seconds = median_seconds(variants, rounds=7)
    benchmark.extra_info.update(
        shape=f"{BATCH}x3x{SIDE}x{SIDE}",
        layout=layout,
        dtype=dtype,
        milliseconds={name: 1e3 * value for name, value in seconds.items()},
    )
    benchmark.pedantic(variants["ours"], rounds=1, warmup_rounds=0)
