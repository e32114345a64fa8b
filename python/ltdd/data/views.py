"""The views a student trains on, addressed by (seed, epoch) so that they can be replayed.

Relabeling runs the teacher over exactly the views that evaluation shows the student later, without
storing a single coordinate: both ask the same `ViewSchedule`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from ltdd.config import EvaluationConfig
from ltdd.data.augment import Crops, CutBox, crop, normalise, paste, random_crops, random_cut_box
from ltdd.runtime import stream_seed


@dataclass(frozen=True)
class View:
    """One augmented batch.

    Attributes:
        indices: int64 (B,), positions in the distilled set.
        crops: one crop per image.
        partner: int64 (B,), whose rectangle is pasted into which image (CutMix), or None.
        box: the rectangle, or None.
        seed: seed of the RandAugment draws.
    """

    indices: Tensor
    crops: Crops
    partner: Tensor | None
    box: CutBox | None
    seed: int


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

    def epoch(self, epoch: int) -> Iterator[View]:
        """Yield the views of one epoch; every image appears once."""
        seed = stream_seed(self.seed, "views", epoch)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.num_images, generator=generator)
        # Batches of nearly equal size: a last batch of one image would stop a batch-norm student.
        batches = -(-self.num_images // self.config.batch_size)
        for number, indices in enumerate(torch.tensor_split(order, batches)):
            crops = random_crops(len(indices), self.config.crop_min_scale, self.flip, generator)
            partner = box = None
            if self.config.cutmix:
                partner = torch.randperm(len(indices), generator=generator)
                box = random_cut_box(self.height, self.width, generator)
            yield View(indices, crops, partner, box, stream_seed(seed, "randaugment", number))

    def render(self, view: View, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the batch as the networks see it.

        Args:
            view: one view of this schedule.
            images: uint8 (M, C, H, W), the whole distilled set.
            mean, std: (C,), in units of [0, 1].

        Returns:
            float32 (B, C, H, W), normalised, channels_last.
        """
        batch = images[view.indices.to(images.device)]
        if self.config.randaugment:
            batch = _rand_augment(batch, view.seed)
        batch = crop(normalise(batch, mean, std), view.crops)
        if view.partner is not None and view.box is not None:
            batch = paste(batch, batch[view.partner.to(batch.device)], view.box)
        return batch


def mixed(view: View, values: Tensor) -> Tensor:
    """Mix per-image values of a batch in the proportion in which the view mixes the images.

    Args:
        view: the view.
        values: (B, K), in the order of ``view.indices``.
    """
    if view.partner is None or view.box is None:
        return values
    kept = view.box.kept
    return kept * values + (1 - kept) * values[view.partner.to(values.device)]


def mixed_labels(view: View, labels: Tensor, num_classes: int) -> Tensor:
    """Return the class probabilities (B, K) of a view; ``labels`` is int64 (M,)."""
    chosen = labels[view.indices.to(labels.device)]
    return mixed(view, F.one_hot(chosen, num_classes).float())


def _rand_augment(batch: Tensor, seed: int) -> Tensor:
    # torchvision applies one draw to a whole batch, so images go through one by one.
    augment = v2.RandAugment(num_ops=2, magnitude=9)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([augment(image) for image in batch])
