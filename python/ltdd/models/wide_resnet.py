"""Wide residual networks for small images (arXiv:1605.07146): norm and ReLU before convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.errors import UserError
from ltdd.models.network import Network

STEM = 16  # maps of the first convolution


def wide_resnet(
    depth: int, widening: int, *, num_classes: int, image_size: int, channels: int
) -> Network:
    """Build a WRN-`depth`-`widening`: three stages of (depth - 4) / 6 blocks, 16, 32 and 64 k maps.

    All weights of convolutions are drawn by `kaiming_normal_` over their outputs, as published.
    Ends in global average pooling at any image size.

    Raises:
        UserError: the depth is not 4 more than a multiple of 6.
    """
    del image_size  # Global pooling: the network is the same for every size.
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise UserError(f"wide_resnet: expected a depth of 6 n + 4, got {depth}")
    layers: list[nn.Module] = [nn.Conv2d(channels, STEM, 3, padding=1, bias=False)]
    maps = STEM
    for stage in range(3):
        outputs = widening * (STEM << stage)
        for block in range(blocks):
            layers.append(PreActivationBlock(maps, outputs, 2 if stage and not block else 1))
            maps = outputs
    layers += [nn.BatchNorm2d(maps), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    net = Network(nn.Sequential(*layers), maps, num_classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(net.classifier.bias)
    return net


class PreActivationBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, and a shortcut.

    The shortcut is the input, or, where the number of maps changes, a 1x1 convolution of what the
    first norm and ReLU leave.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = (
            None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return maps (N, outputs, ceil(H / stride), ceil(W / stride))."""
        active = F.relu(self.bn1(images))
        hidden: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return hidden + (images if self.shortcut is None else self.shortcut(active))
