"""Train one network on several ranks: each sees a part of every batch.

Gradients are averaged by torch's DistributedDataParallel, and batch norms take their statistics
from the whole batch, so a step is that of one process up to rounding.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltdd.engine.distributed.ranks import current
from ltdd.errors import UserError
from ltdd.models.normalization import SyncedBatchNorm

# Statistics are equal on all ranks. The option has a new name since torch 2.14.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_WITHOUT_BUFFERS: Any = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}
LEAST_IMAGES = 2  # of a batch on a rank; smaller batches are not divided


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
            network,
            process_group=ranks.group_of(first),
            gradient_as_bucket_view=True,
            **_WITHOUT_BUFFERS,
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
