"""Changes of colour and sharpness for training on photographs; every image draws its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GREY_SHARE, BLUR_SHARE = 0.2, 0.5  # of the images
BLUR_SIGMA = (0.1, 2.0)  # pixels
_RADIUS = 4  # pixels; two deviations of the widest blur
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as everywhere


def color_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation, turn some images grey and blur some.

    The factors are uniform in [1 - strength, 1 + strength].

    Deviation: the three changes come in this order, not in a random one.

    Args:
        images: (N, C, H, W), float in [0, 1]; grey ones have no saturation to change.
        strength: in [0, 1].
        generator: CPU generator.

    Returns:
        (N, C, H, W) in [0, 1].
    """
    n, channels = images.shape[:2]
    device = images.device
    uniform = torch.rand(6, n, 1, 1, 1, generator=generator).to(device)
    brightness, contrast, saturation = 1 + strength * (2 * uniform[:3] - 1)
    images = (images * brightness).clamp(0, 1)
    level = _grey(images).mean((1, 2, 3), keepdim=True)
    images = (level + contrast * (images - level)).clamp(0, 1)
    if channels == 3:
        saturation = torch.where(uniform[3] < GREY_SHARE, torch.zeros_like(saturation), saturation)
        grey = _grey(images)
        images = (grey + saturation * (images - grey)).clamp(0, 1)
    low, high = BLUR_SIGMA
    sigma = (low + (high - low) * uniform[4]).flatten()
    return torch.where(uniform[5] < BLUR_SHARE, blur(images, sigma), images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Convolve each image with a Gaussian of its own deviation; borders are repeated.

    Args:
        images: (N, C, H, W), float.
        sigma: (N,), in pixels.
    """
    n, channels = images.shape[:2]
    place = torch.arange(-_RADIUS, _RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (place / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    padded = F.pad(images.contiguous(), (_RADIUS,) * 4, mode="replicate")
    maps = padded.view(1, n * channels, *padded.shape[2:])  # each image is a group of its own
    maps = F.conv2d(maps, weights[..., None], groups=n * channels)
    maps = F.conv2d(maps, weights[:, :, None], groups=n * channels)
    return maps.view_as(images)


def _grey(images: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)
