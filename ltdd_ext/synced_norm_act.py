"""A batch norm in training whose batch several processes share, with activation and pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _check
from .bn_act_moments import ACTS, POOLS, Act, Pool
from .norm_act import check_arguments
from .row_moments import empty_rows, row_moments

_OP = "synced_norm_act"

Gather = Callable[[Tensor], Tensor]


def check_synced(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gather: Gather,
    eps: float,
    act: str,
    pool: str,
) -> None:
    """Refuse parameters or switches that do not fit the activation."""
    check_arguments(op, x, weight, bias, "batch", eps, act, pool)
    if not callable(gather):
        _check.bad_type(op, "gather", "a function", type(gather).__name__)


def synced_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gather: Gather,
    eps: float = 1e-5,
    act: Act = "relu",
    pool: Pool = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `norm_act` over the batches of all processes together, each with its own images.

    ``y = pool(act(weight (x - mu) / sqrt(var + eps) + bias))``, ``mu`` and ``var`` a channel's mean
    and biased variance over all images and pixels of all processes (arXiv:1502.03167, Algorithm 1,
    and arXiv:1711.07240). Two short vectors a call travel between processes: 2C + 1 numbers
    forwards, 2C backwards.

    Args:
        x: This process's images, as `norm_act` takes them, on a CPU.
        weight: (C,), equal on all processes.
        bias: (C,), like ``weight``.
        gather: Given a float64 vector (P,), returns those of all processes, (R, P), in the same
            order everywhere. All processes must call it equally often.
        eps: Added to the variance.
        act: ``"relu"`` or ``"none"``.
        pool: ``"avg2"`` or ``"none"``.

    Returns:
        ``y`` in the dtype and layout of ``x``, (N, C, H, W) or half that height and width; ``mean``
        and ``m2``, (C,), float64, over the images of all processes; and the number of values of a
        channel that they are of, float64. No gradient flows through the last three.

    Raises:
        TypeError: an argument is no tensor of a supported dtype.
        ValueError: a shape, device or switch does not fit.

    Note:
        Differentiable once, in ``x``, ``weight`` and ``bias``; the gradients of the last two are
        this process's part of their sums. Only ``x`` is kept for the backward pass.

    Example:
        >>> import torch, ltdd_ext
        >>> x, ones = torch.randn(2, 3, 8, 8), torch.ones(3)
        >>> alone = lambda own: own[None]
        >>> y, mean, m2, count = ltdd_ext.synced_norm_act(x, ones, ones, alone, pool="avg2")
        >>> y.shape, float(count)
        (torch.Size([2, 3, 4, 4]), 128.0)
    """
    check_synced(_OP, x, weight, bias, gather, eps, act, pool)
    if not x.is_cpu:
        _check.bad_value(_OP, "x", "on cpu", x.device)
    y, mean, m2, count = _SyncedNormAct.apply(x, weight, bias, gather, eps, ACTS[act], POOLS[pool])
    return y, mean, m2, count


class _SyncedNormAct(torch.autograd.Function):
    """Row moments, their merge over all processes, and `bn_act_moments` with what comes out.

    With g the gradient behind activation and pool, r = 1 / sqrt(var + eps), k = weight r, and sums
    over the M values that share a mean:
    ``dx = k g - k / M sum g - k r^2 / M (x - mu) sum g (x - mu)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gather: Gather,
        eps: float,
        act: int,
        pool: int,
    ) -> tuple[Tensor, ...]:
        means, m2s = row_moments(x)
        size, channels = x.shape[2:].numel(), x.shape[1]
        own, own_m2 = merged(means, m2s, means.new_full((len(means), 1), size))
        rows = gather(torch.cat([own, own_m2, own.new_tensor([len(means) * size])]))
        counts = rows[:, -1:]
        mean, m2 = merged(rows[:, :channels], rows[:, channels:-1], counts)
        count = counts.sum()
        inverse_sd = torch.rsqrt(m2 / count + eps)
        k = weight.double() * inverse_sd
        h = bias.double() - mean * k
        scale, offset = k.to(weight.dtype), h.to(bias.dtype)
        y, *_ = torch.ops.ltdd_ext.bn_act_moments(x, scale, offset, None, act, pool)
        ctx.save_for_backward(x, scale, offset, mean, inverse_sd, k, count)
        ctx.gather, ctx.act, ctx.pool, ctx.size = gather, act, pool, size
        ctx.dtypes = weight.dtype, bias.dtype
        ctx.mark_non_differentiable(mean, m2, count)
        ctx.set_materialize_grads(False)
        return y, mean, m2, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad_y is None:
            return (None,) * 7
        x, scale, offset, mean, inverse_sd, k, count = ctx.saved_tensors
        ops, switches, rows = torch.ops.ltdd_ext, (ctx.act, ctx.pool), empty_rows(x)
        means = mean.expand_as(rows)
        sums = ops.norm_act_sums(grad_y, x, scale, offset, means, *switches)
        sum_g, sum_gx = (rows_of.sum(0) for rows_of in sums)
        all_g, all_gx = ctx.gather(torch.cat([sum_g, sum_gx])).sum(0).view(2, -1)
        shift = -k * all_g / count
        slope = -k * inverse_sd.square() * all_gx / count
        to_mean, to_m2 = (part.expand_as(rows) for part in (shift * ctx.size, slope / 2))
        dx, _ = ops.bn_act_moments_backward(
            grad_y, to_mean, to_m2, x, scale, offset, None, means, *switches
        )
        grads = (sum_gx * inverse_sd, sum_g)
        grad_weight, grad_bias = (g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))
        return dx, grad_weight, grad_bias, None, None, None, None


def merged(means: Tensor, m2s: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and m2 of rows (R, C) together, of (R, 1) values each (Chan's merge)."""
    total = counts.sum().clamp_min(1)
    mean = (means * counts).sum(0) / total
    return mean, (m2s + counts * (means - mean).square()).sum(0)
