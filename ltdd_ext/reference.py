"""The operators in plain PyTorch: read it to learn the maths, test and measure against it.

Same names, arguments and results as the compiled operators, differentiable by ordinary autograd,
on any device. The maths of what is differentiable stands in ``_composed``. Letters: N batch,
C channels, S = H*W, K classes (the paper's C), L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _check, _composed
from .align_loss import check_arguments
from .bn_act_moments import ACTS, FROZEN_POOLS, POOLS, Act, FrozenPool, Pool
from .bn_act_moments import check_arguments as check_bn_act
from .class_moments import FinishedMoments, check_batch, check_merge, check_state, check_update
from .conv3x3 import check_arguments as check_conv3x3
from .norm_act import Over
from .norm_act import check_arguments as check_norm_act
from .synced_norm_act import Gather, check_synced, merged

__all__ = [
    "align_loss",
    "bn_act_moments",
    "class_moments",
    "class_moments_finish",
    "class_moments_merge_",
    "class_moments_update_",
    "conv3x3",
    "norm_act",
    "row_moments",
    "synced_norm_act",
]


def row_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and m2 of each (sample, channel); see :func:`ltdd_ext.row_moments`."""
    _check.activation("row_moments", "x", x)
    return _composed.row_moments(x)


def bn_act_moments(
    x: Tensor,
    k: Tensor,
    h: Tensor,
    residual: Tensor | None = None,
    act: Act = "relu",
    pool: FrozenPool = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Frozen batch norm, activation, pool, and moments; see :func:`ltdd_ext.bn_act_moments`."""
    check_bn_act("bn_act_moments", x, k, h, residual, act, pool)
    return _composed.bn_act_moments(x, k, h, residual, ACTS[act], FROZEN_POOLS[pool])


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    over: Over = "batch",
    eps: float = 1e-5,
    act: Act = "relu",
    pool: Pool = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm by the statistics of x, activation, pool, and moments; see :func:`ltdd_ext.norm_act`."""
    check_norm_act("norm_act", x, weight, bias, over, eps, act, pool)
    return _composed.norm_act(x, weight, bias, over == "image", eps, ACTS[act], POOLS[pool])


def synced_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gather: Gather,
    eps: float = 1e-5,
    act: Act = "relu",
    pool: Pool = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`norm_act` over the batches of several processes; see :func:`ltdd_ext.synced_norm_act`.

    ``gather`` has to be differentiable where gradients are wanted.
    """
    check_synced("synced_norm_act", x, weight, bias, gather, eps, act, pool)
    means, m2s = _composed.row_moments(x)
    own, own_m2 = merged(means, m2s, means.new_full((len(means), 1), x.shape[2:].numel()))
    rows = gather(torch.cat([own, own_m2, own.new_tensor([x.numel() // x.shape[1]])]))
    means, m2s, counts = rows.split([x.shape[1], x.shape[1], 1], dim=1)
    mean, m2 = merged(means, m2s, counts)
    per_channel = (-1,) + (1,) * (x.dim() - 2)
    inverse_sd = torch.rsqrt(m2 / counts.sum() + eps).view(per_channel)
    normed = (x.to(weight.dtype) - mean.view(per_channel)) * inverse_sd
    y = _composed.activated(
        normed * weight.view(per_channel) + bias.view(per_channel), ACTS[act], POOLS[pool]
    )
    return y.to(x.dtype), mean.detach(), m2.detach(), counts.sum().detach()


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution with padding 1; see :func:`ltdd_ext.conv3x3`."""
    check_conv3x3("conv3x3", x, weight, bias)
    return _composed.conv3x3(x, weight, bias)


def class_moments(x: Tensor, labels: Tensor, num_classes: int) -> FinishedMoments:
    """Compute per-class statistics of one batch; see :func:`ltdd_ext.class_moments`."""
    op = "class_moments"
    check_batch(op, x, labels, num_classes)
    _check.label_range(op, labels, num_classes)
    image_mean, m2 = row_moments(x.detach())
    image_var = m2 / x.shape[2:].numel()
    table = image_mean.new_zeros(num_classes, x.shape[1])
    images = torch.bincount(labels, minlength=num_classes).unsqueeze(1)  # 0 / 0 is NaN
    mean = table.index_add(0, labels, image_mean) / images
    within = table.index_add(0, labels, image_var) / images
    between = table.index_add(0, labels, (image_mean - mean[labels]).square()) / images
    return FinishedMoments(mean, within, between, within + between)


def class_moments_update_(
    count: Tensor,
    mu: Tensor,
    within: Tensor,
    between: Tensor,
    mean: Tensor,
    m2: Tensor,
    spatial_size: int,
    labels: Tensor,
) -> None:
    """Add a batch to per-class statistics; see :func:`ltdd_ext.class_moments_update_`."""
    check_update(
        "class_moments_update_", (count, mu, within, between), mean, m2, spatial_size, labels
    )
    _check.label_range("class_moments_update_", labels, mu.shape[0])
    batch_count = torch.zeros_like(count).index_add_(0, labels, torch.ones_like(labels))
    images = batch_count.clamp(min=1).unsqueeze(1)
    image_mean = mean.detach().double()
    batch_mu = torch.zeros_like(mu).index_add_(0, labels, image_mean) / images
    gap2 = (image_mean - batch_mu[labels]).square()
    batch_between = torch.zeros_like(mu).index_add_(0, labels, gap2)
    batch_within = torch.zeros_like(mu).index_add_(0, labels, m2.detach().double() / spatial_size)
    class_moments_merge_(
        count, mu, within, between, batch_count, batch_mu, batch_within, batch_between
    )


def class_moments_merge_(
    count: Tensor,
    mu: Tensor,
    within: Tensor,
    between: Tensor,
    other_count: Tensor,
    other_mu: Tensor,
    other_within: Tensor,
    other_between: Tensor,
) -> None:
    """Merge two states by Chan's formula; see :func:`ltdd_ext.class_moments_merge_`."""
    other = (other_count, other_mu, other_within, other_between)
    check_merge("class_moments_merge_", (count, mu, within, between), other)
    here, there = count.double().unsqueeze(1), other_count.double().unsqueeze(1)
    alpha = there / (here + there).clamp(min=1)  # the dynamic momentum B / (N + B)
    delta = torch.where(there > 0, other_mu - mu, 0.0)
    mu += alpha * delta
    between += torch.where(there > 0, other_between + alpha * here * delta.square(), 0.0)
    within += torch.where(there > 0, other_within, 0.0)
    count += other_count


def class_moments_finish(
    count: Tensor, mu: Tensor, within: Tensor, between: Tensor
) -> FinishedMoments:
    """Turn sums into per-class statistics; see :func:`ltdd_ext.class_moments_finish`."""
    check_state("class_moments_finish", (count, mu, within, between))
    images = count.double().unsqueeze(1)
    seen = images > 0
    none = torch.full_like(mu, float("nan"))
    mean = torch.where(seen, mu, none)
    within_var = torch.where(seen, within / images, none)
    between_var = torch.where(seen, between / images, none)
    return FinishedMoments(mean, within_var, between_var, within_var + between_var)


def align_loss(
    means: Sequence[Tensor],
    m2s: Sequence[Tensor],
    sizes: Sequence[int],
    labels: Tensor,
    global_means: Sequence[Tensor],
    global_vars: Sequence[Tensor],
    class_means: Sequence[Tensor] = (),
    class_vars: Sequence[Tensor] = (),
    weights: Sequence[float] | None = None,
    class_weight: float = 0.0,
) -> Tensor:
    """Compute the alignment objective of all layers; see :func:`ltdd_ext.align_loss`."""
    check_arguments(
        "align_loss", means, m2s, sizes, labels, global_means, global_vars, class_means,
        class_vars, weights, class_weight,
    )  # fmt: skip
    layer_weights = [1.0] * len(means) if weights is None else list(weights)
    if class_weight != 0.0:
        _check.label_range("align_loss", labels, len(class_means[0]))
    return _composed.align_loss(
        means, m2s, sizes, labels, global_means, global_vars, class_means, class_vars,
        layer_weights, class_weight,
    )  # fmt: skip
