"""Batched augmentation: every image of a batch draws its own crop, nothing loops over images.

Crops are resampled by two small matrix products, ``Y = A_y X A_x^T`` per channel. That is bilinear
interpolation with border clamping, exactly differentiable, deterministic on every device, and the
mirror image costs nothing because it is folded into A_x.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.engine.tensor_trees import to_device


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``(images - mean) / std`` as channels_last float32.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or float in [0, 1].
        mean, std: (C,), in units of [0, 1].
    """
    scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
    gain, offset = (scale / std).view(-1, 1, 1), (mean / std).view(-1, 1, 1)
    return (images * gain - offset).contiguous(memory_format=torch.channels_last)


class Windows(NamedTuple):
    """One window per image, of the image's own size, within the padded image.

    Attributes:
        corners: int64 (2, N, 1): top, then left.
        mirrored: bool (N,).
    """

    corners: Tensor
    mirrored: Tensor


def random_windows(n: int, padding: int, flip: bool, generator: torch.Generator) -> Windows:
    """Draw n windows, uniform in position.

    Args:
        n: number of windows.
        padding: pixels on each side.
        flip: mirror half of them.
        generator: CPU generator.
    """
    corners = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    if not flip:
        return Windows(corners, torch.zeros(n, dtype=torch.bool))
    return Windows(corners, torch.rand(n, 1, generator=generator)[:, 0] < 0.5)


def cut_windows(images: Tensor, padding: int, windows: Windows) -> Tensor:
    """Pad with zeros and cut one window out of each image.

    Args:
        images: (N, C, H, W), any dtype.
        padding: pixels on each side.
        windows: one per image, on the same device.

    Returns:
        (N, C, H, W), same dtype.
    """
    n, _, h, w = images.shape
    device = images.device
    top, left = windows.corners
    rows = top + torch.arange(h, device=device)
    columns = left + torch.arange(w, device=device)
    columns = torch.where(windows.mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4)
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return picked.permute(0, 3, 1, 2)


class Crops(NamedTuple):
    """One crop per image, as fractions of the image.

    Attributes:
        boxes: float32 (N, 4): top, left, height, width in [0, 1].
        mirrored: bool (N,).
    """

    boxes: Tensor
    mirrored: Tensor


def random_crops(n: int, min_scale: float, flip: bool, generator: torch.Generator) -> Crops:
    """Draw n square crops with area uniform in [min_scale, 1] and uniform position.

    Args:
        n: number of crops.
        min_scale: smallest area fraction, in (0, 1].
        flip: mirror half of them.
        generator: CPU generator.
    """
    uniform = torch.rand(n, 4, generator=generator)
    side = (min_scale + (1 - min_scale) * uniform[:, 0]).sqrt()
    top, left = (1 - side) * uniform[:, 1], (1 - side) * uniform[:, 2]
    boxes = torch.stack([top, left, side, side], dim=1)
    return Crops(boxes, (uniform[:, 3] < 0.5) & flip)


def _resampling_matrices(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return (..., size, size) bilinear matrices that stretch [start, start+length] over an axis.

    Args:
        start, length: (...), as fractions of the axis.
        size: of the axis, in pixels.
    """
    grid = torch.arange(size, device=start.device, dtype=torch.float32)
    source = (start[..., None] + length[..., None] * (grid + 0.5) / size) * size - 0.5
    source = source.clamp(0, size - 1)
    return (1 - (source[..., None] - grid).abs()).clamp_min(0)


def crop(images: Tensor, crops: Crops) -> Tensor:
    """Cut each image's crop and stretch it to the full size; differentiable in ``images``.

    Args:
        images: float32 (N, C, H, W).
        crops: one crop per image.

    Returns:
        float32 (N, C, H, W), channels_last.
    """
    crops = to_device(crops, images.device)
    height, width = images.shape[2:]
    starts, lengths = crops.boxes.T.unflatten(0, (2, 2))
    if height == width:  # both axes in one go: on a GPU the launches are what it costs
        vertical, horizontal = _resampling_matrices(starts, lengths, height)
    else:
        vertical = _resampling_matrices(starts[0], lengths[0], height)
        horizontal = _resampling_matrices(starts[1], lengths[1], width)
    horizontal = torch.where(crops.mirrored[:, None, None], horizontal.flip(1), horizontal)
    with torch.autocast(images.device.type, enabled=False):
        rows = torch.matmul(vertical[:, None], images)
        result = torch.matmul(rows, horizontal.transpose(1, 2)[:, None])
    return result.contiguous(memory_format=torch.channels_last)


class CutBox(NamedTuple):
    """A rectangle in pixels, and the share of the image that it leaves uncovered.

    Attributes:
        covered: bool (H, W). Where the edges lie would be less to copy to a device, but more to
            launch there.
        kept: float64 scalar.
    """

    covered: Tensor
    kept: Tensor


def random_cut_box(height: int, width: int, generator: torch.Generator) -> CutBox:
    """Draw the CutMix rectangle for one ``lam ~ Beta(1, 1)``; clipped at the border.

    ``kept`` is the true uncovered area after clipping, not lam itself.
    """
    lam, row, column = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    return cut_box(height, width, lam, row, column)


def cut_box(height: int, width: int, lam: float, row: float, column: float) -> CutBox:
    """Return the rectangle of relative area 1 - lam centred at fractions (row, column)."""
    half_h = math.ceil(height * math.sqrt(1 - lam)) / 2
    half_w = math.ceil(width * math.sqrt(1 - lam)) / 2
    centre_y, centre_x = row * height, column * width
    top, bottom = (min(max(math.floor(centre_y + s * half_h), 0), height) for s in (-1, 1))
    left, right = (min(max(math.floor(centre_x + s * half_w), 0), width) for s in (-1, 1))
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    covered = torch.zeros(height, width, dtype=torch.bool)
    covered[top:bottom, left:right] = True
    return CutBox(covered, torch.tensor(kept, dtype=torch.float64))


def paste(images: Tensor, others: Tensor, box: CutBox) -> Tensor:
    """Return ``images`` with the rectangle replaced by that of ``others`` (CutMix)."""
    return torch.where(box.covered, others, images)
