"""DSA against torch's own operators, image by image, and its gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.config import DSA_OPERATIONS as OPERATIONS
from ltdd.data.augmentation.dsa import DsaDraw, apply_dsa, draw_dsa

SIDE = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 6, channels: int = 3, side: int = SIDE) -> Tensor:
    return torch.randn(n, channels, side, side, generator=generator(1), dtype=torch.float64)


def one(operation: str, count: int = 6, side: int = SIDE, seed: int = 0) -> DsaDraw:
    return draw_dsa(count, side, (operation,), "single", generator(seed))


NOTHING = DsaDraw(
    mirrored=torch.tensor([False]),
    brightness=torch.zeros(1),
    saturation=torch.ones(1),
    contrast=torch.ones(1),
    shift=torch.zeros(1, 2, dtype=torch.int64),
    scale=torch.ones(1, 2),
    angle=torch.zeros(1),
    centre=torch.full((1, 2), -SIDE),
)


@pytest.mark.parametrize("field", DsaDraw._fields)
def test_the_middle_of_every_range_changes_nothing(field: str) -> None:
    images = pictures()
    degenerate = DsaDraw(**{field: getattr(NOTHING, field)})
    torch.testing.assert_close(apply_dsa(images, degenerate), images, rtol=0, atol=1e-14)


def test_all_degenerate_ranges_together_and_nothing_drawn() -> None:
    images = pictures()
    torch.testing.assert_close(apply_dsa(images, NOTHING), images, rtol=0, atol=1e-14)
    assert apply_dsa(images, DsaDraw()) is images
    assert draw_dsa(6, SIDE, (), "single", generator()) == DsaDraw()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_two_halves_share_what_siamese_draws(operation: str) -> None:
    images = pictures(3)
    for seed in range(3):
        draw = draw_dsa(6, SIDE, (operation,), "siamese", generator(seed))
        changed = apply_dsa(torch.cat([images, images]), draw)
        assert torch.equal(changed[:3], changed[3:])
        assert torch.equal(apply_dsa(images, draw), changed[:3])  # of a batch of any size


@pytest.mark.parametrize("operation", OPERATIONS)
def test_images_of_a_single_draw_have_their_own_parameters(operation: str) -> None:
    image = pictures(1).expand(32, -1, -1, -1)
    changed = apply_dsa(image, one(operation, 32))
    kinds = {tuple(picture.flatten().tolist()) for picture in changed}
    assert len(kinds) >= {"flip": 2, "crop": 8}.get(operation, 16)  # a flip has 2, a crop of 8 px 9


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_and_their_derivatives(operation: str) -> None:
    images = pictures(2, 2, 4).requires_grad_()
    draw = draw_dsa(2, 4, (operation,), "single", generator(2))
    assert torch.autograd.gradcheck(lambda x: apply_dsa(x, draw), images)
    assert torch.autograd.gradgradcheck(lambda x: apply_dsa(x, draw) ** 2, images)


def test_each_operation_is_drawn_as_often_as_another() -> None:
    draws = [draw_dsa(1, 32, OPERATIONS, "single", generator(seed)) for seed in range(1200)]
    drawn = [
        tuple(f for f, value in zip(d._fields, d, strict=True) if value is not None) for d in draws
    ]
    counts = {fields: drawn.count(fields) for fields in set(drawn)}
    colors = ("brightness", "saturation", "contrast")
    others = [("mirrored",), ("shift",), ("scale",), ("angle",), ("centre",)]
    assert counts.keys() == {colors, *others}
    assert all(abs(count - 200) < 5 * math.sqrt(200) for count in counts.values())


def test_idc_takes_flip_color_cutout_and_one_of_the_others() -> None:
    for seed in range(30):
        draw = draw_dsa(4, 32, OPERATIONS, "idc", generator(seed))
        assert None not in (draw.mirrored, draw.brightness, draw.contrast, draw.centre)
        assert sum(x is not None for x in (draw.shift, draw.scale, draw.angle)) == 1
        few = draw_dsa(4, 32, ("color", "crop"), "idc", generator(seed), shared=True)
        drawn = {name: value.shape for name, value in few._asdict().items() if value is not None}
        colors = dict.fromkeys(("brightness", "saturation", "contrast"), (1,))
        assert drawn == colors | {"shift": (1, 2)}


def test_ranges() -> None:
    def drawn(operation: str, field: str) -> Tensor:
        value = getattr(one(operation, 4000, 32), field)
        assert isinstance(value, Tensor)
        return value

    for operation, field, low, high in (
        ("color", "brightness", -0.5, 0.5),
        ("color", "saturation", 0.0, 2.0),
        ("color", "contrast", 0.5, 1.5),
        ("scale", "scale", 1 / 1.2, 1.2),
        ("rotate", "angle", -15.0, 15.0),
    ):
        values, margin = drawn(operation, field), 0.01 * (high - low)
        assert low - 1e-6 <= float(values.min()) < low + margin
        assert high - margin < float(values.max()) <= high + 1e-6
    assert drawn("crop", "shift").unique().tolist() == list(range(-4, 5))
    assert drawn("cutout", "centre").unique().tolist() == list(range(33))
    small = one("crop", 100).shift
    assert small is not None
    assert small.unique().tolist() == [-1, 0, 1]


def test_colors_follow_their_formulas_image_by_image() -> None:
    images, draw = pictures(), one("color")
    changed = apply_dsa(images, draw)
    for image, result, *values in zip(images, changed, *draw[1:4], strict=True):  # type: ignore[misc]
        brightness, saturation, contrast = (float(value) for value in values)
        bright = image + brightness
        grey = bright.mean(0)
        saturated = grey + saturation * (bright - grey)
        level = saturated.mean()
        torch.testing.assert_close(result, level + contrast * (saturated - level))


def test_crop_moves_the_picture_and_fills_with_zeros() -> None:
    images, draw = pictures(20, side=16), one("crop", 20, 16)
    assert draw.shift is not None
    for image, result, (down, right) in zip(
        images, apply_dsa(images, draw), draw.shift.tolist(), strict=True
    ):
        padded = F.pad(image, (2, 2, 2, 2))
        assert torch.equal(result, padded[:, 2 + down : 18 + down, 2 + right : 18 + right])


def test_cutout_is_a_clipped_square() -> None:
    images, draw = pictures(40), one("cutout", 40)
    assert draw.centre is not None
    for image, result, (row, column) in zip(
        images, apply_dsa(images, draw), draw.centre.tolist(), strict=True
    ):
        expected = image.clone()
        expected[:, max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
        assert torch.equal(result, expected)


@pytest.mark.parametrize("operation", ["scale", "rotate"])
def test_scale_and_rotate_sample_the_grid_as_torch_does(operation: str) -> None:
    images, draw = pictures(side=9), one(operation, 6, 9)
    theta = torch.zeros(6, 2, 3, dtype=torch.float64)
    if draw.scale is not None:
        theta[:, 0, 0], theta[:, 1, 1] = draw.scale[:, 1].double(), draw.scale[:, 0].double()
    if draw.angle is not None:
        radians = draw.angle.double() * math.pi / 180
        theta[:, 0, 0] = theta[:, 1, 1] = radians.cos()
        theta[:, 0, 1], theta[:, 1, 0] = -radians.sin(), radians.sin()
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    expected = F.grid_sample(images, grid, align_corners=True)
    torch.testing.assert_close(apply_dsa(images, draw), expected, rtol=1e-6, atol=1e-6)


def test_unknown_operation_is_named() -> None:
    with pytest.raises(ValueError, match="got 'shear'"):
        draw_dsa(2, SIDE, ("shear",), "single", generator())
