"""Several networks as one teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MeanLogits(nn.Module):
    """Averages the raw logits of networks for the same classes.

    Args:
        members: networks that map (N, C, H, W) to logits (N, K).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K), float32."""
        return torch.stack([member(images).float() for member in self.members]).mean(0)
