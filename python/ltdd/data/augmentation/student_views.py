"""The views a student trains on, addressed by (seed, epoch) so that they can be replayed.

Relabeling runs the teacher over exactly the views that evaluation shows the student later, without
storing a single coordinate: both ask the same `ViewSchedule`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ltdd.config import EvaluationConfig
from ltdd.data.augmentation.crops import (
    Crops,
    CutBox,
    crop,
    normalize,
    paste,
    random_crops,
    random_cut_box,
)
from ltdd.data.augmentation.randaugment import rand_augment
from ltdd.engine.runtime import stream_seed

MOST_EPOCHS = 16  # that RandAugment changes at once
AUGMENTED_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # of images, and no more than that at once


class View(NamedTuple):
    """One augmented batch.

    Attributes:
        indices: int64 (B,), positions in the distilled set.
        crops: one crop per image.
        partner: int64 (B,), whose rectangle is pasted into which image (CutMix), or None.
        box: the rectangle, or None.
    """

    indices: Tensor
    crops: Crops
    partner: Tensor | None
    box: CutBox | None


@dataclass(frozen=True)
class ViewSchedule:
    """All views of a student's training.

    Args:
        seed: root of the random streams.
        num_images: M, images in the distilled set.
        height, width: pixels.
        flip: whether views may be mirrored.
        config: batch size, crop scale, CutMix and RandAugment.
    """

    seed: int
    num_images: int
    height: int
    width: int
    flip: bool
    config: EvaluationConfig

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-self.num_images // self.config.batch_size)

    def epoch(self, epoch: int) -> Iterator[View]:
        """Yield the views of one epoch; every image appears once."""
        generator = self._stream("views", epoch)
        order = torch.randperm(self.num_images, generator=generator)
        # Batches of nearly equal size: a last batch of one image would stop a batch-norm student.
        for indices in torch.tensor_split(order, self.steps):
            crops = random_crops(len(indices), self.config.crop_min_scale, self.flip, generator)
            partner = box = None
            if self.config.cutmix:
                partner = torch.randperm(len(indices), generator=generator)
                box = random_cut_box(self.height, self.width, generator)
            yield View(indices, crops, partner, box)

    def pictures(self, images: Tensor, first: int = 0) -> Iterator[Tensor]:
        """Yield what the views of each epoch are cut from, uint8 (M, C, H, W), from ``first`` on.

        RandAugment changes the images of several epochs at once, always of the same ones.
        """
        epochs = self.config.epochs
        if not self.config.randaugment:
            yield from itertools.repeat(images, epochs - first)
            return
        together = max(1, min(MOST_EPOCHS, AUGMENTED_BYTES[images.device.type] // images.nbytes))
        for start in range(first - first % together, epochs, together):
            block = range(start, min(start + together, epochs))
            changed = rand_augment(images, [self._stream("randaugment", e) for e in block])
            yield from changed[max(first - start, 0) :]

    def _stream(self, name: str, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, name, epoch))


def render(view: View, picked: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the batch of a view as networks see it; all tensors are on one device.

    Args:
        view: the view.
        picked: uint8 (B, C, H, W), its images before the crop.
        mean, std: (C,), in units of [0, 1].

    Returns:
        float32 (B, C, H, W), normalised, channels_last.
    """
    batch = crop(normalize(picked, mean, std), view.crops)
    if view.partner is None or view.box is None:
        return batch
    return paste(batch, batch[view.partner], view.box)


def mix(view: View, values: Tensor) -> Tensor:
    """Mix per-image values of a batch in the proportion in which the view mixes the images.

    Args:
        view: the view, on the device of the values.
        values: (B, K), in the order of ``view.indices``.
    """
    if view.partner is None or view.box is None:
        return values
    kept = view.box.kept
    return kept * values + (1 - kept) * values[view.partner]


def mix_labels(view: View, labels: Tensor, num_classes: int) -> Tensor:
    """Return the class probabilities (B, K) of a view; ``labels`` is int64 (M,)."""
    return mix(view, one_hot(labels[view.indices], num_classes))


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return class probabilities (B, K), float32, of int64 labels (B,).

    torch's own reads the labels on the host where they are on a CPU.
    """
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
