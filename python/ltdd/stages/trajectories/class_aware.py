"""The class-aware order of images in which a classifier is trained (DAMED's second stage)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

DRAWS_PER_VISIT = 4


def class_aware_order(members: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Return the images of an epoch: classes in turns, four images of a class at each visit.

    Classes come in a random order, drawn anew once all were there; a class gives its images in a
    random order, drawn anew once they are used up. An epoch has K times as many draws as the
    largest class has images, so every class is drawn as often as any other, up to four.

    Args:
        members: int64 (n_k,), the images of every class.
        generator: of the orders.

    Returns:
        int64 (K * max n_k,).
    """
    wanted = len(members) * max(map(len, members))
    visits = -(-wanted // DRAWS_PER_VISIT)
    images = [_endless(own, generator) for own in members]
    classes = _endless(torch.arange(len(members)), generator)
    drawn = [
        next(images[label])
        for label in (next(classes) for _ in range(visits))
        for _ in range(DRAWS_PER_VISIT)
    ]
    return torch.tensor(drawn[:wanted])


def _endless(items: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from items[torch.randperm(len(items), generator=generator)].tolist()
