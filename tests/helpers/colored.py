"""A long-tailed set whose images can be told apart by one pixel."""

from __future__ import annotations

import torch

from ltdd.data.long_tailed_data import LongTailedData


def colored(size: int = 32) -> LongTailedData:
    """Image i is constant at 10 i; the classes have 16, 8 and 1 images."""
    labels = torch.tensor([0] * 16 + [1] * 8 + [2])
    images = (torch.arange(25) * 10).to(torch.uint8)[:, None, None, None].expand(25, 3, size, size)
    return LongTailedData(
        images, labels, images, labels, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, "0" * 64, "test"
    )
