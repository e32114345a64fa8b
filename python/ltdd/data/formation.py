"""Several training images in one stored image: multi-formation (arXiv:2205.14959, section 3.2).

A stored image is cut into f x f blocks, and each block is enlarged to the full size. Stored pixels
are then used f^2 times as finely, at the price of detail that small images have little of.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.data.image_spec import ImageSet, to_uint8

FILL = 0.5  # of what a side that f does not divide lacks


def decode(images: Tensor, factor: int, fill: float | Tensor = FILL) -> Tensor:
    """Cut images into blocks and enlarge each one bilinearly; differentiable in ``images``.

    Args:
        images: float (N, C, H, H).
        factor: f, blocks along a side.
        fill: what is added at the lower and right border of images whose side f does not divide:
            a number or a tensor that broadcasts to (C, 1, 1).

    Returns:
        (N * f^2, C, H, H), same dtype; the blocks of an image follow each other row by row.
    """
    if factor == 1:
        return images
    count, channels, size, _ = images.shape
    side = block_side(size, factor)
    if lack := side * factor - size:
        images = F.pad(images - fill, (0, lack, 0, lack)) + fill
    blocks = images.view(count, channels, factor, side, factor, side).permute(0, 2, 4, 1, 3, 5)
    stretch = _stretching(side, size, images)
    larger = stretch @ blocks @ stretch.T
    return larger.reshape(-1, channels, size, size).contiguous(memory_format=torch.channels_last)


def tile(images: Tensor, factor: int, resampling: str) -> Tensor:
    """Shrink images into the blocks that `decode` cuts; the inverse of it, but for the detail.

    Args:
        images: float (N * f^2, C, H, H).
        factor: f.
        resampling: ``nearest`` or ``bilinear``.

    Returns:
        (N, C, H, H), same dtype.
    """
    if factor == 1:
        return images
    channels, size = images.shape[1:3]
    side = block_side(size, factor)
    corners = False if resampling == "bilinear" else None
    small = F.interpolate(images, (side, side), mode=resampling, align_corners=corners)
    blocks = small.view(-1, factor, factor, channels, side, side).permute(0, 3, 1, 4, 2, 5)
    whole = blocks.reshape(-1, channels, factor * side, factor * side)
    return whole[..., :size, :size].contiguous()


def decode_set(images: ImageSet, factor: int) -> ImageSet:
    """Return the training images that stored ones hold, with their classes."""
    if factor == 1:
        return images
    pixels = to_uint8(decode(images.images / 255, factor)).contiguous()
    return ImageSet(pixels, images.labels.repeat_interleave(factor**2))


def block_side(size: int, factor: int) -> int:
    """Return the side of a block in pixels."""
    return -(-size // factor)


def _stretching(side: int, size: int, like: Tensor) -> Tensor:
    """Return the matrix (size, side) that interpolates a side linearly.

    A product with it is deterministic on every device, which torch's own interpolation is not.
    """
    grid = torch.arange(size, device=like.device, dtype=like.dtype)
    source = ((grid + 0.5) * (side / size) - 0.5).clamp(0, side - 1)
    pixels = torch.arange(side, device=like.device, dtype=like.dtype)
    return (1 - (source[:, None] - pixels).abs()).clamp_min(0)
