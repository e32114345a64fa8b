"""Several training images in one: where blocks lie, how they grow, and that one comes back."""

import pytest
import torch
import torch.nn.functional as F

from ltdd.data.formation import block_side, decode, decode_set, tile
from ltdd.data.image_spec import ImageSet


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("size", [8, 9, 12])
def test_blocks_are_enlarged_as_torch_does_it(factor: int, size: int) -> None:
    images = noise(3, 2, size, size)
    side = block_side(size, factor)
    got = decode(images, factor)
    assert got.shape == (3 * factor**2, 2, size, size)
    padded = torch.full((3, 2, side * factor, side * factor), 0.5)
    padded[..., :size, :size] = images
    for image in range(3):
        for row in range(factor):
            for column in range(factor):
                block = padded[
                    image, :, row * side : (row + 1) * side, column * side : (column + 1) * side
                ]
                wanted = F.interpolate(block[None], (size, size), mode="bilinear")[0]
                place = image * factor**2 + row * factor + column
                torch.testing.assert_close(got[place], wanted)


def test_the_padding_has_the_value_that_is_asked_for() -> None:
    fill = torch.tensor([0.0, -3.0]).view(2, 1, 1)
    got = decode(torch.ones(1, 2, 8, 8), 3, fill)  # blocks of 3, so one pixel is missing
    assert got[8, 0, -1, -1] == 0
    assert got[8, 1, -1, -1] == -3
    assert (got[0] == 1).all()


def test_one_block_is_the_image() -> None:
    images = noise(2, 3, 8, 8)
    assert decode(images, 1) is images
    assert tile(images, 1, "nearest") is images
    both = ImageSet((images * 255).to(torch.uint8), torch.tensor([0, 1]))
    assert decode_set(both, 1) is both


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [8, 9])
def test_decoding_finds_the_images_that_were_tiled(resampling: str, size: int) -> None:
    flat = noise(8, 3, 1, 1).expand(8, 3, size, size)  # images that lose nothing when they shrink
    whole = tile(flat, 2, resampling)
    assert whole.shape == (2, 3, size, size)
    back = decode(whole, 2)
    inner = back[..., : size // 2, : size // 2]  # away from the padding
    torch.testing.assert_close(inner, flat[..., : size // 2, : size // 2])


def test_a_decoded_set_has_bytes_and_the_class_of_the_stored_image() -> None:
    images = (noise(2, 3, 8, 8) * 255).to(torch.uint8)
    decoded = decode_set(ImageSet(images, torch.tensor([4, 7])), 2)
    assert decoded.labels.tolist() == [4] * 4 + [7] * 4
    assert decoded.images.dtype == torch.uint8
    assert decoded.images.is_contiguous()
    exact = decode(images / 255, 2) * 255
    assert float((decoded.images - exact).abs().max()) <= 0.501


def test_gradients_reach_every_stored_pixel() -> None:
    images = noise(1, 1, 6, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: decode(x, 2), (images,))
