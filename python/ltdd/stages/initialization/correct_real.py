"""Real images that experts get right (DATM, arXiv:2310.05773), of classes of any size.

The images of a class stand in a random order. The first expert, as it is at the end of its
training, walks along them and keeps those it gets right; the next one goes on with those that are
left, until there are enough.

Deviation: every expert walks once, where the published code walks for ever if no expert gets enough
images right. Then those images follow of whose class the experts together are surest, and when all
are taken, they come again in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.data.augmentation.crops import normalize
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.runtime import Runtime
from ltdd.models.inference import view_logits
from ltdd.stages.trajectories import Trajectories

Look = Callable[[Tensor], Tensor]
"""One expert's log-probabilities (n, K) of training images, given their positions (n,)."""


def draw_correct_real(
    trajectories: Trajectories,
    data: LongTailedData,
    label: int,
    wanted: int,
    runtime: Runtime,
    chunks: Chunks,
) -> Tensor:
    """Draw images of a class that experts get right.

    Returns:
        int64 (wanted,), positions of training images of the class.
    """
    mean, std = data.normalization.tensors(runtime.device)

    def expert(number: int) -> Look:
        theta = trajectories.paths[number].value.expert.to(runtime.device)

        def look(rows: Tensor) -> Tensor:
            images = normalize(data.train_images[rows].to(runtime.device), mean, std)
            logits = view_logits(lambda x: trajectories.network(theta, x), images, runtime, chunks)
            return F.log_softmax(logits.float(), 1).cpu()

        return look

    generator = runtime.stream("initialization", "correct_real", label)
    members = data.members(label)
    order = members[torch.randperm(len(members), generator=generator)]
    looks = [expert(number) for number in range(len(trajectories.paths))]
    return walk(looks, order, label, wanted, chunks.size)


def walk(experts: Sequence[Look], members: Tensor, label: int, wanted: int, at_once: int) -> Tensor:
    """Choose images of a class: the right ones, then the surest ones, then all again.

    Args:
        experts: in the order in which they walk.
        members: int64 (n,), images of the class in the order in which they are walked along.
        label: the class.
        wanted: number of images.
        at_once: images that an expert is asked for together.

    Returns:
        int64 (wanted,).
    """
    kept, left = members[:0], members
    for look in experts:
        missed = []
        for part in left.split(at_once):
            if len(part) and len(kept) < wanted:
                right = look(part).argmax(1) == label
                kept, part = torch.cat([kept, part[right]]), part[~right]
            missed.append(part)
        left = torch.cat(missed) if missed else left
    if len(kept) < wanted and len(left):
        sureness = torch.stack([look(left)[:, label] for look in experts]).mean(0)
        kept = torch.cat([kept, left[sureness.sort(descending=True, stable=True).indices]])
    return kept[torch.arange(wanted) % len(kept)]
