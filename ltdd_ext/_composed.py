"""The differentiable operators out of plain PyTorch operations, without checks.

Each takes the arguments of the operator of its name and returns what that returns for the user.
``reference`` offers them with checks. Derivatives that no kernel computes are taken through them,
so nothing in here may depend on values in a way that PyTorch cannot differentiate or batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp
from torch.nn.grad import conv2d_weight

_RELU, _AVG2, _MAX3 = 1, 2, 3  # as operators spell the switches


def row_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and m2 of each (sample, channel); see :func:`ltdd_ext.row_moments`."""
    rows = x.flatten(2).double()  # (N, C, S)
    mean = rows.mean(dim=2)
    m2 = (rows - mean.unsqueeze(2)).square().sum(dim=2)
    return mean, m2


def bn_act_moments(
    x: Tensor, k: Tensor, h: Tensor, residual: Tensor | None, act: int, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Frozen batch norm, activation, pool, and moments; see :func:`ltdd_ext.bn_act_moments`."""
    per_channel = (-1,) + (1,) * (x.dim() - 2)
    y = k.detach().view(per_channel) * x.to(k.dtype) + h.detach().view(per_channel)
    if residual is not None:
        y = y + residual
    return (activated(y, act, pool).to(x.dtype), *row_moments(x))


def norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, per_image: bool, eps: float, act: int, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm by the statistics of x, activation, pool, and moments; see :func:`ltdd_ext.norm_act`."""
    per_channel = (-1,) + (1,) * (x.dim() - 2)
    shared = [dim for dim in range(x.dim()) if dim > 1 or (dim == 0 and not per_image)]
    wide = x.to(weight.dtype)
    var, mean = torch.var_mean(wide, shared, correction=0, keepdim=True)
    normed = (wide - mean) * torch.rsqrt(var + eps)
    y = normed * weight.view(per_channel) + bias.view(per_channel)
    return (activated(y, act, pool).to(x.dtype), *row_moments(x.detach()))


def norm_act_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    m2: Tensor,
    *switches: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`norm_act`; the moments are those of x, and found anew."""

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return norm_act(x, weight, bias, *switches)[0]

    gradients: tuple[Tensor, Tensor, Tensor] = vjp(output, x, weight, bias)[1](grad_y)
    return gradients


def activated(y: Tensor, act: int, pool: int) -> Tensor:
    if act == _RELU:
        y = torch.relu(y)
    if pool == _MAX3:
        return F.max_pool2d(y, 3, 2, 1)
    return F.avg_pool2d(y, 2) if pool == _AVG2 else y


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution with padding 1; see :func:`ltdd_ext.conv3x3`."""
    return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=1)


def conv3x3_backward(grad_y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of taps and bias of :func:`conv3x3`, of float32 at least."""
    taps = (grad_y.shape[1], x.shape[1], 3, 3)
    if x.dtype == torch.bfloat16:
        grad_y, x = grad_y.float(), x.float()
    return conv2d_weight(x, taps, grad_y, padding=1), grad_y.sum((0, 2, 3))


def align_loss(
    means: Sequence[Tensor],
    m2s: Sequence[Tensor],
    sizes: Sequence[int],
    labels: Tensor,
    global_means: Sequence[Tensor],
    global_vars: Sequence[Tensor],
    class_means: Sequence[Tensor],
    class_vars: Sequence[Tensor],
    weights: Sequence[float],
    class_weight: float,
) -> Tensor:
    """Compute the alignment objective of all layers; see :func:`ltdd_ext.align_loss`."""
    loss = labels.new_zeros((), dtype=torch.float64)
    everything = torch.zeros_like(labels)
    for layer, weight in enumerate(weights):
        rows = (means[layer].double(), m2s[layer].double(), sizes[layer])
        whole = (global_means[layer].unsqueeze(0), global_vars[layer].unsqueeze(0))
        loss = loss + weight * _mean_gap(*rows, everything, *whole)
        if class_weight != 0.0:
            tables = (class_means[layer], class_vars[layer])
            loss = loss + class_weight * weight * _mean_gap(*rows, labels, *tables)
    return loss.to(means[0].dtype)


def _mean_gap(
    mean: Tensor, m2: Tensor, size: int, group: Tensor, target_mean: Tensor, target_var: Tensor
) -> Tensor:
    """Return |m - tm| + |v - tv|, mean over the groups that have rows, by Chan's merge of rows."""
    table = torch.zeros_like(target_mean, dtype=mean.dtype)
    ones = torch.ones_like(group, dtype=mean.dtype)
    rows = table.new_zeros(len(table)).index_add(0, group, ones)
    count = rows.clamp(min=1.0).unsqueeze(1)
    group_mean = table.index_add(0, group, mean) / count
    squares = m2 / size + (mean - group_mean[group]).square()
    group_var = table.index_add(0, group, squares) / count
    to_mean, to_var = target_mean.detach().double(), target_var.detach().double()
    gaps = _norm(group_mean - to_mean) + _norm(group_var - to_var)
    present = rows > 0
    return torch.where(present, gaps, 0.0).sum() / present.sum()


def _norm(gaps: Tensor) -> Tensor:
    """Return the norm of each row; at 0 every derivative of it is 0."""
    squares = gaps.square().sum(dim=1)
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
