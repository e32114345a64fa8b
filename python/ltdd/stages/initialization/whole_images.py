"""What a network sees in whole training images of a class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltdd.data.augmentation.crops import normalize
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.runtime import Runtime
from ltdd.models.inference import check_logits, view_logits


def seen_in_class(
    look: Callable[[Tensor], Tensor],
    data: LongTailedData,
    members: Tensor,
    label: int,
    runtime: Runtime,
    chunks: Chunks,
) -> Tensor:
    """Return what is seen, float32 (n, D) on the runtime's device.

    Args:
        look: maps normalised images (N, C, H, W) to (N, D).
        data: the training images.
        members: int64 (n,), those of the class.
        label: the class, for messages.
        runtime: device and precision.
        chunks: how many are looked at at once.

    Raises:
        UserError: a value is NaN or infinite.
    """
    mean, std = data.normalization.tensors(runtime.device)

    def compute(part: slice) -> Tensor:
        views = normalize(data.train_images[members[part]].to(runtime.device), mean, std)
        return view_logits(look, views, runtime, chunks).float()

    seen = torch.cat(list(chunks.map(compute, len(members))))
    check_logits(seen, f"initialization: class {label}")
    return seen
