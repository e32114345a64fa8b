"""Stage 3: where the synthetic images start.

Every real image offers K random crops. The published choice (arXiv:2511.18858, confidence-guided
initialization) scores them by the teacher's log-probability of the true class and goes in rounds:
the best unused crop of every image first, then the second best, and so on. A head class never uses
an image twice, and a tail class with few images stays diverse.

The best of thousands of crops are all of one kind, though. The other choice clusters the crops of a
class by the teacher's features and takes the one nearest to every centre (k-means representatives,
DREAM, arXiv:2302.14416), so that they stand for the whole class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from ltdd.chunks import Chunks
from ltdd.config import InitializationConfig
from ltdd.data.augment import Crops, crop, normalise, random_crops
from ltdd.data.datasets import LongTailedData
from ltdd.inference import check_logits, view_logits
from ltdd.runtime import Runtime

SCORING_BATCH = 500  # crops rendered at once, fewer if memory does not suffice
CLUSTERED_CROPS = 10_000  # of a class at most, of images drawn at random


@dataclass(frozen=True)
class InitialImages:
    """The state before recovery, class by class.

    Attributes:
        images: float32 (M, C, H, W) in [0, 1], M = K * ipc, class-major.
        labels: int64 (M,).
        source: int64 (M,), index of the training image each one was cut from; -1 for noise.
    """

    images: Tensor
    labels: Tensor
    source: Tensor


def initialize_images(
    teacher: nn.Module,
    data: LongTailedData,
    ipc: int,
    config: InitializationConfig,
    runtime: Runtime,
) -> InitialImages:
    """Return ``ipc`` images of every class.

    Args:
        teacher: sees the crops of ``scored_crops``; of ``clustered_crops``, its ``features`` do.
        data: the long-tailed data; only its training images are read.
        ipc: images per class.
        config: method and crop settings.
        runtime: device, precision, seed.
    """
    images, sources = [], []
    teacher.eval()
    chunks = Chunks("initialization", SCORING_BATCH, runtime)
    with runtime.progress(data.num_classes, "initialization") as progress:
        for label in range(data.num_classes):
            members = torch.nonzero(data.train_labels == label).flatten()
            match config.method:
                case "scored_crops":
                    chosen, source = _scored_crops(
                        teacher, data, members, label, ipc, config, runtime, chunks
                    )
                case "clustered_crops":
                    chosen, source = _clustered_crops(
                        teacher, data, members, label, ipc, config, runtime, chunks
                    )
                case "random_real":
                    source = members[_cycled_draw(len(members), ipc, label, runtime)]
                    chosen = data.train_images[source] / 255
                case "noise":
                    chosen = _noise(data, ipc, label, runtime)
                    source = torch.full((ipc,), -1)
            images.append(chosen)
            sources.append(source)
            progress.step(images=len(members))
    labels = torch.arange(data.num_classes).repeat_interleave(ipc)
    return InitialImages(torch.cat(images), labels, torch.cat(sources))


def _cycled_draw(available: int, wanted: int, label: int, runtime: Runtime) -> Tensor:
    """Draw without replacement; a class with too few images starts over."""
    generator = runtime.stream("initialization", "random_real", label)
    rounds = -(-wanted // available)
    draws = [torch.randperm(available, generator=generator) for _ in range(rounds)]
    return torch.cat(draws)[:wanted]


def _noise(data: LongTailedData, ipc: int, label: int, runtime: Runtime) -> Tensor:
    generator = runtime.stream("initialization", "noise", label)
    shape = (ipc, data.channels, data.image_size, data.image_size)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    return (mean + std * torch.randn(shape, generator=generator)).clamp(0, 1)


def _scored_crops(
    teacher: nn.Module,
    data: LongTailedData,
    members: Tensor,
    label: int,
    ipc: int,
    config: InitializationConfig,
    runtime: Runtime,
    chunks: Chunks,
) -> tuple[Tensor, Tensor]:
    candidates = _Candidates(teacher, data, members, label, ipc, config, runtime, chunks)
    scores = [F.log_softmax(part, dim=1)[:, label] for part in candidates.seen]
    # (refill, image, crop) -> one row of scores an image
    per_image = config.crops_per_image
    table = torch.cat([part.view(len(members), per_image) for part in scores], dim=1)
    image, column = select_in_rounds(table, ipc)
    refill, position = column // per_image, image * per_image + column % per_image
    return candidates.cut(refill * len(candidates.source) + position)


def _clustered_crops(
    teacher: nn.Module,
    data: LongTailedData,
    members: Tensor,
    label: int,
    ipc: int,
    config: InitializationConfig,
    runtime: Runtime,
    chunks: Chunks,
) -> tuple[Tensor, Tensor]:
    most = max(CLUSTERED_CROPS // config.crops_per_image, ipc)
    generator = runtime.stream("initialization", "clusters", label)
    drawn = members[torch.randperm(len(members), generator=generator)[:most]]
    features = cast(Callable[[Tensor], Tensor], teacher.features)
    candidates = _Candidates(features, data, drawn, label, ipc, config, runtime, chunks)
    directions = F.normalize(torch.cat(candidates.seen), dim=1)
    return candidates.cut(nearest_to_centres(directions, ipc, generator.initial_seed()))


class _Candidates:
    """Crops of a class to choose from, and what the teacher makes of them.

    Attributes:
        source: int64 (n K,), index of the training image of each crop.
        boxes: float (n K, 4), where it lies; one tensor a refill.
        seen: float32 (n K, ...), what the teacher returns; one tensor a refill.
    """

    def __init__(
        self,
        teacher: Callable[[Tensor], Tensor],
        data: LongTailedData,
        members: Tensor,
        label: int,
        ipc: int,
        config: InitializationConfig,
        runtime: Runtime,
        chunks: Chunks,
    ) -> None:
        self.data, self.source = data, members.repeat_interleave(config.crops_per_image)
        self.boxes: list[Tensor] = []
        self.seen: list[Tensor] = []
        # One refill is enough unless the class has fewer than ipc / K images.
        while len(self.seen) * len(self.source) < ipc:
            generator = runtime.stream("initialization", label, len(self.boxes))
            drawn = random_crops(len(self.source), config.crop_min_scale, False, generator).boxes
            self.boxes.append(drawn)
            self.seen.append(self._see(teacher, drawn, runtime, chunks))
            check_logits(self.seen[-1], f"initialization: class {label}")

    def _see(
        self,
        teacher: Callable[[Tensor], Tensor],
        boxes: Tensor,
        runtime: Runtime,
        chunks: Chunks,
    ) -> Tensor:
        data = self.data
        mean, std = (torch.tensor(v, device=runtime.device) for v in (data.mean, data.std))

        def compute(part: slice) -> Tensor:
            images = data.train_images[self.source[part]].to(runtime.device) / 255
            views = normalise(crop(images, _upright(boxes[part])), mean, std)
            return view_logits(teacher, views, runtime, chunks).float().cpu()

        return torch.cat(list(chunks.map(compute, len(self.source))))

    def cut(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the crops of some rows, counted through all refills, and their sources."""
        source = self.source[rows % len(self.source)]
        images = crop(self.data.train_images[source] / 255, _upright(torch.cat(self.boxes)[rows]))
        return images.contiguous(), source


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
