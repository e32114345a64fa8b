"""The two normalisation layers of the field's networks."""

from __future__ import annotations

from torch import nn


def instance_norm(channels: int) -> nn.Module:
    """Return an affine instance norm: no running statistics, so nothing to match in recovery."""
    return nn.GroupNorm(channels, channels, affine=True)


def batch_norm(channels: int) -> nn.Module:
    """Return an affine batch norm with running statistics."""
    return nn.BatchNorm2d(channels)
