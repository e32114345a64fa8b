"""DSA, differentiable siamese augmentation (arXiv:2102.08259): drawn once, applied at will.

Images are float and normalised, and 0 fills what comes from outside. The gradient by the images
goes through every operation, its derivatives too; what was drawn is kept, never the graph.

Deviation: the published code seeds its generator anew for each axis where images share what they
draw, so that both move, scale and are cut alike; here every axis draws its own.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ltdd.config import DSA_OPERATIONS
from ltdd.data.augmentation.crops import Windows, cut_windows
from ltdd.engine.tensor_trees import to_device

DsaMode = Literal["single", "siamese", "idc"]
SHIFT_SHARE, CUTOUT_SHARE = 0.125, 0.5  # of the side
LARGEST_SCALE = 1.2  # of the sampling grid, and one over it the smallest
LARGEST_ANGLE = 15.0  # degrees


class DsaDraw(NamedTuple):
    """What was drawn for a batch: N rows, or one row for all images of any batch.

    A field is None where its operation was not drawn.

    Attributes:
        mirrored: bool (N,).
        brightness: float32 (N,), is added.
        saturation: float32 (N,), factor of the distance to the pixel's mean over channels.
        contrast: float32 (N,), factor of the distance to the image's mean.
        shift: int64 (N, 2), rows and columns by which the picture moves up and left.
        scale: float32 (N, 2), factor of the sampling grid in rows and columns; > 1 shrinks.
        angle: float32 (N,), degrees by which the sampling grid turns.
        centre: int64 (N, 2), row and column of the middle of the square that is cut out.
    """

    mirrored: Tensor | None = None
    brightness: Tensor | None = None
    saturation: Tensor | None = None
    contrast: Tensor | None = None
    shift: Tensor | None = None
    scale: Tensor | None = None
    angle: Tensor | None = None
    centre: Tensor | None = None


def usable_operations(names: tuple[str, ...], flip: bool) -> tuple[str, ...]:
    """Return the operations without mirroring where it does not keep the class."""
    return tuple(name for name in names if flip or name != "flip")


def draw_dsa(
    count: int,
    size: int,
    strategy: tuple[str, ...],
    mode: DsaMode,
    generator: torch.Generator,
    *,
    shared: bool = False,
) -> DsaDraw:
    """Draw operations and their parameters.

    Args:
        count: images, N.
        size: side of an image in pixels.
        strategy: the operations to choose from, of `DSA_OPERATIONS`; empty for none.
        mode: ``single``, one of the strategy with equal chances for the whole batch, with
            parameters of each image; ``siamese``, the same with one set of parameters for all;
            ``idc`` (arXiv:2205.14959), all three of flip, color and cutout that are listed, and one
            of the others.
        generator: CPU generator.
        shared: one set of parameters for all images in every mode.
    """
    rows = 1 if shared or mode == "siamese" else count
    drawn = DsaDraw()
    for operation in _chosen(strategy, mode, generator):
        drawn = drawn._replace(**_parameters(operation, rows, size, generator))
    return drawn


def apply_dsa(images: Tensor, draw: DsaDraw) -> Tensor:
    """Return the images after what was drawn; differentiable in ``images``.

    Args:
        images: float (N, C, H, H), normalised.
        draw: N rows, or one for all.

    Returns:
        (N, C, H, H), same dtype.
    """
    draw = to_device(draw, images.device)
    size = images.shape[2]
    if draw.mirrored is not None:
        images = torch.where(draw.mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if draw.brightness is not None:
        images = images + _column(draw.brightness, images)
    if draw.saturation is not None:
        images = _away_from(images, images.mean(1, keepdim=True), draw.saturation)
    if draw.contrast is not None:
        images = _away_from(images, images.mean((1, 2, 3), keepdim=True), draw.contrast)
    if draw.shift is not None:
        reach = _reach(size)
        corners = (reach + draw.shift).T[:, :, None]
        unmirrored = torch.zeros(len(draw.shift), dtype=torch.bool, device=images.device)
        images = cut_windows(images, reach, Windows(corners, unmirrored))
    if draw.scale is not None:
        rows, columns = _grid(images)
        down, right = _column(draw.scale[:, 0], images), _column(draw.scale[:, 1], images)
        images = _sample(images, down[..., 0] * rows, right[..., 0] * columns)
    if draw.angle is not None:
        rows, columns = _grid(images)
        angle = _column(draw.angle, images)[..., 0] * (math.pi / 180)
        cosine, sine = angle.cos(), angle.sin()
        images = _sample(images, cosine * rows + sine * columns, cosine * columns - sine * rows)
    if draw.centre is not None:
        images = _cut_out(images, draw.centre)
    return images


def _chosen(
    strategy: tuple[str, ...], mode: DsaMode, generator: torch.Generator
) -> tuple[str, ...]:
    """Return the operations of a call."""
    together = ("flip", "color", "cutout") if mode == "idc" else ()
    always = tuple(name for name in strategy if name in together)
    choice = [name for name in strategy if name not in together]
    if not choice:
        return always
    return (*always, choice[int(torch.randint(len(choice), (), generator=generator))])


def _parameters(
    operation: str, rows: int, size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw the fields of `DsaDraw` that belong to an operation."""
    match operation:
        case "flip":
            return {"mirrored": torch.rand(rows, generator=generator) < 0.5}
        case "color":
            brightness, saturation, contrast = torch.rand(3, rows, generator=generator)
            return {
                "brightness": brightness - 0.5,
                "saturation": 2 * saturation,
                "contrast": contrast + 0.5,
            }
        case "crop":
            reach = _reach(size)
            return {"shift": torch.randint(-reach, reach + 1, (rows, 2), generator=generator)}
        case "scale":
            smallest = 1 / LARGEST_SCALE
            uniform = torch.rand(rows, 2, generator=generator)
            return {"scale": smallest + (LARGEST_SCALE - smallest) * uniform}
        case "rotate":
            return {"angle": LARGEST_ANGLE * (2 * torch.rand(rows, generator=generator) - 1)}
        case "cutout":
            return {"centre": torch.randint(0, size + 1, (rows, 2), generator=generator)}
    raise ValueError(f"draw_dsa: expected operations among {DSA_OPERATIONS}, got {operation!r}")


