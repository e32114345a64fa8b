"""Train one network on several ranks: each sees a part of every batch.

Gradients are averaged by torch's DistributedDataParallel, and batch norms take their statistics
from the whole batch, so a step is that of one process up to rounding.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltdd.engine.distributed.ranks import Ranks, current
from ltdd.errors import UserError

# Statistics are equal on all ranks. The option has a new name since torch 2.14.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_WITHOUT_BUFFERS: Any = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}
LEAST_IMAGES = 2  # of a batch on a rank; smaller batches are not divided


class SyncedBatchNorm(nn.BatchNorm2d):
    """A batch norm whose statistics in training are those of the batches of all ranks.

    torch's `SyncBatchNorm` is for GPUs alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised maps of the shape (N, C, H, W) and the dtype given."""
        if not self.training:
            return super().forward(input)
        normalised, mean, m2, count = _Standardized.apply(
            input, self.weight, self.bias, self.eps, current()
        )
        with torch.no_grad():
            self._track(mean, m2, count)
        return normalised  # type: ignore[no-any-return]

    def _track(self, mean: Tensor, m2: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum or 1 / int(self.num_batches_tracked)  # None: the mean of all batches
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((m2 / (count - 1)).to(self.running_var.dtype), share)


class _Standardized(torch.autograd.Function):
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` over the maps of all ranks.

    With ``h = (x - mean) / sqrt(var + eps)``, n values a channel and sums over all ranks,
    ``dx = weight / sqrt(var + eps) * (dy - (sum dy + h sum(dy h)) / n)``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x.double() if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
        own = mean.new_tensor([exact.numel() // exact.shape[1]])
        rows = ranks.join(torch.cat([mean, var * own, own])[None], [1] * ranks.world)
        channels = len(mean)
        means, m2s, counts = rows.split([channels, channels, 1], dim=1)
        count = counts.sum()
        mean = (means * counts).sum(0) / count
        m2 = (m2s + counts * (means - mean).square()).sum(0)  # Chan's merge
        scale = torch.rsqrt(m2 / count + eps)
        h = (exact - _channel(mean)) * _channel(scale)
        ctx.save_for_backward(h, weight, scale, count)
        ctx.ranks, ctx.dtype = ranks, x.dtype
        ctx.mark_non_differentiable(mean, m2, count)
        y = h * _channel(weight) + _channel(bias)
        return y.to(x.dtype), mean, m2, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        h, weight, scale, count = ctx.saved_tensors
        dy = dy.to(h.dtype)
        own = torch.stack([dy.sum((0, 2, 3)), (dy * h).sum((0, 2, 3))])
        total = ctx.ranks.sum(own) / count
        dx = _channel(weight * scale) * (dy - _channel(total[0]) - h * _channel(total[1]))
        return dx.to(ctx.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


class DataParallel:
    """Divides batches among the ranks, or gives all of them every whole batch.

    Args:
        network: trained; its batch norms become ones of all ranks.
        batch_size: images of a batch.

    Attributes:
        batch_size: as given.
        network: to be called instead.
        divides: whether a batch is divided.
        rows: the images of a batch that this rank sees.
    """

    def __init__(self, network: nn.Module, batch_size: int) -> None:
        ranks = current()
        self._ranks, self.divides = ranks, 1 < ranks.world <= batch_size // LEAST_IMAGES
        self.batch_size, self.network, self.rows = batch_size, network, slice(0, batch_size)
        if not self.divides:
            return
        bounds = [batch_size * rank // ranks.world for rank in (ranks.rank, ranks.rank + 1)]
        self.rows = slice(*bounds)
        # Parts may differ by an image, and gradients are averaged with equal weights.
        self._weight = (bounds[1] - bounds[0]) * ranks.world / batch_size
        first = next(network.parameters())
        if first.is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        else:
            _synchronise(network)
        # Of a layer of one channel, whose strides have several names.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        self.network = DistributedDataParallel(
            network, process_group=ranks.group_of(first), **_WITHOUT_BUFFERS
        )

    def weighted(self, loss: Tensor) -> Tensor:
        """Return what to minimise on this rank, given the mean loss of its images."""
        return loss * self._weight if self.divides else loss

    def mean(self, weighted: Tensor) -> Tensor:
        """Return the mean over all ranks of what `weighted` returned: the loss of the batch."""
        return self._ranks.sum(weighted) / self._ranks.world if self.divides else weighted


def _synchronise(network: nn.Module) -> None:
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm  # the same parameters and buffers
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"experts: expected batch norms of type nn.BatchNorm2d on several ranks, got "
                f"{type(module).__name__}; train this network in one process"
            )
