"""Other ways to compute the same: published recovery code, plain PyTorch, its compiler.

Each function returns a scalar loss (or statistics) of an activation, written the way its kind is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import ltdd_ext


def published_gap(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Compute the hook that published recovery code shares: two passes, a transposed copy."""
    got_mean = x.mean([0, 2, 3])
    got_var = x.permute(1, 0, 2, 3).contiguous().view(x.size(1), -1).var(1, unbiased=False)
    gap: Tensor = torch.norm(got_mean - mean, 2) + torch.norm(got_var - var, 2)
    return gap


def plain_gap(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Compute it by the one call PyTorch has for both moments."""
    got_var, got_mean = torch.var_mean(x.float(), [0, 2, 3], correction=0)
    norm = torch.linalg.vector_norm
    gap: Tensor = norm(got_mean - mean) + norm(got_var - var)
    return gap


def fused_gap(x: Tensor, mean: Tensor, var: Tensor, labels: Tensor) -> Tensor:
    """Compute it by row moments and the alignment loss."""
    row_mean, row_m2 = ltdd_ext.row_moments(x)
    size = x.shape[2] * x.shape[3]
    return ltdd_ext.align_loss([row_mean], [row_m2], [size], labels, [mean], [var])


def loop_statistics(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Compute per-class mean and variance by selecting the images of each class in turn."""
    means, variances = [], []
    for label in range(num_classes):
        own = x[labels == label].float()
        means.append(own.mean([0, 2, 3]))
        variances.append(own.var([0, 2, 3], unbiased=False))
    return torch.stack(means), torch.stack(variances)


def index_add_statistics(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Compute per-class mean and variance by scattering every pixel, two exact passes."""
    channels = x.shape[1]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels).float()
    owner = labels.repeat_interleave(x.shape[2] * x.shape[3])
    count = torch.bincount(owner, minlength=num_classes).unsqueeze(1)
    table = pixels.new_zeros(num_classes, channels)
    mean = table.index_add(0, owner, pixels) / count
    gap2 = (pixels - mean[owner]).square()
    return mean, table.index_add(0, owner, gap2) / count


def row_statistics(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Compute them through moments of each row, the form a compiler can do best with."""
    var, mean = torch.var_mean(x.float(), [2, 3], correction=0)
    ones = mean.new_ones(len(labels))
    count = mean.new_zeros(num_classes).index_add_(0, labels, ones).unsqueeze(1)
    table = mean.new_zeros(num_classes, x.shape[1])
    class_mean = table.index_add(0, labels, mean) / count
    within = table.index_add(0, labels, var) / count
    between = table.index_add(0, labels, (mean - class_mean[labels]).square()) / count
    return class_mean, within + between


def fused_statistics(x: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Compute them by the operator for one batch."""
    finished = ltdd_ext.class_moments(x, labels, num_classes)
    return finished.mean, finished.total


def norm_act_pool(x: Tensor, norm: dict[str, Tensor], pool: bool) -> Tensor:
    """Apply a frozen batch norm, a ReLU and an optional 2x2 average pool."""
    y = F.batch_norm(x, norm["mean"], norm["var"], norm["weight"], norm["bias"], False)
    y = torch.relu(y)
    return F.avg_pool2d(y, 2) if pool else y


def training_norm(x: Tensor, weight: Tensor, bias: Tensor, over: str) -> Tensor:
    """Apply a batch or instance norm in training, a ReLU and a 2x2 average pool."""
    if over == "batch":
        y = F.batch_norm(x, None, None, weight, bias, training=True)
    else:
        y = F.instance_norm(x, None, None, weight, bias)
    return F.avg_pool2d(torch.relu(y), 2)
