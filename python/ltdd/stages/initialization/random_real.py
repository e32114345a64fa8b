"""Random real images: where distilled ones may start, and what they are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from ltdd.data.image_spec import ImageSet
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime


def draw_random_real(members: Tensor, wanted: int, label: int, runtime: Runtime) -> Tensor:
    """Draw images of a class without replacement; a class with too few starts over.

    Args:
        members: int64 (n,), the training images of the class.
        wanted: number to draw.
        label: the class, which names the random stream.
        runtime: seed.

    Returns:
        int64 (wanted,), some of ``members``.
    """
    generator = runtime.stream("initialization", "random_real", label)
    rounds = -(-wanted // len(members))
    draws = [torch.randperm(len(members), generator=generator) for _ in range(rounds)]
    return members[torch.cat(draws)[:wanted]]


def random_real_images(data: LongTailedData, ipc: int, runtime: Runtime) -> ImageSet:
    """Return ``ipc`` real images of every class, drawn at random."""
    drawn = [
        draw_random_real(data.members(label), ipc, label, runtime)
        for label in range(data.num_classes)
    ]
    labels = torch.arange(data.num_classes).repeat_interleave(ipc)
    return ImageSet(data.train_images[torch.cat(drawn)], labels)
