"""ConvNet-D, the network of most distillation tables: D blocks of conv, norm, ReLU, pool."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ltdd.errors import UserError
from ltdd.models.network import Network
from ltdd.models.normalization import NormBlock

WIDTH = 128


def convnet(
    depth: int,
    norm: Callable[[int], nn.Module],
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    width: int = WIDTH,
) -> Network:
    """Build a ConvNet that halves the image `depth` times, with `width` maps in every block.

    The last map is flattened without global pooling, at any image size, as the field's ConvNet
    does: 4x4x128 = 2048 features for depth 3 at 32 px and depth 4 at 64 px. Larger images want
    more depth, not pooling.

    Raises:
        UserError: the image is too small to be halved `depth` times.
    """
    side = image_size >> depth
    if side < 1:
        raise UserError(
            f"convnet{depth}: expected image size >= {2**depth} (it halves the image {depth} "
            f"times), got {image_size}"
        )
    inputs = [channels] + [width] * (depth - 1)
    blocks = [
        NormBlock(
            nn.Conv2d(maps, width, kernel_size=3, padding=1),
            norm(width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(kernel_size=2, stride=2),
        )
        for maps in inputs
    ]
    return Network(nn.Sequential(*blocks), width * side * side, num_classes)
