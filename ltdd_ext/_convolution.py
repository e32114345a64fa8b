"""Convolution layers of a network, by the operator of this package where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from . import _check
from ._library import cpu_instruction_set, onednn_cap
from .conv3x3 import conv3x3

# Measured: `python -m benchmarks -s -k convolutions` prints both for each class of shapes. The
# choice is written down, not timed at run time, so that bits depend on the processor alone.
_FEW_CHANNELS, _MANY_CHANNELS, _LARGE_SIDE = 8, 32, 64  # between and above, PyTorch is faster
# Of many channels, maps are computed in tiles of 4x4 with 36 transformed taps for each pair of
# channels: tiles must be filled by half, and there must be enough of them to pay for the taps. The
# number of images must not count: ranks that share a batch would round otherwise than one alone.
_TILE_SIDE, _PIXELS_PER_TILE, _CHANNELS_PER_PIXEL = 4, 9, 8
_CPU = cpu_instruction_set()
_PYTORCH_HAS_TILES = onednn_cap() == ""  # of AMX, where there are any


def is_conv3x3(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether a layer computes what :func:`ltdd_ext.conv3x3` does, in some dtype."""
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    )


def convolve(
    layer: nn.Module, x: Tensor, op: Callable[[Tensor, Tensor, Tensor], Tensor] = conv3x3
) -> Tensor:
    """Apply a layer, by :func:`ltdd_ext.conv3x3` where it is one and that is faster than PyTorch.

    It is on a CPU with maps of at most 64x64 pixels: in float32 with up to 8 input channels, or at
    least 32 where the maps fill tiles of 4x4 by half and have a pixel for every 8 channels. Under
    autocast to bfloat16 it is the same on a processor with AVX-512, with AVX2 alone all; with AMX
    up to 8 channels, or all where the environment (``ONEDNN_MAX_CPU_ISA``) keeps AMX from PyTorch's
    convolutions.

    Args:
        layer: Any layer; only an ``nn.Conv2d`` of 3x3 taps, stride 1 and zero padding 1 without
            groups or dilation is computed otherwise than by calling it. Its hooks then do not run.
        x: Its input, (N, C, H, W) for a convolution.
        op: What computes it then: ``conv3x3`` of ``ltdd_ext`` (default) or of its ``reference``.

    Returns:
        What the layer returns, up to the rounding of :func:`ltdd_ext.conv3x3`.

    Raises:
        TypeError: ``layer`` is no module or ``x`` no tensor.

    Note:
        Differentiable as the layer is; by ``conv3x3`` any number of times and in forward mode.

    Example:
        >>> import torch, ltdd_ext
        >>> layer = torch.nn.Conv2d(3, 32, 3, padding=1)
        >>> ltdd_ext.nn.convolve(layer, torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """
    _check.module("convolve", "layer", layer)
    if not isinstance(x, Tensor):
        _check.bad_type("convolve", "x", "a torch.Tensor", type(x).__name__)
    if is_conv3x3(layer) and (dtype := _faster_dtype(layer, x)) is not None:
        weight = layer.weight
        bias = weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
        # Taps that were already cast for the step (a training loop may cast all at once) go back.
        return op(x.to(dtype), weight.float(), bias.float())
    y: Tensor = layer(x)
    return y


def _faster_dtype(layer: nn.Conv2d, x: Tensor) -> torch.dtype | None:
    """Return the dtype of images in which the operator computes faster, or None."""
    dtypes = (x.dtype, layer.weight.dtype)
    if not x.is_cpu or x.dim() != 4 or max(x.shape[2:]) > _LARGE_SIDE:
        return None
    few = layer.in_channels <= _FEW_CHANNELS
    if not torch.is_autocast_enabled("cpu"):
        faster = few or _pays_in_tiles(layer, x)
        return torch.float32 if faster and dtypes == (torch.float32, torch.float32) else None
    if torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return None
    faster = (  # no other processors were measured
        _CPU == "avx2"
        or (_CPU == "avx512" and (few or _pays_in_tiles(layer, x)))
        or (_CPU == "amx" and (few or not _PYTORCH_HAS_TILES))
    )
    return torch.bfloat16 if faster and set(dtypes) <= {torch.float32, torch.bfloat16} else None


def _pays_in_tiles(layer: nn.Conv2d, x: Tensor) -> bool:
    """Return whether Winograd's form in float32 is faster than PyTorch's convolution."""
    height, width = x.shape[2:]
    tiles = -(-height // _TILE_SIDE) * -(-width // _TILE_SIDE)
    channels = max(layer.in_channels, layer.out_channels)
    return (
        layer.in_channels >= _MANY_CHANNELS
        and height * width >= _PIXELS_PER_TILE * tiles
        and height * width * _CHANNELS_PER_PIXEL >= channels
    )


class Convolution(nn.Module):
    """A layer that :func:`convolve` applies; it shares the layer's parameters."""

    def __init__(self, layer: nn.Module, op: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self._op = op

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (N, C, H, W)."""
        return convolve(self.layer, x, self._op)
