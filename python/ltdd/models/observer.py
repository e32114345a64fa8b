"""Watch what enters the batch-norm layers of a frozen observer, and its convolutions too if asked.

What enters a convolution is watched in two ways: over all its pixels, channel by channel, as in a
batch norm; and in patches, 4x4 pixels of all channels at a time, place by place (EDC).
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.config import WatchedLayers
from ltdd.errors import UserError
from ltdd_ext.nn import LayerMoments, convert_observer, convolve

PATCH = 4  # pixels on a side


class Watched(NamedTuple):
    """Something that an observer measures.

    Attributes:
        name: of the layer whose input it is.
        kind: rows of a batch norm's or a convolution's input are channels; those of patches places.
    """

    name: str
    kind: Literal["batch_norm", "conv", "patches"]


def batch_norm_layers(model: nn.Module, name: str = "observer") -> list[nn.BatchNorm2d]:
    """Return the BatchNorm2d layers in the order of registration.

    Raises:
        UserError: there are none, so there is nothing to match.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not layers:
        raise UserError(
            f"experts.observer: expected a network with BatchNorm2d layers, whose statistics "
            f"recovery matches; got {name!r}, which has none (try its _bn variant or resnet18, or "
            "statistics.layers batch_norm_and_conv)"
        )
    return layers


def watched_layers(
    model: nn.Module, layers: WatchedLayers = "batch_norm", name: str = "observer"
) -> list[Watched]:
    """Return what an observer of a network measures, in the order of registration.

    Args:
        model: the network.
        layers: which of its layers.
        name: of the network, for the message.

    Raises:
        UserError: there is nothing to match.
    """
    if layers == "batch_norm":
        batch_norm_layers(model, name)
    watched = []
    for layer, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            watched.append(Watched(layer, "batch_norm"))
        elif isinstance(module, nn.Conv2d) and layers == "batch_norm_and_conv":
            watched += [Watched(layer, "conv"), Watched(layer, "patches")]
    if not watched:
        raise UserError(
            "experts.observer: expected a network with BatchNorm2d or Conv2d layers, whose "
            f"statistics recovery matches; got {name!r}, which has none"
        )
    return watched


class Observer:
    """A frozen network that returns its logits together with the moments of what enters its layers.

    Batch norm, activation, pooling and moments are computed in one pass where the network's graph
    allows it (`ltdd_ext.nn.convert_observer`). Gradients flow to the images; parameters are frozen.

    Args:
        model: the network; it is put into evaluation mode.
        ops: `ltdd_ext` or `ltdd_ext.reference`, supplies the operators.
        layers: which of its layers are watched.

    Attributes:
        network: the rewritten network.
        watched: what is measured, in the order of the moments.

    Raises:
        UserError: there is nothing to watch, or a watched layer has no running statistics or is not
            used exactly once.
    """

    def __init__(
        self, model: nn.Module, ops: ModuleType, layers: WatchedLayers = "batch_norm"
    ) -> None:
        self.watched = watched_layers(model, layers, type(model).__name__)
        self._norms = [entry.kind == "batch_norm" for entry in self.watched]
        self._seen: dict[nn.Conv2d, list[LayerMoments]] = {}
        model.eval().requires_grad_(False)
        self._convolutions: list[nn.Conv2d] = []
        if layers == "batch_norm_and_conv":
            model = copy.deepcopy(model)  # its convolutions are replaced
            self._convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        self.network: nn.Module = model
        if any(self._norms):
            try:
                self.network = convert_observer(model, ops)
            except ValueError as error:
                raise UserError(f"experts.observer: {error}") from error
        for parent in list(self.network.modules()) if self._convolutions else ():
            for name, child in parent.named_children():
                if isinstance(child, nn.Conv2d):
                    setattr(parent, name, _Measured(child, ops, self._seen))

    def __call__(self, images: Tensor) -> tuple[Tensor, list[LayerMoments]]:
        """Run normalised images (N, C, H, W); return logits (N, K) and the moments of `watched`."""
        self._seen.clear()
        if not any(self._norms):
            logits, norms = self.network(images), []
        else:
            logits, norms = self.network(images)
        if not self._convolutions:
            return logits, norms
        unused = [layer for layer in self._convolutions if layer not in self._seen]
        if unused:
            raise UserError(
                f"experts.observer: expected every convolution to be used, got {unused[0]} unused"
            )
        of_norms = iter(norms)
        of_convolutions = (rows for layer in self._convolutions for rows in self._seen[layer])
        sources = (of_norms if is_norm else of_convolutions for is_norm in self._norms)
        return logits, [next(source) for source in sources]


class _Measured(nn.Module):
    """A convolution that leaves the moments of its input, whole and in patches."""

    def __init__(
        self, layer: nn.Conv2d, ops: ModuleType, seen: dict[nn.Conv2d, list[LayerMoments]]
    ) -> None:
        super().__init__()
        self.layer = layer
        self._ops, self._seen = ops, seen

    def forward(self, x: Tensor) -> Tensor:
        """Measure and convolve x (N, C, H, W)."""
        if self.layer in self._seen:
            raise UserError(
                "experts.observer: expected every convolution to be used once per forward pass, "
                f"got {self.layer} used again"
            )
        moments = []
        for part in (x, patches(x)):
            mean, m2 = self._ops.row_moments(part)
            moments.append(LayerMoments(mean, m2, part.shape[2:].numel()))
        self._seen[self.layer] = moments
        return convolve(self.layer, x, self._ops.conv3x3)


def patches(maps: Tensor) -> Tensor:
    """Return what lies in each 4x4 cell of maps, all channels together (EDC, arXiv:2404.13733).

    Sides that are no multiple of 4 are first stretched, bilinearly, to the next one.

    Args:
        maps: (N, C, H, W).

    Returns:
        (N, P, 16 C), P = ceil(H / 4) * ceil(W / 4) places row by row, of the same dtype.
    """
    n, channels, height, width = maps.shape
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    if (rows * PATCH, columns * PATCH) != (height, width):
        vertical = _stretching(height, rows * PATCH, maps)
        horizontal = _stretching(width, columns * PATCH, maps)
        maps = torch.matmul(torch.matmul(vertical, maps), horizontal.T)
    cells = maps.reshape(n, channels, rows, PATCH, columns, PATCH)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)


def _stretching(size: int, wanted: int, like: Tensor) -> Tensor:
    """Return the (wanted, size) matrix of bilinear interpolation; its gradient is deterministic."""
    unit = torch.eye(size, device=like.device)[None]
    stretched = F.interpolate(unit, size=wanted, mode="linear", align_corners=False)
    return stretched[0].T.to(like.dtype)


@torch.no_grad()
def running_statistics(layers: list[nn.BatchNorm2d]) -> list[tuple[Tensor, Tensor]]:
    """Return the checkpoint's own (mean, variance) of every layer, float64 (C,) on the CPU."""
    pairs = []
    for layer in layers:
        if layer.running_mean is None or layer.running_var is None:
            raise UserError("experts.observer: expected BatchNorm2d layers that track statistics")
        pairs.append((layer.running_mean.double().cpu(), layer.running_var.double().cpu()))
    return pairs
