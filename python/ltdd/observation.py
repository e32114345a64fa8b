"""Watch what enters the batch-norm layers of a frozen observer."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from ltdd.errors import UserError


@dataclass(frozen=True)
class RowMoments:
    """Moments per (image, channel) of one layer's input.

    Attributes:
        mean: (N, C), mean over the S pixels.
        m2: (N, C), sum over the pixels of squared deviations from that mean.
        spatial_size: S.
    """

    mean: Tensor
    m2: Tensor
    spatial_size: int


def batch_norm_layers(model: nn.Module, name: str = "observer") -> list[nn.BatchNorm2d]:
    """Return the BatchNorm2d layers in the order of registration.

    Raises:
        UserError: there are none, so there is nothing to match.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not layers:
        raise UserError(
            f"experts.observer: expected a network with BatchNorm2d layers, whose statistics "
            f"recovery matches; got {name!r}, which has none (try its _bn variant or resnet18)"
        )
    return layers


class Observer:
    """A frozen network that returns its logits together with the moments of its BN inputs.

    Gradients flow through the moments and the logits to the images; parameters are frozen.

    Args:
        model: network with BatchNorm2d layers; it is put into evaluation mode.
        ops: `ltdd_ext` or `ltdd_ext.reference`, supplies `row_moments`.
    """

    def __init__(self, model: nn.Module, ops: ModuleType) -> None:
        self.model = model.eval().requires_grad_(False)
        self.layers = batch_norm_layers(model, type(model).__name__)
        self._ops = ops

    def __call__(self, images: Tensor) -> tuple[Tensor, list[RowMoments]]:
        """Run normalised images (N, C, H, W); return logits (N, K) and one moment pair a layer."""
        seen: dict[nn.Module, RowMoments] = {}

        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mean, m2 = self._ops.row_moments(inputs[0])
            seen[layer] = RowMoments(mean, m2, inputs[0][0, 0].numel())

        handles = [layer.register_forward_pre_hook(record) for layer in self.layers]
        try:
            logits = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        return logits, [seen[layer] for layer in self.layers]


@torch.no_grad()
def running_statistics(layers: list[nn.BatchNorm2d]) -> list[tuple[Tensor, Tensor]]:
    """Return the checkpoint's own (mean, variance) of every layer, float64 (C,) on the CPU."""
    pairs = []
    for layer in layers:
        if layer.running_mean is None or layer.running_var is None:
            raise UserError("experts.observer: expected BatchNorm2d layers that track statistics")
        pairs.append((layer.running_mean.double().cpu(), layer.running_var.double().cpu()))
    return pairs
