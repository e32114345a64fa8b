"""A tiny long-tailed data set of striped images, and a log that keeps its events."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltdd.data.long_tailed_data import LongTailedData


class Recorder:
    """Keeps the events of a stage."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.events if entry["event"] == event]


def stripes(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Images (N, 3, size, size) whose class is the colour and direction of their stripes."""
    grid = torch.arange(size)
    patterns = torch.stack(
        [
            (grid % 2 == 0)[:, None].expand(size, size),
            (grid % 2 == 0)[None].expand(size, size),
            ((grid[:, None] + grid) // 2 % 2 == 0),
        ]
    ).float()
    tint = torch.eye(3) * 0.5 + 0.25
    base = patterns[labels % 3][:, None] * tint[labels % 3][:, :, None, None]
    noise = torch.rand(len(labels), 3, size, size, generator=generator)
    return ((0.75 * base + 0.25 * noise) * 255).round().to(torch.uint8)


def make_data(counts: tuple[int, ...], size: int = 8, test_per_class: int = 10) -> LongTailedData:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(len(counts))
    train_labels = classes.repeat_interleave(torch.tensor(counts))
    train_labels = train_labels[torch.randperm(len(train_labels), generator=generator)]
    test_labels = classes.repeat_interleave(test_per_class)
    return LongTailedData(
        train_images=stripes(train_labels, size, generator),
        train_labels=train_labels,
        test_images=stripes(test_labels, size, generator),
        test_labels=test_labels,
        class_names=tuple(f"class {c}" for c in classes.tolist()),
        mean=(0.4, 0.35, 0.3),
        std=(0.25, 0.3, 0.2),
        split_sha256="0" * 64,
        source="stripes",
    )
