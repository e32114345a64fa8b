"""The networks of the field by name; every one is a `Network` with features and one classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ltdd.errors import UserError
from ltdd.models.convnet import convnet
from ltdd.models.external import EXTERNAL, build_external
from ltdd.models.mobile import mobilenet_v2, shufflenet_v2_05
from ltdd.models.network import Network
from ltdd.models.normalization import batch_norm, instance_norm
from ltdd.models.resnet import resnet9, resnet18, resnet32, resnet50
from ltdd.models.vgg_alexnet import alexnet, vgg11
from ltdd.models.wide_resnet import wide_resnet

__all__ = ["ARCHITECTURES", "Network", "build_model"]

ARCHITECTURES: Mapping[str, str] = {
    "convnet1": "ConvNet-1, width 128, instance norm (8 px and more)",
    "convnet2": "ConvNet-2, width 128, instance norm (8 px and more)",
    "convnet2_w32": "ConvNet-2, width 32, instance norm (8 px and more)",
    "convnet3": "ConvNet-3, width 128, instance norm (8 px and more)",
    "convnet3_w32": "ConvNet-3, width 32, instance norm (8 px and more)",
    "convnet4": "ConvNet-4, width 128, instance norm (16 px and more)",
    "convnet1_bn": "ConvNet-1, width 128, batch norm (8 px and more)",
    "convnet2_bn": "ConvNet-2, width 128, batch norm (8 px and more)",
    "convnet3_bn": "ConvNet-3, width 128, batch norm (8 px and more)",
    "convnet3_w32_bn": "ConvNet-3, width 32, batch norm (8 px and more)",
    "convnet4_bn": "ConvNet-4, width 128, batch norm (16 px and more)",
    "resnet9": "ResNet-9, widths 48 to 192, batch norm: quick to train (8 px and more)",
    "resnet9_w96": "ResNet-9, widths 96 to 384, batch norm (8 px and more)",
    "resnet18": "ResNet-18, 3x3 stem up to 64 px, batch norm",
    "resnet18_in": "ResNet-18, 3x3 stem up to 64 px, instance norm (9 px and more)",
    "resnet50": "ResNet-50, 3x3 stem up to 64 px, batch norm",
    "resnext50": "ResNeXt-50 32x4d, 3x3 stem up to 64 px, batch norm",
    "resnet32": "CIFAR ResNet-32, width 64, batch norm",
    "resnet32_w16": "CIFAR ResNet-32, width 16, batch norm",
    "wrn16_2": "Wide ResNet-16-2, batch norm",
    "mobilenet_v2": "MobileNetV2, two halvings fewer up to 64 px, batch norm",
    "shufflenet_v2_05": "ShuffleNetV2 x0.5, 3x3 stem up to 64 px, batch norm",
    "vgg11": "VGG-11, instance norm (32 px and more)",
    "vgg11_bn": "VGG-11, batch norm (32 px and more)",
    "alexnet": "AlexNet of five convolutions, no norm (8 px and more)",
}
"""Name -> one line about the network; the names `build_model` accepts."""

_BUILDERS: Mapping[str, Callable[..., Network]] = {
    "convnet1": partial(convnet, 1, instance_norm),
    "convnet2": partial(convnet, 2, instance_norm),
    "convnet2_w32": partial(convnet, 2, instance_norm, width=32),
    "convnet3": partial(convnet, 3, instance_norm),
    "convnet3_w32": partial(convnet, 3, instance_norm, width=32),
    "convnet4": partial(convnet, 4, instance_norm),
    "convnet1_bn": partial(convnet, 1, batch_norm),
    "convnet2_bn": partial(convnet, 2, batch_norm),
    "convnet3_bn": partial(convnet, 3, batch_norm),
    "convnet3_w32_bn": partial(convnet, 3, batch_norm, width=32),
    "convnet4_bn": partial(convnet, 4, batch_norm),
    "resnet9": partial(resnet9, 48),
    "resnet9_w96": partial(resnet9, 96),
    "resnet18": partial(resnet18, batch_norm),
    "resnet18_in": partial(resnet18, instance_norm),
    "resnet50": partial(resnet50, 1, 64),
    "resnext50": partial(resnet50, 32, 4),
    "resnet32": partial(resnet32, 64),
    "resnet32_w16": partial(resnet32, 16),
    "wrn16_2": partial(wide_resnet, 16, 2),
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v2_05": shufflenet_v2_05,
    "vgg11": partial(vgg11, instance_norm),
    "vgg11_bn": partial(vgg11, batch_norm),
    "alexnet": alexnet,
}


def build_model(name: str, num_classes: int, image_size: int, channels: int) -> Network:
    """Build a freshly initialised network; weights come from torch's global generator.

    Args:
        name: One of `ARCHITECTURES`, or a network from elsewhere as `torchvision:NAME`, `timm:NAME`
            or `python:package.module:factory` (`ltdd.models.external`).
        num_classes: Number of classes K.
        image_size: Side of the square images in pixels.
        channels: 1 for grey images, 3 for RGB.

    Returns:
        A `Network` in training mode, float32, on the CPU.

    Raises:
        UserError: the name is unknown, or the network needs larger images.
    """
    if name.startswith(tuple(EXTERNAL)):
        return build_external(name, num_classes, image_size, channels)
    if name not in _BUILDERS:
        known = ", ".join([*ARCHITECTURES, *EXTERNAL.values()])
        raise UserError(f"expected an architecture among {known}; got {name!r}")
    return _BUILDERS[name](num_classes=num_classes, image_size=image_size, channels=channels)
