"""Stage 3: where the synthetic images start (arXiv:2511.18858, confidence-guided initialization).

Every real image offers K random crops, scored by the teacher's log-probability of the true class.
Selection goes in rounds: the best unused crop of every image first, then the second best, and so
on. A head class never uses an image twice, and a tail class with few images stays diverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltdd.chunks import Chunks
from ltdd.config import InitializationConfig
from ltdd.data.augment import Crops, crop, normalise, random_crops
from ltdd.data.datasets import LongTailedData
from ltdd.inference import check_logits, view_logits
from ltdd.runtime import Runtime

SCORING_BATCH = 500  # crops rendered at once, fewer if memory does not suffice


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
        teacher: scores the crops (``scored_crops`` only).
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
    per_image = config.crops_per_image
    boxes: list[Tensor] = []
    scores: list[Tensor] = []
    # One refill round is enough unless the class has fewer than ipc / K images.
    while not boxes or sum(map(len, scores)) < ipc:
        generator = runtime.stream("initialization", label, len(boxes))
        drawn = random_crops(
            len(members) * per_image, config.crop_min_scale, False, generator
        ).boxes
        source = members.repeat_interleave(per_image)
        boxes.append(drawn)
        scores.append(_score(teacher, data, source, drawn, label, runtime, chunks))
    # (refill, image, crop) -> one row of scores an image
    table = torch.cat([s.view(len(members), per_image) for s in scores], dim=1)
    image, column = select_in_rounds(table, ipc)
    refill, position = column // per_image, image * per_image + column % per_image
    picked = torch.stack(boxes)[refill, position]
    source = members[image]
    crops = Crops(picked, torch.zeros(ipc, dtype=torch.bool))
    return crop(data.train_images[source] / 255, crops).contiguous(), source


def _score(
    teacher: nn.Module,
    data: LongTailedData,
    source: Tensor,
    boxes: Tensor,
    label: int,
    runtime: Runtime,
    chunks: Chunks,
) -> Tensor:
    mean, std = (torch.tensor(v, device=runtime.device) for v in (data.mean, data.std))

    def compute(part: slice) -> Tensor:
        crops = Crops(boxes[part], torch.zeros(len(boxes[part]), dtype=torch.bool))
        views = crop(data.train_images[source[part]].to(runtime.device) / 255, crops)
        return view_logits(teacher, normalise(views, mean, std), runtime, chunks).float().cpu()

    logits = torch.cat(list(chunks.map(compute, len(source))))
    check_logits(logits, f"initialization: class {label}")
    return F.log_softmax(logits, dim=1)[:, label]


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
