"""MobileNetV2 and ShuffleNetV2 of torchvision, with fewer halvings for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import nn
from torchvision.models import MobileNetV2, ShuffleNetV2

from ltdd.models.network import Network
from ltdd.models.resnet import LARGEST_SMALL_IMAGE

# (expansion, maps, blocks, stride) of every stage, arXiv:1801.04381, Table 2; the networks for
# CIFAR images keep the size in the first convolution and in the second stage.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
           (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip


def mobilenet_v2(*, num_classes: int, image_size: int, channels: int) -> Network:
    """Build torchvision's MobileNetV2; up to 64 px two of its five halvings are left out.

    Ends in global average pooling. There is no dropout before the classifier, as in the networks
    for small images.
    """
    small = image_size <= LARGEST_SMALL_IMAGE
    stages = [list(stage) for stage in _STAGES]
    if small:
        stages[1][3] = 1
    net = MobileNetV2(num_classes, inverted_residual_setting=stages)
    first = cast(nn.Conv2d, net.features[0][0])
    net.features[0][0] = _stem(first, channels, 1 if small else 2)
    return Network(_body(features=net.features), net.last_channel, num_classes, "classifier.1")


def shufflenet_v2_05(*, num_classes: int, image_size: int, channels: int) -> Network:
    """Build torchvision's ShuffleNetV2 x0.5; up to 64 px the stem keeps the size of the image.

    The stem of larger images halves them twice, by a stride and by max-pooling. Ends in global
    average pooling.
    """
    small = image_size <= LARGEST_SMALL_IMAGE
    net = ShuffleNetV2([4, 8, 4], [24, 48, 96, 192, 1024], num_classes)
    net.conv1[0] = _stem(cast(nn.Conv2d, net.conv1[0]), channels, 1 if small else 2)
    if small:
        net.maxpool = nn.Identity()
    names = ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5")
    body = _body(**{name: getattr(net, name) for name in names})
    return Network(body, net.fc.in_features, num_classes, "fc")


def _body(**layers: nn.Module) -> nn.Sequential:
    """Return layers by torchvision's names, and global average pooling."""
    return nn.Sequential(OrderedDict(**layers, pool=nn.AdaptiveAvgPool2d(1)))


def _stem(first: nn.Conv2d, channels: int, stride: int) -> nn.Conv2d:
    """Return a first convolution for images of other channels, drawn as torchvision draws it."""
    stem = nn.Conv2d(channels, first.out_channels, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    return stem
