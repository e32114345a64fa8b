"""Mean and m2 of every (sample, channel) of an activation, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _autograd, _check, _composed

_OP = "row_moments"


def row_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and sum of squared deviations of each (sample, channel) in one pass.

    ``mean[n,c] = sum_s x[n,c,s] / S``, ``m2[n,c] = sum_s (x[n,c,s] - mean[n,c])^2``, S = H*W.
    Every statistic of a batch, of a class or of a data set is a merge of these rows.

    Args:
        x: Activation (N, C, H, W) or (N, C, S), float32, bfloat16, float16 or float64, contiguous
            or channels_last (read as it lies; other strides are copied first).

    Returns:
        ``mean`` and ``m2``, both (N, C), float64 whatever ``x`` is, so that images can be compared
        however far their values lie from zero.

    Raises:
        TypeError: ``x`` is no tensor of a supported dtype.
        ValueError: ``x`` has another number of dimensions or lies on another device.

    Note:
        Differentiable in ``x``, any number of times and in forward mode: one gradient by a kernel,
        whatever goes beyond and the transforms of ``torch.func`` by plain PyTorch operations.
        Deterministic: bit for bit the same for any number of threads and any batch the sample is
        in. NaN and Inf make the moments of their row non-finite. For S = 0 the mean is NaN and m2
        is 0.

    Example:
        >>> import torch, ltdd_ext
        >>> mean, m2 = ltdd_ext.row_moments(torch.ones(2, 3, 4, 4))
        >>> mean.shape, float(m2.sum())
        (torch.Size([2, 3]), 0.0)
    """
    _check.activation(_OP, "x", x)
    mean, m2 = _call(x)
    return mean, m2


def output_like(x: Tensor) -> Tensor:
    """Make the empty tensor that the kernels would: the layout of ``x``, or contiguous."""
    if x.numel() > 0 and not is_rows(x) and is_pixels(x):
        return torch.empty_like(x)
    return x.new_empty(x.shape)


def empty_rows(x: Tensor) -> Tensor:
    """Make the empty table of one moment of ``x``."""
    return x.new_empty((x.shape[0], x.shape[1]), dtype=torch.float64)


def _dense_in_order(x: Tensor, inner_to_outer: tuple[int, ...]) -> bool:
    expected = 1
    for dim in inner_to_outer:
        if x.shape[dim] != 1 and x.stride(dim) != expected:
            return False
        expected *= x.shape[dim]
    return True


def is_rows(x: Tensor) -> bool:
    """Tell whether each row lies together (NCHW); may hold together with the other layout."""
    return _dense_in_order(x, (3, 2, 1, 0) if x.dim() == 4 else (2, 1, 0))


def is_pixels(x: Tensor) -> bool:
    """Tell whether the channels of each pixel lie together (NHWC, channels_last)."""
    return _dense_in_order(x, (1, 3, 2, 0) if x.dim() == 4 else (1, 2, 0))


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_rows(x), empty_rows(x)


def _fake_backward(grad_mean: Tensor, grad_m2: Tensor, x: Tensor, mean: Tensor) -> Tensor:
    return output_like(x)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    (x,) = inputs
    ctx.save_for_backward(x, output[0])


def _backward(ctx: Any, grad_mean: Tensor, grad_m2: Tensor) -> Tensor | None:
    x, mean = ctx.saved_tensors
    dx: Tensor | None
    if _autograd.is_differentiated():
        (dx,) = _autograd.pull_back(
            _composed.row_moments, (x,), ctx.needs_input_grad, (grad_mean, grad_m2)
        )
    else:
        dx = _call_backward(grad_mean, grad_m2, x, mean)
    return dx


torch.library.register_fake("ltdd_ext::row_moments", _fake)
torch.library.register_fake("ltdd_ext::row_moments_backward", _fake_backward)
_call_backward = _autograd.last_derivative("row_moments_backward", _OP)
_call = _autograd.differentiable(_OP, _composed.row_moments, _backward, _setup_context)
