"""How the images are shown to an observer in one iteration."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ltdd.config import RecoveryConfig
from ltdd.data.augmentation.crops import (
    Crops,
    Windows,
    crop,
    cut_windows,
    random_crops,
    random_windows,
)
from ltdd.data.image_spec import ImageSpec

REFERENCE_SIZE = 32  # of the images that paddings and rolls are given for


class Shown(NamedTuple):
    """What is drawn for one iteration.

    Attributes:
        crops: one per image.
        windows: one per image, in the padded crops; None without padding.
        roll: int64 (2,), rows and columns by which all are rolled; None without.
    """

    crops: Crops
    windows: Windows | None
    roll: Tensor | None

    def part(self, rows: slice) -> Shown:
        """Return what is drawn for some of the images."""
        windows = self.windows
        if windows is not None:
            windows = Windows(windows.corners[:, rows], windows.mirrored[rows])
        return Shown(Crops(self.crops.boxes[rows], self.crops.mirrored[rows]), windows, self.roll)


def scaled(pixels: int, size: int) -> int:
    """Return pixels at 32 px as those of images of another side, at least one of any."""
    return max(1, round(pixels * size / REFERENCE_SIZE)) if pixels else 0


def draw(count: int, spec: ImageSpec, config: RecoveryConfig, stream: torch.Generator) -> Shown:
    """Draw one iteration's views of some images."""
    flip = spec.flip and config.mirror
    crops = random_crops(count, config.crop_min_scale, flip, stream)
    padding, jitter = scaled(config.crop_padding, spec.size), scaled(config.jitter, spec.size)
    windows = random_windows(count, padding, False, stream) if padding else None
    roll = torch.randint(0, jitter + 1, (2,), generator=stream) if jitter else None
    return Shown(crops, windows, roll)


def show(images: Tensor, shown: Shown, padding: int) -> Tensor:
    """Return views of normalised images (N, C, H, W), differentiable in them.

    Args:
        images: float32.
        shown: what was drawn for them.
        padding: of the windows, in pixels.
    """
    views = crop(images, shown.crops)
    if shown.windows is not None:
        views = cut_windows(views, padding, shown.windows)
    if shown.roll is not None:
        # Indexed, not rolled: by how much is read on the device alone.
        rows, columns = (
            (torch.arange(side, device=images.device) - by) % side
            for side, by in zip(images.shape[2:], shown.roll, strict=True)
        )
        views = views[:, :, rows][:, :, :, columns]
    return views.contiguous(memory_format=torch.channels_last)
