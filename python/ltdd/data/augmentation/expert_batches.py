"""Make what experts train on: drawn on the host, cut out and mixed where the images are.

A draw is a named tuple of tensors. Rendering one reads no value on the host, so a step of training
that renders can be recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltdd.config import AnyExperts, ExpertsConfig
from ltdd.data.augmentation.color_jitter import color_jitter
from ltdd.data.augmentation.crops import (
    Crops,
    CutBox,
    Windows,
    crop,
    cut_box,
    cut_windows,
    normalize,
    paste,
    random_crops,
    random_windows,
)
from ltdd.data.augmentation.randaugment import rand_augment
from ltdd.data.augmentation.student_views import one_hot
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime

PADDING_REFERENCE_SIZE = 32  # pixels at which `crop_padding` is stated
UNIMIX_ALPHA = 0.8  # published
UNIMIX_POWERS = {10: -0.5, math.inf: -0.1}  # tau, published for up to 10 classes and for 100


class Shown(NamedTuple):
    """Images of a batch, and what is cut out of each.

    Attributes:
        picked: uint8 (B, C, H, W), or float in [0, 1] where colours were changed.
        place: `Windows` with ``crop_padding``, `Crops` with ``crop_min_scale``.
    """

    picked: Tensor
    place: Windows | Crops


class Mixture(NamedTuple):
    """Both mixed views of a step: MixUp of the first pair, CutMix of the second.

    Attributes:
        shown: two views of the plainly drawn images, then two of the resampled ones, 4B in all.
        labels: int64 (2B,), classes of the plainly drawn and of the resampled images.
        shares: float32 (2, 2): of the plain images, then of the others, in MixUp and in CutMix;
            both views show one mixture.
        box: the rectangle of CutMix.
    """

    shown: Shown
    labels: Tensor
    shares: Tensor
    box: CutBox


class Pairs(NamedTuple):
    """UniMix: each image with a partner out of the same batch.

    Attributes:
        shown: views of the images, and of partners that are not among them behind them.
        labels: int64, their classes.
        partner: int64 (B,), places in these.
        lam: float32 (B,), an image's own share.
    """

    shown: Shown
    labels: Tensor
    partner: Tensor
    lam: Tensor


class Labelled(NamedTuple):
    """Images as they are: a view and its classes, int64 (B,)."""

    shown: Shown
    labels: Tensor


Drawn = Mixture | Pairs | Labelled


class Batches:
    """Draws batches on the host, and renders what was drawn on the device.

    Images are uint8 until they are rendered.

    Args:
        data: the long-tailed data.
        config: cropping, colours and the power by which classes are resampled.
        flip: whether images may be mirrored.
        runtime: device.
    """

    def __init__(
        self, data: LongTailedData, config: AnyExperts, flip: bool, runtime: Runtime
    ) -> None:
        self.device = runtime.device
        # On the device where there is room; a larger set is gathered batch by batch.
        small = fits(data.train_images, runtime.device)
        self.images = data.train_images.to(runtime.device) if small else data.train_images
        self.labels = data.train_labels
        self.mean = torch.tensor(data.mean, device=runtime.device)
        self.std = torch.tensor(data.std, device=runtime.device)
        self.num_classes, self.flip, self.config = data.num_classes, flip, config
        self.padding = round(config.crop_padding * data.image_size / PADDING_REFERENCE_SIZE)
        self.counts = torch.tensor(data.counts, dtype=torch.float64)
        if isinstance(config, ExpertsConfig):
            self.draw_weights = self.counts.pow(-config.resampling_power)[data.train_labels]

    def shown(self, indices: Tensor, generator: torch.Generator) -> Shown:
        """Draw a view of images."""
        places = indices.to(self.images.device, non_blocking=True)
        picked = self.images[places].to(self.device)
        if self.config.randaugment:
            picked = rand_augment(picked, [generator])[0]
        if self.config.color_jitter is not None:
            picked = color_jitter(picked / 255, self.config.color_jitter, generator)
        if self.config.crop_min_scale is not None:
            crops = random_crops(len(indices), self.config.crop_min_scale, self.flip, generator)
            return Shown(picked, crops)
        return Shown(picked, random_windows(len(indices), self.padding, self.flip, generator))

    def view(self, shown: Shown) -> Tensor:
        """Return a drawn view, normalised, float32 (B, C, H, W)."""
        if isinstance(shown.place, Crops):
            return crop(normalize(shown.picked, self.mean, self.std), shown.place)
        picked = cut_windows(shown.picked, self.padding, shown.place)
        return normalize(picked, self.mean, self.std)

    def mixture(self, plain: Tensor, generator: torch.Generator) -> Mixture:
        """Draw the MixUp and the CutMix view of plainly drawn images with resampled ones."""
        resampled = torch.multinomial(
            self.draw_weights, len(plain), replacement=True, generator=generator
        )
        pictures = (plain, plain, resampled, resampled)
        shown = _joined([self.shown(indices, generator) for indices in pictures])
        lam, row, column = torch.rand(3, generator=generator, dtype=torch.float64)
        box = cut_box(*self.images.shape[2:], *(float(v) for v in (lam, row, column)))
        share = torch.stack([lam, box.kept])
        shares = torch.stack([share, 1 - share]).float()
        return Mixture(shown, self.labels[torch.cat([plain, resampled])], shares, box)

    def mix_views(self, drawn: Mixture) -> tuple[Tensor, Tensor]:
        """Return both views, one behind the other: (2B, C, H, W), label probabilities (2B, K)."""
        first, second, other_first, other_second = self.view(drawn.shown).chunk(4)
        y, other_y = one_hot(drawn.labels, self.num_classes).chunk(2)
        own, others = drawn.shares
        mixup = own[0] * first + others[0] * other_first
        cutmix = paste(second, other_second, drawn.box)
        targets = own[:, None, None] * y + others[:, None, None] * other_y
        return torch.cat([mixup, cutmix]), targets.flatten(0, 1)

    def pairs(self, plain: Tensor, generator: torch.Generator) -> Pairs:
        """Draw a partner for each image, tail classes more often and with more weight."""
        power = next(tau for most, tau in UNIMIX_POWERS.items() if self.num_classes <= most)
        labels = self.labels[plain]
        own = self.counts[labels]
        partner = torch.multinomial(
            own.pow(power), len(plain), replacement=True, generator=generator
        )
        other = own[partner]
        seed = int(torch.randint(2**62, (), generator=generator))
        beta = np.random.default_rng(seed).beta(UNIMIX_ALPHA, UNIMIX_ALPHA, len(plain))
        lam = (torch.from_numpy(beta) + other / (own + other)).float()
        lam = torch.where(lam > 1, lam - 1, lam)
        return Pairs(self.shown(plain, generator), labels, partner, lam)

    def unimix(self, drawn: Pairs) -> Tensor:
        """Return the mixed view (B, C, H, W)."""
        view, share = self.view(drawn.shown), drawn.lam.view(-1, 1, 1, 1)
        return share * view[: len(share)] + (1 - share) * view[drawn.partner]


def part_of(drawn: Drawn, rows: slice) -> Drawn:
    """Return what was drawn of some images of a batch."""
    match drawn:
        case Mixture():
            pictures, labels = (
                torch.arange(len(mirrored)).view(sets, -1)[:, rows].flatten()
                for mirrored, sets in ((drawn.shown.place.mirrored, 4), (drawn.labels, 2))
            )
            return drawn._replace(shown=_part(drawn.shown, pictures), labels=drawn.labels[labels])
        case Pairs():
            places = torch.arange(len(drawn.partner))[rows]
            shown = torch.cat([places, drawn.partner[rows]])
            partner = torch.arange(len(places), len(shown))
            return Pairs(_part(drawn.shown, shown), drawn.labels[shown], partner, drawn.lam[rows])
    return Labelled(_part(drawn.shown, rows), drawn.labels[rows])


def _part(shown: Shown, rows: slice | Tensor) -> Shown:
    place: Windows | Crops
    if isinstance(shown.place, Windows):
        place = Windows(shown.place.corners[:, rows], shown.place.mirrored[rows])
    else:
        place = Crops(shown.place.boxes[rows], shown.place.mirrored[rows])
    return Shown(shown.picked[rows], place)


def _joined(shown: Sequence[Shown]) -> Shown:
    """Return several views as one."""
    kind = type(shown[0].place)
    where, mirrored = zip(*(one.place for one in shown), strict=True)
    # Images are the last dimension but one, of corners and of boxes.
    place = kind(torch.cat(where, dim=-2), torch.cat(mirrored))
    return Shown(torch.cat([one.picked for one in shown]), place)


def fits(images: Tensor, device: torch.device) -> bool:
    """Return whether images may be copied to a device: a quarter of its free memory holds them."""
    return device.type == "cpu" or 4 * images.numel() < torch.cuda.mem_get_info(device)[0]
