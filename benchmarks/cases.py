"""What is timed: every form of an operator on one input, as functions without arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

import ltdd_ext
from benchmarks import rivals
from benchmarks.shapes import Shape

CLASSES = 10
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Forms = dict[str, Callable[[], Any]]


def activation(shape: Shape, layout: str, dtype: str, device: str = "cpu") -> Tensor:
    """Return a random input that wants its gradient."""
    torch.manual_seed(0)
    x = torch.randn(shape).to(device, DTYPES[dtype])
    return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def compiled(function: Callable[..., Any], fullgraph: bool = False) -> Callable[..., Any]:
    """Compile for exactly these shapes, forgetting what was compiled before.

    With ``fullgraph`` what cannot be one graph is an error.
    """
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=fullgraph)


def _targets(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    channels = x.shape[1]
    labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return torch.randn(channels).to(x.device), torch.rand(channels).to(x.device), labels


def statistics_forms(x: Tensor) -> Forms:
    """Return per-class mean and variance of one batch, ours first."""
    x = x.detach()
    labels = torch.arange(x.shape[0], device=x.device) % CLASSES
    forms = {
        "ours": rivals.fused_statistics,
        "loop": rivals.loop_statistics,
        "index_add": rivals.index_add_statistics,
        "compile": compiled(rivals.row_statistics),
    }
    return {name: partial(form, x, labels, CLASSES) for name, form in forms.items()}


def moments_forms(x: Tensor) -> Forms:
    """Return the whole-batch alignment of one layer with its gradient."""
    mean, var, labels = _targets(x)

    def run(form: Callable[..., Tensor], *extra: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(form(x, mean, var, *extra), x)[0]

    return {
        "ours": run(rivals.fused_gap, labels),
        "peer": run(rivals.published_gap),
        "plain": run(rivals.plain_gap),
        "compile": run(compiled(rivals.plain_gap)),
    }


def bn_act_forms(x: Tensor, pool: bool) -> Forms:
    """Return frozen batch norm, ReLU, optional pool and alignment, with their gradient."""
    mean, var, labels = _targets(x)
    size, channels = x.shape[2] * x.shape[3], x.shape[1]
    norm = {
        "mean": torch.randn(channels) * 0.1,
        "var": torch.rand(channels) + 0.5,
        "weight": torch.rand(channels) + 0.5,
        "bias": torch.randn(channels) * 0.1,
    }
    norm = {name: value.to(x.device) for name, value in norm.items()}
    k = norm["weight"] * torch.rsqrt(norm["var"] + 1e-5)
    h = norm["bias"] - norm["mean"] * k
    incoming = torch.randn_like(rivals.norm_act_pool(x.detach(), norm, pool)) * 1e-3

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        y, row_mean, row_m2 = ltdd_ext.bn_act_moments(x, k, h, pool="avg2" if pool else "none")
        return y, ltdd_ext.align_loss([row_mean], [row_m2], [size], labels, [mean], [var])

    def separate(x: Tensor, gap: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        return rivals.norm_act_pool(x, norm, pool), gap(x, mean, var)

    def run(form: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            y, loss = form(x)
            return torch.autograd.grad([y, loss], x, [incoming, torch.ones_like(loss)])[0]

        return step

    return {
        "ours": run(ours),
        "peer": run(lambda x: separate(x, rivals.published_gap)),
        "plain": run(lambda x: separate(x, rivals.plain_gap)),
        "compile": run(compiled(lambda x: separate(x, rivals.plain_gap))),
    }


def _with_gradients(forms: dict[str, Callable[..., Tensor]], inputs: tuple[Tensor, ...]) -> Forms:
    """Return forward and backward of functions of the same inputs, whose gradients they return."""
    with torch.no_grad():
        incoming = torch.randn_like(forms["plain"](*inputs))

    def run(form: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(form(*inputs), inputs, incoming)

    return {name: partial(run, form) for name, form in forms.items()}


def training_norm_forms(x: Tensor, over: Literal["batch", "image"]) -> Forms:
    """Return norm, ReLU and pool as they train, with all gradients."""
    weight, bias = (
        torch.rand(x.shape[1], device=x.device).add(0.5).requires_grad_() for _ in range(2)
    )

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ltdd_ext.norm_act(x, weight, bias, over, pool="avg2")[0]

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return rivals.training_norm(x, weight, bias, over)

    def synced(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ltdd_ext.synced_norm_act(x, weight, bias, lambda own: own[None], pool="avg2")[0]

    forms = {"ours": ours, "plain": plain, "compile": compiled(plain)}
    if over == "batch" and not x.is_cuda:
        forms["ours, synced"] = synced
    return _with_gradients(forms, (x, weight, bias))


def conv3x3_forms(x: Tensor) -> Forms:
    """Return a convolution to as many channels, with all gradients."""
    torch.manual_seed(1)
    layer = torch.nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1)
    layer = layer.to(memory_format=torch.channels_last)
    assert layer.bias is not None

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight, bias, padding=1)

    forms = {"ours": ltdd_ext.conv3x3, "plain": plain, "compile": compiled(plain)}
    return _with_gradients(forms, (x, layer.weight, layer.bias))


def agree(forms: Forms, dtype: str, through_relu: bool = False) -> None:
    """Refuse to time what computes something else; bf16 rivals round in between.

    Errors are relative, in the Euclidean norm. A norm computed in float32 may lift a value near
    zero over a ReLU in one form and not in another, and the gradient of that value with it.
    """
    tolerance = 4e-2 if dtype == "bf16" else 1e-2 if through_relu else 1e-4
    want = forms["plain" if "plain" in forms else "ours"]()
    for name, form in forms.items():
        got = form()
        pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
        for one, exact in pairs:
            gap = (one.float() - exact.float()).norm()
            error = float(gap / exact.float().norm().clamp(min=1e-12))
            assert error <= tolerance, f"{name}: relative error {error:.1e}"
