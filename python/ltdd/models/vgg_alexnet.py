"""VGG-11 and AlexNet in the small-image form of the cross-architecture tables."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ltdd.errors import UserError
from ltdd.models.network import Network

VGG11_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg11(
    norm: Callable[[int], nn.Module],
    *,
    num_classes: int,
    image_size: int,
    channels: int,
) -> Network:
    """Build VGG-11 with a norm after every convolution and one linear layer on 512 features.

    At 32 px the five poolings leave one pixel; larger images are averaged over what is left, as
    the ImageNet VGG does, so the classifier has the same size everywhere.

    Raises:
        UserError: the image is smaller than 32 px.
    """
    if image_size < 32:
        raise UserError(
            f"vgg11: expected image size >= 32 (it halves the image 5 times), got {image_size}"
        )
    layers: list[nn.Module] = []
    maps = channels
    for stage in VGG11_STAGES:
        for width in stage:
            layers += [nn.Conv2d(maps, width, 3, padding=1), norm(width), nn.ReLU(inplace=True)]
            maps = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    layers.append(nn.AdaptiveAvgPool2d(1))
    return Network(nn.Sequential(*layers), maps, num_classes)


def alexnet(*, num_classes: int, image_size: int, channels: int) -> Network:
    """Build the five-convolution AlexNet without norms; flattened features, no global pooling.

    From 64 px the first convolution has stride 2, so 32 and 64 px both give 4x4x192 features.

    Raises:
        UserError: the image is too small for three poolings.
    """
    stride = 2 if image_size >= 64 else 1
    side = -(-image_size // stride) >> 3
    if side < 1:
        raise UserError(
            f"alexnet: expected image size >= 8 (it halves the image 3 times), got {image_size}"
        )
    # (outputs, kernel, stride, pooled)
    plan = ((128, 5, stride, True), (192, 5, 1, True), (256, 3, 1, False), (192, 3, 1, False))
    layers: list[nn.Module] = []
    maps = channels
    for outputs, kernel, step, pooled in (*plan, (192, 3, 1, True)):
        layers.append(nn.Conv2d(maps, outputs, kernel, stride=step, padding=kernel // 2))
        layers.append(nn.ReLU(inplace=True))
        if pooled:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        maps = outputs
    return Network(nn.Sequential(*layers), maps * side * side, num_classes)
