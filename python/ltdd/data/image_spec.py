"""Describe what the images of a run have in common, and turn them into bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Normalization(NamedTuple):
    """Per-channel mean and standard deviation of images scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def tensors(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, float32 (C,) each."""
        return torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)


@dataclass(frozen=True)
class ImageSpec:
    """The form of the images that networks of a run are shown.

    Attributes:
        size: side in pixels.
        channels: 1 for grey images, 3 for RGB.
        num_classes: K.
        normalization: what networks see is ``(image - mean) / std``.
        flip: whether mirroring keeps the class.
    """

    size: int
    channels: int
    num_classes: int
    normalization: Normalization
    flip: bool


class ImageSet(NamedTuple):
    """Images with their classes, as students are trained on them.

    Attributes:
        images: uint8 (M, C, H, W), class-major.
        labels: int64 (M,).
    """

    images: Tensor
    labels: Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to 0..255."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)
