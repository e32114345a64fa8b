"""Several networks as one teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.models.network import Network


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

    def features(self, images: Tensor) -> Tensor:
        """Return the members' features side by side, each member's of length one, float32."""
        members = (cast(Network, member) for member in self.members)
        rows = [F.normalize(member.features(images).float(), dim=1) for member in members]
        return torch.cat(rows, dim=1)
