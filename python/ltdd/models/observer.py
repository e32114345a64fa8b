"""Watch what enters the batch-norm layers of a frozen observer."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from ltdd.errors import UserError
from ltdd_ext.nn import LayerMoments, convert_observer


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


def batch_norm_names(model: nn.Module) -> list[str]:
    """Return the names of the layers of `batch_norm_layers`, in the same order."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


class Observer:
    """A frozen network that returns its logits together with the moments of its BN inputs.

    Batch norm, activation, pooling and moments are computed in one pass where the network's graph
    allows it (`ltdd_ext.nn.convert_observer`). Gradients flow to the images; parameters are frozen.

    Args:
        model: network with BatchNorm2d layers; it is put into evaluation mode.
        ops: `ltdd_ext` or `ltdd_ext.reference`, supplies the operators.

    Attributes:
        network: the rewritten network.

    Raises:
        UserError: a batch norm has no running statistics or is not used exactly once.
    """

    def __init__(self, model: nn.Module, ops: ModuleType) -> None:
        self.layers = batch_norm_layers(model, type(model).__name__)
        try:
            self.network = convert_observer(model, ops)
        except ValueError as error:
            raise UserError(f"experts.observer: {error}") from error

    def __call__(self, images: Tensor) -> tuple[Tensor, list[LayerMoments]]:
        """Run normalised images (N, C, H, W); return logits (N, K) and one moment pair a layer."""
        logits, moments = self.network(images)
        return logits, moments


@torch.no_grad()
def running_statistics(layers: list[nn.BatchNorm2d]) -> list[tuple[Tensor, Tensor]]:
    """Return the checkpoint's own (mean, variance) of every layer, float64 (C,) on the CPU."""
    pairs = []
    for layer in layers:
        if layer.running_mean is None or layer.running_var is None:
            raise UserError("experts.observer: expected BatchNorm2d layers that track statistics")
        pairs.append((layer.running_mean.double().cpu(), layer.running_var.double().cpu()))
    return pairs
