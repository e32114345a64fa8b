"""RandAugment of a whole batch at once: images that drew the same change go through it together.

Two changes an image, each one of 14 with equal chance, at level 9 of 0 to 30 (arXiv:1909.13719);
the strengths are torchvision's, whose own transform gives a whole batch one draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

CHANGES_PER_IMAGE = 2
_LEVEL = 9 / 30  # of the largest strength

_Change = Callable[[Tensor, int], Tensor]
"""(images (N, C, H, W), sign of the strength) -> changed images."""


def _shear(images: Tensor, x: float, y: float) -> Tensor:
    angles = [math.degrees(math.atan(_LEVEL * 0.3 * share)) for share in (x, y)]
    sheared: Tensor = functional.affine(
        images, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0, 0]
    )
    return sheared


def _translate(images: Tensor, x: int, y: int) -> Tensor:
    height, width = images.shape[2:]
    pixels = [s * int(_LEVEL * 150 / 331 * side) for s, side in ((x, width), (y, height))]
    moved: Tensor = functional.affine(
        images, angle=0.0, translate=pixels, scale=1.0, shear=[0.0, 0.0]
    )
    return moved


def _factor(sign: int) -> float:
    return 1 + sign * _LEVEL * 0.9


CHANGES: dict[str, _Change] = {
    "Identity": lambda images, sign: images,
    "ShearX": lambda images, sign: _shear(images, sign, 0),
    "ShearY": lambda images, sign: _shear(images, 0, sign),
    "TranslateX": lambda images, sign: _translate(images, sign, 0),
    "TranslateY": lambda images, sign: _translate(images, 0, sign),
    "Rotate": lambda images, sign: functional.rotate(images, angle=sign * _LEVEL * 30),
    "Brightness": lambda images, sign: functional.adjust_brightness(images, _factor(sign)),
    "Color": lambda images, sign: functional.adjust_saturation(images, _factor(sign)),
    "Contrast": lambda images, sign: functional.adjust_contrast(images, _factor(sign)),
    "Sharpness": lambda images, sign: functional.adjust_sharpness(images, _factor(sign)),
    "Posterize": lambda images, sign: functional.posterize(images, bits=round(8 - 4 * _LEVEL)),
    "Solarize": lambda images, sign: functional.solarize(images, threshold=255 * (1 - _LEVEL)),
    "AutoContrast": lambda images, sign: functional.autocontrast(images),
    "Equalize": lambda images, sign: functional.equalize(images),
}
"""Name, as torchvision has it -> the change."""


def rand_augment(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return every image after two changes of its own, once for each generator.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3.
        generators: CPU generators, G of them: many at once are changed in few calls.

    Returns:
        uint8 (G, N, C, H, W), on the same device.
    """
    functions = list(CHANGES.values())
    changing = images.repeat(len(generators), 1, 1, 1)
    for _ in range(CHANGES_PER_IMAGE):
        drawn = torch.cat(
            [torch.randint(2 * len(functions), (len(images),), generator=g) for g in generators]
        )
        changed = torch.empty_like(changing)
        for number in drawn.unique().tolist():
            members = torch.nonzero(drawn == number).flatten()
            members = members.to(images.device, non_blocking=True)
            change, sign = functions[number // 2], 1 - 2 * (number % 2)
            changed[members] = change(changing[members], sign)
        changing = changed
    return changing.view(len(generators), *images.shape)
