"""Augmentation against torch's own operators, image by image, and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from ltdd.data.augmentation.crops import (
    Crops,
    crop,
    cut_box,
    cut_windows,
    normalize,
    paste,
    random_crops,
    random_cut_box,
    random_windows,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator(), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_equals_torchvision(channels: int) -> None:
    images = pixels(4, channels, 5, 6)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:channels], torch.tensor([0.1, 0.2, 0.3])[:channels]
    expected = v2.Normalize(mean.tolist(), std.tolist())(images.float() / 255)
    for given_images in (images, images.float() / 255):
        result = normalize(given_images, mean, std)
        assert result.dtype == torch.float32
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_windows_are_those_of_the_padded_image() -> None:
    images = pixels(64, 3, 6, 6)
    result = cut_windows(images, 2, random_windows(64, 2, True, generator()))
    assert result.dtype == torch.uint8
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, out in zip(padded, result, strict=True):
        places = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if torch.equal(out, _window(image, top, left, mirrored))
        ]
        assert len(places) == 1
        seen.add(places[0])
    # Every image draws its own window: 64 draws out of 50 places.
    assert len(seen) > 25
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def _window(padded: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    window = padded[:, top : top + 6, left : left + 6]
    return window.flip(2) if mirrored else window


def test_without_padding_and_flip_nothing_happens() -> None:
    images = pixels(8, 3, 6, 6)
    windows = random_windows(8, 0, False, generator())
    assert torch.equal(cut_windows(images, 0, windows), images)


def test_random_crops_stay_inside_and_differ_between_images() -> None:
    crops = random_crops(2000, 0.25, True, generator())
    top, left, height, width = crops.boxes.unbind(1)
    assert torch.equal(height, width)
    area = height * width
    assert 0.25 <= float(area.min()) < 0.27
    assert 0.98 < float(area.max()) <= 1
    # Area, not side, is uniform; so is the position in what room is left.
    assert float(area.mean()) == pytest.approx(0.625, abs=0.02)
    for start, length in ((top, height), (left, width)):
        assert float(start.min()) >= 0
        assert float((start + length).max()) <= 1 + 1e-6
        assert float((start / (1 - length)).mean()) == pytest.approx(0.5, abs=0.03)
    assert float(torch.corrcoef(torch.stack([top, left]))[0, 1].abs()) < 0.5
    assert len(crops.boxes.unique(dim=0)) == 2000
    assert float(crops.mirrored.float().mean()) == pytest.approx(0.5, abs=0.05)


def test_flips_can_be_forbidden() -> None:
    assert not random_crops(100, 0.5, False, generator()).mirrored.any()


def test_the_full_crop_is_the_image() -> None:
    images = torch.rand(2, 3, 7, 7, generator=generator())
    boxes = torch.tensor([[0.0, 0, 1, 1]]).expand(2, 4)
    result = crop(images, Crops(boxes, torch.tensor([False, True])))
    torch.testing.assert_close(result[0], images[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(result[1], images[1].flip(2), rtol=0, atol=1e-5)


def by_grid_sample(images: Tensor, crops: Crops) -> Tensor:
    """The same crops by torch's sampler, one image at a time."""
    n = len(images)
    sign = 1 - 2 * crops.mirrored.float()
    top, left, height, width = crops.boxes.unbind(1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * sign, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 9)])
def test_crop_and_its_gradient_equal_grid_sample(height: int, width: int) -> None:
    images = torch.rand(16, 2, height, width, generator=generator())
    crops = random_crops(16, 0.08, True, generator(1))
    weights = torch.rand(16, 2, height, width, generator=generator(2))
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    result, expected = crop(ours, crops), by_grid_sample(theirs, crops)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_crops_stay_in_range_and_out_of_autocast() -> None:
    images = torch.rand(16, 3, 8, 8, generator=generator()).round()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = crop(images, random_crops(16, 0.08, True, generator()))
    assert result.dtype == torch.float32
    assert float(result.min()) >= -1e-5
    assert float(result.max()) <= 1 + 1e-5


fractions = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 40), st.integers(1, 40), fractions, fractions, fractions)
def test_kept_is_the_true_uncovered_area(
    height: int, width: int, lam: float, row: float, column: float
) -> None:
    box = cut_box(height, width, lam, row, column)
    assert box.covered.shape == (height, width)
    assert float(box.kept) == pytest.approx(1 - float(box.covered.float().mean()), abs=1e-6)
    rows, columns = box.covered.any(1), box.covered.any(0)
    assert torch.equal(box.covered, rows[:, None] & columns)
    for side in (rows, columns):  # one run
        assert int((side[1:] != side[:-1]).sum()) <= 2
    # Clipping and rounding move it away from lam by what they cut, never below by more than a
    # pixel per side.
    side_y, side_x = height * (1 - lam) ** 0.5 + 2, width * (1 - lam) ** 0.5 + 2
    assert float(box.kept) >= 1 - side_y * side_x / (height * width) - 1e-6


def test_a_clipped_rectangle_keeps_more_than_lam() -> None:
    centred, corner = cut_box(32, 32, 0.5, 0.5, 0.5), cut_box(32, 32, 0.5, 0.0, 0.0)
    assert float(centred.kept) == pytest.approx(0.5, abs=0.05)
    assert float(corner.kept) == pytest.approx(0.875, abs=0.03)


def test_cut_boxes_are_uniform_in_area_before_clipping() -> None:
    source = generator()
    kept = torch.stack([random_cut_box(32, 32, source).kept for _ in range(2000)])
    assert 0 <= float(kept.min()) < 0.05
    assert float(kept.max()) > 0.95
    # E[lam] = 1/2, and clipping only keeps more.
    assert 0.5 < float(kept.mean()) < 0.75


def test_paste_changes_the_rectangle_and_nothing_else() -> None:
    ours, theirs = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    box = cut_box(8, 8, 0.75, 0.5, 0.25)
    result = paste(ours, theirs, box)
    assert result.mean().item() == pytest.approx(1 - float(box.kept))
    assert torch.equal(result[1, 0] == 1, box.covered)
    assert ours.max() == 0
