"""The views a student trains on, addressed by (seed, epoch) so that they can be replayed.

Relabeling runs the teacher over exactly the views that evaluation shows the student later, without
storing a single coordinate: both ask the same `ViewSchedule`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltdd.config import EvaluationConfig
from ltdd.data.augmentation.crops import (
    Crops,
    CutBox,
    Windows,
    crop,
    cut_windows,
    normalize,
    paste,
    random_crops,
    random_cut_box,
    random_windows,
)
from ltdd.data.augmentation.dsa import DsaDraw, DsaMode, apply_dsa, draw_dsa, usable_operations
from ltdd.data.augmentation.randaugment import rand_augment
from ltdd.engine.runtime import stream_seed

# That RandAugment changes at once: its 600 launches take as long for many images as for few.
MOST_EPOCHS = {"cpu": 16, "cuda": 64}
MOST_BLOCKS = 64  # into which short trainings are divided
AUGMENTED_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # of images, and no more than that at once
PADDING_SHARE = 1 / 8  # of the side, by which windows may move


class Blend(NamedTuple):
    """MixUp.

    Attributes:
        kept: float64 scalar, an image's own share.
    """

    kept: Tensor


class View(NamedTuple):
    """One augmented batch.

    Attributes:
        indices: int64 (B,), positions in the distilled set.
        change: of each image by itself.
        partner: int64 (B,), the other image of each one, or None.
        mixing: the rectangle of the other that is pasted (CutMix), or its share (MixUp), or None.
    """

    indices: Tensor
    change: Crops | Windows | DsaDraw
    partner: Tensor | None
    mixing: CutBox | Blend | None


@dataclass(frozen=True)
class ViewSchedule:
    """All views of a student's training.

    Args:
        seed: root of the random streams.
        num_images: M, images in the distilled set.
        height, width: pixels.
        flip: whether views may be mirrored.
        config: batch size, augmentation and mixing.
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
            change = self._change(len(indices), generator)
            partner = mixing = None
            if self._mixes(generator):
                partner = torch.randperm(len(indices), generator=generator)
                mixing = self._mixing(generator)
            yield View(indices, change, partner, mixing)

    def pictures(self, images: Tensor, first: int = 0) -> Iterator[Tensor]:
        """Yield what the views of each epoch are cut from, uint8 (M, C, H, W), from ``first`` on.

        RandAugment changes the images of several epochs at once, always of the same ones.
        """
        epochs = self.config.epochs
        if not self.config.randaugment:
            yield from itertools.repeat(images, epochs - first)
            return
        together = self._together(images)
        for start in range(first - first % together, epochs, together):
            block = range(start, min(start + together, epochs))
            changed = rand_augment(images, [self._stream("randaugment", e) for e in block])
            yield from changed[max(first - start, 0) :]

    def blocks(self, images: Tensor) -> list[range]:
        """Return all epochs in blocks: each may be asked for by itself without loss."""
        epochs = self.config.epochs
        together = self._together(images) if self.config.randaugment else 1
        most = MOST_EPOCHS[images.device.type]
        size = together * max(1, min(most, -(-epochs // MOST_BLOCKS)) // together)
        return [range(start, min(start + size, epochs)) for start in range(0, epochs, size)]

    def _together(self, images: Tensor) -> int:
        """Return how many epochs RandAugment changes at once."""
        kind = images.device.type
        return max(1, min(MOST_EPOCHS[kind], AUGMENTED_BYTES[kind] // images.nbytes))

    def _change(self, count: int, generator: torch.Generator) -> Crops | Windows | DsaDraw:
        kind = self.config.augmentation
        if kind == "crops":
            return random_crops(count, self.config.crop_min_scale, self.flip, generator)
        if kind == "padded":
            return random_windows(count, _padding(self.height), self.flip, generator)
        operations = usable_operations(self.config.dsa_operations, self.flip)
        mode: DsaMode = "idc" if kind == "idc" else "single"
        return draw_dsa(count, self.height, operations, mode, generator)

    def _mixes(self, generator: torch.Generator) -> bool:
        """Return whether a batch is mixed; nothing is drawn where all are."""
        share = self.config.cutmix_probability
        if not self.config.cutmix or share == 1:
            return self.config.cutmix or self.config.mixup > 0
        return float(torch.rand((), generator=generator)) < share

    def _mixing(self, generator: torch.Generator) -> CutBox | Blend:
        if self.config.cutmix:
            return random_cut_box(self.height, self.width, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        share = np.random.default_rng(seed).beta(self.config.mixup, self.config.mixup)
        return Blend(torch.tensor(share, dtype=torch.float64))

    def _stream(self, name: str, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, name, epoch))


def render(view: View, picked: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the batch of a view as networks see it; all tensors are on one device.

    Args:
        view: the view.
        picked: uint8 (B, C, H, W), its images as they are.
        mean, std: (C,), in units of [0, 1].

    Returns:
        float32 (B, C, H, W), normalised, channels_last.
    """
    batch = _changed(view.change, picked, mean, std)
    if view.partner is None or view.mixing is None:
        return batch
    others = batch[view.partner]
    if isinstance(view.mixing, CutBox):
        return paste(batch, others, view.mixing)
    return view.mixing.kept * batch + (1 - view.mixing.kept) * others


def _changed(
    change: Crops | Windows | DsaDraw, picked: Tensor, mean: Tensor, std: Tensor
) -> Tensor:
    if isinstance(change, Windows):  # black lies around the image
        return normalize(cut_windows(picked, _padding(picked.shape[2]), change), mean, std)
    batch = normalize(picked, mean, std)
    if isinstance(change, Crops):
        return crop(batch, change)
    return apply_dsa(batch, change).contiguous(memory_format=torch.channels_last)


def _padding(side: int) -> int:
    return int(PADDING_SHARE * side)


def mix(view: View, values: Tensor) -> Tensor:
    """Mix per-image values of a batch in the proportion in which the view mixes the images.

    Args:
        view: the view, on the device of the values.
        values: (B, K), in the order of ``view.indices``.
    """
    if view.partner is None or view.mixing is None:
        return values
    kept = view.mixing.kept
    return kept * values + (1 - kept) * values[view.partner]


def mix_labels(view: View, labels: Tensor, num_classes: int) -> Tensor:
    """Return the class probabilities (B, K) of a view; ``labels`` is int64 (M,)."""
    return mix(view, one_hot(labels[view.indices], num_classes))


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return class probabilities (B, K), float32, of int64 labels (B,).

    torch's own reads the labels on the host where they are on a CPU.
    """
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
