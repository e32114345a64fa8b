"""Batch or instance norm in training, activation and pooling, and nothing kept but the input."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from . import _autograd, _check, _composed
from .bn_act_moments import ACTS, POOLS, Act, Pool, check_channel_vector, check_fused, fused_output
from .row_moments import empty_rows, output_like

_OP = "norm_act"

Over = Literal["batch", "image"]
_OVERS = ("batch", "image")


def check_arguments(
    op: str, x: Tensor, weight: Tensor, bias: Tensor, over: str, eps: float, act: str, pool: str
) -> None:
    """Refuse parameters or switches that do not fit the activation."""
    check_fused(op, x, act, pool)
    check_channel_vector(op, "weight", weight, x)
    check_channel_vector(op, "bias", bias, x)
    if over not in _OVERS:
        _check.bad_value(op, "over", f"one of {_OVERS}", repr(over))
    _check.number(op, "eps", eps)
    if not eps > 0:
        _check.bad_value(op, "eps", "> 0", eps)
    if over == "batch" and x.numel() == x.shape[1] > 0:
        _check.bad_value(op, "x", "with several values a channel over the batch", tuple(x.shape))


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    over: Over = "batch",
    eps: float = 1e-5,
    act: Act = "relu",
    pool: Pool = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``pool(act(norm(x)))``, norm by the statistics of ``x``, and its row moments.

    ``norm(x) = weight (x - mu) / sqrt(var + eps) + bias``. Over the batch, ``mu`` and ``var`` are
    mean and biased variance of a channel over all images and pixels: batch norm as it trains
    (arXiv:1502.03167, Algorithm 1). Over an image they are those of the image's own channel:
    instance norm (arXiv:1607.08022, Eq. 1).

    Args:
        x: Activation (N, C, H, W) or (N, C, S), float32, bfloat16, float16 or float64,
            contiguous or channels_last (read as it lies; other strides are copied first).
        weight: (C,), float32 (float64 for float64).
        bias: (C,), like ``weight``.
        over: ``"batch"`` or ``"image"``.
        eps: Added to the variance.
        act: ``"relu"`` or ``"none"``.
        pool: ``"avg2"`` averages 2x2 blocks, dropping odd edges; ``"none"`` keeps the size.

    Returns:
        ``y`` in the dtype and layout of ``x``, (N, C, H, W) or half that height and width, and
        ``mean`` and ``m2`` of ``x``, both (N, C) and float64, as `row_moments` has them: running
        statistics are a merge of these rows. No gradient flows through the moments.

    Raises:
        TypeError: an argument is no tensor of a supported dtype.
        ValueError: a shape, device or switch does not fit, or a batch has one value a channel only.

    Note:
        Differentiable in ``x``, ``weight`` and ``bias``, any number of times and in forward mode:
        twice in reverse mode by kernels (on CUDA once), whatever goes beyond and the transforms of
        ``torch.func`` by plain PyTorch operations. Only ``x`` is kept for the backward pass, which
        recomputes the ReLU mask. Arithmetic is float32 (float64 for float64), sums are float64.
        Deterministic for any number of threads.

    Example:
        >>> import torch, ltdd_ext
        >>> x = torch.randn(2, 3, 8, 8)
        >>> y, mean, m2 = ltdd_ext.norm_act(x, torch.ones(3), torch.zeros(3), pool="avg2")
        >>> y.shape, mean.shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 3]))
    """
    check_arguments(_OP, x, weight, bias, over, eps, act, pool)
    y, mean, m2 = _call(x, weight, bias, over == "image", eps, ACTS[act], POOLS[pool])
    return y, mean, m2


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, per_image: bool, eps: float, act: int, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    return fused_output(x, pool), empty_rows(x), empty_rows(x)


def _fake_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    m2: Tensor,
    per_image: bool,
    eps: float,
    act: int,
    pool: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return output_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _fake_double_backward(
    gg_x: Tensor,
    gg_weight: Tensor,
    gg_bias: Tensor,
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    m2: Tensor,
    per_image: bool,
    eps: float,
    act: int,
    pool: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return fused_output(x, pool), output_like(x), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *ctx.switches = inputs
    _, mean, m2 = output
    ctx.mark_non_differentiable(mean, m2)
    ctx.set_materialize_grads(False)  # or zeros are made for the moments
    ctx.save_for_backward(x, weight, bias, mean, m2)


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_mean: Tensor | None, grad_m2: Tensor | None
) -> tuple[Any, ...]:
    if grad_y is None:
        return (None,) * 7
    return *_call_backward(grad_y, *ctx.saved_tensors, *ctx.switches), None, None, None, None


def _setup_context_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.switches = inputs[6:]


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Differentiate the gradients by what they come from; x also by way of its moments."""
    inputs = (*ctx.saved_tensors, *ctx.switches)
    if _autograd.is_differentiated() or grads[0].is_cuda:  # that kernel is one for CPUs
        needed = ctx.needs_input_grad
        return _autograd.pull_back(_composed.norm_act_backward, inputs, needed, grads)
    gg_y, dx, grad_weight = _call_double_backward(*grads, *inputs)
    return gg_y, dx, grad_weight, *(None,) * 7


def _fake_sums(
    grad_y: Tensor, x: Tensor, k: Tensor, h: Tensor, mean: Tensor, act: int, pool: int
) -> tuple[Tensor, Tensor]:
    return empty_rows(x), empty_rows(x)


torch.library.register_fake("ltdd_ext::norm_act", _fake)
torch.library.register_fake("ltdd_ext::norm_act_sums", _fake_sums)
torch.library.register_fake("ltdd_ext::norm_act_backward", _fake_backward)
torch.library.register_fake("ltdd_ext::norm_act_double_backward", _fake_double_backward)
_call_double_backward = _autograd.last_derivative("norm_act_double_backward", _OP)
_call_backward = _autograd.differentiable(
    "norm_act_backward", _composed.norm_act_backward, _double_backward, _setup_context_backward
)
_call = _autograd.differentiable(_OP, _composed.norm_act, _backward, _setup_context)
