"""Crops of real images, chosen by what a teacher makes of them.

Every real image offers K random crops. The published choice (arXiv:2511.18858, confidence-guided
initialization) scores them by the teacher's log-probability of the true class and goes in rounds:
the best unused crop of every image first, then the second best, and so on. A head class never uses
an image twice, and a tail class with few images stays diverse. RDED (arXiv:2312.03526) is the first
round alone, of at most 300 images of a class; it may stitch several small crops to one image.

The other choice clusters the crops of a class by the teacher's features and takes the one nearest
to every centre (k-means representatives, DREAM, arXiv:2302.14416), so that they stand for the whole
class and not for what the teacher is surest of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.config import ClusteredCrops, InitializationConfig
from ltdd.data.augmentation.crops import Crops, crop, normalize, random_crops
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.runtime import Runtime
from ltdd.models.inference import check_logits, view_logits

CLUSTERED_CROPS = 10_000  # of a class at most, of images drawn at random


@dataclass(frozen=True)
class Cropping:
    """Crops of real images, chosen by what a teacher makes of them."""

    teacher: nn.Module
    data: LongTailedData
    ipc: int
    config: InitializationConfig | ClusteredCrops
    runtime: Runtime
    chunks: Chunks

    def scored(self, members: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Return the best scored crops of a class, picked in rounds, and their images.

        Of an image of several crops, the image of the first one counts.
        """
        config = self.config
        assert isinstance(config, InitializationConfig)
        tiles = config.tiles
        if config.images_per_class is not None and config.images_per_class < len(members):
            generator = self.runtime.stream("initialization", "drawn", label)
            order = torch.randperm(len(members), generator=generator)
            members = members[order[: config.images_per_class].sort().values]
        wanted = self.ipc * tiles**2
        boxes, seen = self._candidates(self.teacher, members, label, wanted, tiles)
        scores = F.log_softmax(seen, dim=2)[..., label]
        # (refill, image, crop) -> one row of scores an image
        per_image = config.crops_per_image
        table = torch.cat(list(scores.view(-1, len(members), per_image)), dim=1)
        image, column = select_in_rounds(table, wanted)
        refill, position = column // per_image, image * per_image + column % per_image
        crops, source = self._cut(members[image], boxes[refill, position])
        if tiles > 1:
            crops, source = stitch(shrink(crops, tiles), tiles), source[:: tiles**2]
        return crops, source

    def clustered(self, members: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Return the crops of a class nearest to the centres of clusters, and their images."""
        per_image = self.config.crops_per_image
        generator = self.runtime.stream("initialization", "clusters", label)
        order = torch.randperm(len(members), generator=generator)
        drawn = members[order[: max(CLUSTERED_CROPS // per_image, self.ipc)]]
        features = cast(Callable[[Tensor], Tensor], self.teacher.features)
        boxes, seen = self._candidates(features, drawn, label, self.ipc)
        directions = F.normalize(seen.flatten(0, 1), dim=1)
        row = nearest_to_centres(directions, self.ipc, generator.initial_seed())
        image = row % boxes.shape[1] // per_image
        return self._cut(drawn[image], boxes.flatten(0, 1)[row])

    def _candidates(
        self,
        look: Callable[[Tensor], Tensor],
        members: Tensor,
        label: int,
        wanted: int,
        tiles: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Draw crops of every image and look at them, again until there are enough.

        Returns:
            Boxes (refills, n K, 4) and what was seen (refills, n K, ...), image by image. One
            refill is enough unless the class has fewer than ``wanted`` / K images.
        """
        boxes: list[Tensor] = []
        seen: list[Tensor] = []
        source = members.repeat_interleave(self.config.crops_per_image)
        while len(boxes) * len(source) < wanted:
            generator = self.runtime.stream("initialization", label, len(boxes))
            drawn = random_crops(len(source), self.config.crop_min_scale, False, generator).boxes
            boxes.append(drawn)
            seen.append(self._look(look, source, drawn, tiles))
            check_logits(seen[-1], f"initialization: class {label}")
        return torch.stack(boxes), torch.stack(seen)

    def _look(
        self, look: Callable[[Tensor], Tensor], source: Tensor, boxes: Tensor, tiles: int
    ) -> Tensor:
        data, device = self.data, self.runtime.device
        mean, std = (torch.tensor(v, device=device) for v in (data.mean, data.std))

        def compute(part: slice) -> Tensor:
            images = data.train_images[source[part]].to(device) / 255
            views = normalize(crop(images, _upright(boxes[part])), mean, std)
            if tiles > 1:  # the network takes images of the full size: the rest is grey
                small = shrink(views, tiles)
                rest = views.shape[3] - small.shape[3]
                views = F.pad(small, (rest // 2, rest - rest // 2) * 2)
            return view_logits(look, views, self.runtime, self.chunks).float().cpu()

        return torch.cat(list(self.chunks.map(compute, len(source))))

    def _cut(self, source: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        images = self.data.train_images[source] / 255
        return crop(images, _upright(boxes)).contiguous(), source


def shrink(images: Tensor, tiles: int) -> Tensor:
    """Return images (N, C, H, W) with sides of 1/f, without aliasing."""
    size = [side // tiles for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def stitch(crops: Tensor, tiles: int) -> Tensor:
    """Put every f x f crops side by side, row by row.

    Args:
        crops: (N f^2, C, h, w).
        tiles: f.

    Returns:
        (N, C, f h, f w).
    """
    _, channels, height, width = crops.shape
    grid = crops.view(-1, tiles, tiles, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(-1, channels, tiles * height, tiles * width)


def _upright(boxes: Tensor) -> Crops:
    return Crops(boxes, torch.zeros(len(boxes), dtype=torch.bool))


def select_in_rounds(scores: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Pick crops round by round: the best unused crop of every image, best images first.

    Args:
        scores: float (n, K), one row an image, one column a crop; n * K >= wanted.
        wanted: M, number of crops to pick.

    Returns:
        (image, column), int64 (M,) each. Ties go to the lower image, then the lower column.
    """
    ranked, columns = scores.sort(dim=1, descending=True, stable=True)
    image_rounds, column_rounds = [], []
    for r in range(scores.shape[1]):
        order = ranked[:, r].sort(descending=True, stable=True).indices
        image_rounds.append(order)
        column_rounds.append(columns[order, r])
    return torch.cat(image_rounds)[:wanted], torch.cat(column_rounds)[:wanted]


def nearest_to_centres(features: Tensor, wanted: int, seed: int) -> Tensor:
    """Pick rows that stand for all: k-means, then the nearest row to each centre.

    Centres choose in the order of their clusters' sizes, largest first, among the rows that are
    left, so that no row is picked twice.

    Args:
        features: float32 (n, D), n >= wanted.
        wanted: M, number of rows to pick.
        seed: of the first centres.

    Returns:
        int64 (M,), distinct rows.
    """
    # Imported here because it takes a second or two, which no other method needs.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer different rows than centres: the nearest of those that are left are as good as any.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(wanted, n_init=1, random_state=seed % 2**32).fit(features.numpy())
    sizes = torch.from_numpy(found.labels_).long().bincount(minlength=wanted)
    distances = torch.cdist(torch.from_numpy(found.cluster_centers_), features)
    picked = []
    for centre in sizes.sort(descending=True, stable=True).indices.tolist():
        row = int(distances[centre].argmin())
        distances[:, row] = torch.inf
        picked.append(row)
    return torch.tensor(picked)
