"""Residual networks: ResNet-18 and -50 with a small-image stem, CIFAR ResNet-32, quick ResNet-9."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ltdd.errors import UserError
from ltdd.models.network import Network

LARGEST_SMALL_IMAGE = 64
"""Up to this side ResNet-18 and -50 have the 3x3 stem without pooling; above, the ImageNet stem."""


def resnet18(
    norm: Callable[[int], nn.Module],
    *,
    num_classes: int,
    image_size: int,
    channels: int,
) -> Network:
    """Build torchvision's ResNet-18; up to 64 px with a 3x3 stride-1 stem and no max-pooling.

    Larger images get the stem of the ImageNet network (7x7 stride 2, max-pooling): the small stem
    would keep 64 full-resolution maps. Both end in global average pooling.

    Raises:
        UserError: instance norm would see maps of one pixel, which it turns into a constant.
    """
    last_side = -(-image_size // 8) if image_size <= LARGEST_SMALL_IMAGE else image_size // 32
    if last_side < 2 and not isinstance(norm(1), nn.BatchNorm2d):
        raise UserError(
            f"resnet18_in: expected image size >= 9 (instance norm of a 1x1 map is constant), "
            f"got {image_size}"
        )
    net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes, norm_layer=norm)
    return _with_stem(net, num_classes, image_size, channels)


def resnet50(
    groups: int, width_per_group: int, *, num_classes: int, image_size: int, channels: int
) -> Network:
    """Build torchvision's ResNet-50, or ResNeXt-50 with groups, with the stems of `resnet18`."""
    net = ResNet(
        Bottleneck,
        [3, 4, 6, 3],
        num_classes=num_classes,
        groups=groups,
        width_per_group=width_per_group,
    )
    return _with_stem(net, num_classes, image_size, channels)


def _with_stem(net: ResNet, num_classes: int, image_size: int, channels: int) -> Network:
    if image_size <= LARGEST_SMALL_IMAGE:
        stem, pool = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False), nn.Identity()
    else:
        stem, pool = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False), net.maxpool
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1, net.maxpool = stem, pool
    body = nn.Sequential(OrderedDict((n, m) for n, m in net.named_children() if n != "fc"))
    return Network(body, net.fc.in_features, num_classes, head="fc")


def resnet32(width: int, *, num_classes: int, image_size: int, channels: int) -> Network:
    """Build the CIFAR ResNet-32: three stages of five basic blocks, `width` to 4 * `width` maps.

    Shortcuts between stages have no parameters (every second pixel, zero-padded channels); all
    weights are drawn by `kaiming_normal_`. Ends in global average pooling at any image size.
    """
    del image_size  # Global pooling: the network is the same for every size.
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    maps = width
    for stage in range(3):
        for block in range(5):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(PaddedShortcutBlock(maps, width << stage, stride))
            maps = width << stage
    layers.append(nn.AdaptiveAvgPool2d(1))
    net = Network(nn.Sequential(*layers), maps, num_classes)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return net


def resnet9(width: int, *, num_classes: int, image_size: int, channels: int) -> Network:
    """Build a ResNet-9: a stem and three pooled stages of w, 3w and 4w maps, w = `width`.

    Made for training on few cores: pooling comes before batch norm and activation, so that these
    touch a quarter of the pixels, and widths grow as maps shrink. Ends in global average pooling.

    Raises:
        UserError: the image is too small to be halved three times.
    """
    if image_size < 8:
        raise UserError(f"resnet9: expected image size >= 8, got {image_size}")
    stem = 32
    layers: list[nn.Module] = [
        nn.Conv2d(channels, stem, 3, padding=1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(inplace=True),
    ]
    maps = stem
    for outputs in (width, 3 * width, 4 * width):
        layers.append(PooledBlock(maps, outputs))
        maps = outputs
    layers.append(nn.AdaptiveAvgPool2d(1))
    return Network(nn.Sequential(*layers), maps, num_classes)


class PooledBlock(nn.Module):
    """A convolution that changes the number of maps and halves them, then a residual convolution.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return maps (N, outputs, H // 2, W // 2)."""
        shortcut = F.relu(self.bn1(self.pool(self.conv1(images))))
        return F.relu(self.bn2(self.conv2(shortcut)) + shortcut)


class PaddedShortcutBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a parameter-free shortcut (arXiv:1512.03385, A).

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output, `inputs` or more.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return maps (N, outputs, ceil(H / stride), ceil(W / stride))."""
        hidden = F.relu(self.bn1(self.conv1(images)), inplace=True)
        hidden = self.bn2(self.conv2(hidden))
        shortcut = images[:, :, :: self.stride, :: self.stride]
        if self.padding:
            before = self.padding // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.padding - before))
        return torch.relu(hidden + shortcut)
