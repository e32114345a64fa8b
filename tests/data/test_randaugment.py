"""RandAugment of a batch: every change is torchvision's, and every image draws its own two."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from ltdd.data.augmentation.randaugment import CHANGES, rand_augment


def pixels(n: int, channels: int = 3, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, channels, side, side)
    return torch.randint(20, 220, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_change_is_that_of_torchvision(name: str, sign: int, channels: int) -> None:
    images = pixels(4, channels)
    theirs = v2.RandAugment(num_ops=1, magnitude=9)
    strength, signed = theirs._AUGMENTATION_SPACE[name]
    magnitude = strength(31, 32, 32)
    magnitude = 0.0 if magnitude is None else float(magnitude[9])
    if signed:
        magnitude *= sign
    expected = [
        theirs._apply_image_or_video_transform(
            image, name, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill={Tensor: None}
        )
        for image in images
    ]
    gap = CHANGES[name](images, sign).int() - torch.stack(expected).int()
    assert int(gap.abs().max()) <= 1  # a product may round the other way in a batch
    assert float((gap != 0).float().mean()) < 0.01


def changed(images: Tensor, *seeds: int) -> Tensor:
    return rand_augment(images, [torch.Generator().manual_seed(seed) for seed in seeds])


def test_there_are_no_other_changes() -> None:
    assert list(CHANGES) == list(v2.RandAugment._AUGMENTATION_SPACE)


def test_every_image_draws_two_changes_of_equal_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[tuple[str, int]] = Counter()

    def note(name: str) -> None:
        def change(images: Tensor, sign: int) -> Tensor:
            seen[name, sign] += len(images)
            return images + 1

        monkeypatch.setitem(CHANGES, name, change)

    for name in list(CHANGES):
        note(name)
    images = torch.zeros(2800, 1, 2, 2, dtype=torch.uint8)
    assert torch.equal(changed(images, 1)[0], images + 2)
    assert len(seen) == 28
    assert all(140 < count < 260 for count in seen.values())  # 200 expected, deviation 14


def test_the_input_stays_as_it_is_and_draws_repeat() -> None:
    images = pixels(40)
    before = images.clone()
    first, second = (changed(images, 5) for _ in range(2))
    assert torch.equal(images, before)
    assert torch.equal(first, second)
    assert not torch.equal(first, changed(images, 6))
    assert torch.equal(changed(images, 5, 6), torch.cat([first, changed(images, 6)]))