def _reach(size: int) -> int:
    """Return the largest shift in pixels."""
    return int(size * SHIFT_SHARE + 0.5)


def _column(values: Tensor, images: Tensor) -> Tensor:
    """Return values of images (N,) as (N, 1, 1, 1) in the images' type."""
    return values.to(images.dtype).view(-1, 1, 1, 1)


def _away_from(images: Tensor, middle: Tensor, factor: Tensor) -> Tensor:
    return (images - middle) * _column(factor, images) + middle


def _grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (1, H, 1) and columns (1, 1, W) of the pixels, counted from the middle."""
    rows, columns = (
        torch.arange(side, device=images.device, dtype=images.dtype) - (side - 1) / 2
        for side in images.shape[2:]
    )
    return rows[None, :, None], columns[None, None]


def _sample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate bilinearly between the pixels around each place; 0 lies outside.

    Made of indexing, whose derivatives, unlike those of torch's `grid_sample`, are deterministic on
    every device and can be derived again.

    Args:
        images: (N, C, H, W).
        rows, columns: of the places, counted from the middle; they broadcast to (N, H, W).
    """
    n, _, height, width = images.shape
    rows, columns = rows + (height - 1) / 2, columns + (width - 1) / 2
    top, left = rows.floor(), columns.floor()
    below, beside = rows - top, columns - left
    pixels = images.permute(0, 2, 3, 1)
    every = torch.arange(n, device=images.device)[:, None, None]
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for row, vertical in ((top, 1 - below), (top + 1, below)):
        for column, horizontal in ((left, 1 - beside), (left + 1, beside)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = vertical * horizontal * inside
            y, x = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
            total = total + pixels[every, y, x] * weight[..., None]
    return total.permute(0, 3, 1, 2)


def _cut_out(images: Tensor, centre: Tensor) -> Tensor:
    """Set a square around each centre to 0."""
    side = int(images.shape[2] * CUTOUT_SHARE + 0.5)
    within = []
    for axis, length in enumerate(images.shape[2:]):
        place, first = torch.arange(length, device=images.device), centre[:, axis, None] - side // 2
        within.append((place >= first) & (place < first + side))
    square = within[0][:, None, :, None] & within[1][:, None, None, :]
    return images.masked_fill(square, 0.0)
