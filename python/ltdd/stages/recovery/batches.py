"""Which images are optimised together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Order = Literal["stratified", "one_per_class", "class_major"]


def plan_batches(
    num_classes: int, ipc: int, max_batch: int, order: Order = "stratified"
) -> list[Tensor]:
    """Split a class-major set into batches.

    * ``stratified``: the same number of images of every class in each batch, as many as fit
    * ``one_per_class``: one image of every class
    * ``class_major``: the set from its beginning to its end

    Where a single image of each class would already exceed ``max_batch``, batches of the first two
    hold one image of some classes.

    Args:
        num_classes: K.
        ipc: images per class.
        max_batch: largest number of images in a batch.
        order: of the images.

    Returns:
        int64 positions in the set, one tensor a batch; every position appears once.
    """
    positions = torch.arange(num_classes * ipc).view(num_classes, ipc)
    if order == "class_major":
        return list(positions.flatten().split(max_batch))
    if num_classes > max_batch:
        return [part for column in positions.T.contiguous() for part in column.split(max_batch)]
    slices = ipc if order == "one_per_class" else -(-ipc // (max_batch // num_classes))
    return [part.reshape(-1) for part in positions.tensor_split(slices, dim=1)]
