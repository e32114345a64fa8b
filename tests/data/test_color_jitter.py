"""Colour and blur of training views, image by image, against torchvision's operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ltdd.data.augmentation.color_jitter import blur, color_jitter


def photos(number: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(number, channels, 12, 10, generator=generator) * 0.8 + 0.1


def test_blur_equals_torchvision_with_a_deviation_for_every_image() -> None:
    images, sigma = photos(3), torch.tensor([0.1, 0.8, 2.0])
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="replicate")
    for row in range(3):
        expected = tv.gaussian_blur(padded[row], [9, 9], [float(sigma[row])] * 2)[:, 4:-4, 4:-4]
        torch.testing.assert_close(blur(images, sigma)[row], expected)


def test_no_strength_changes_neither_level_nor_colour() -> None:
    flat = torch.full((200, 3, 6, 6), 0.5)
    torch.testing.assert_close(color_jitter(flat, 0.0, torch.Generator().manual_seed(0)), flat)


def test_every_image_draws_its_own_change() -> None:
    one = photos(1)
    images = one.expand(400, -1, -1, -1)
    changed = color_jitter(images, 0.4, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    level = changed.mean((1, 2, 3)) / one.mean()
    assert float(level.min()) < 0.7
    assert float(level.max()) > 1.2
    grey = (changed.amax(1) - changed.amin(1)).amax((1, 2)) < 1e-5
    assert 0.12 < float(grey.float().mean()) < 0.28
    # Blurred images have less between neighbours than any contrast of 0.6 or more leaves.
    rough = (changed[..., 1:] - changed[..., :-1]).abs().mean((1, 2, 3))
    assert float((rough < 0.25 * rough.max()).float().mean()) > 0.2
    again = color_jitter(images, 0.4, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)


def test_grey_images_stay_grey() -> None:
    changed = color_jitter(photos(8, channels=1), 0.4, torch.Generator().manual_seed(0))
    assert changed.shape == (8, 1, 12, 10)
    assert float((changed - photos(8, channels=1)).abs().max()) > 0.05
