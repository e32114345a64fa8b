"""A tiny long-tailed data set, a tiny observer and the surroundings of a stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime


class Recorder:
    """Keeps the events of a stage."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.events if entry["event"] == event]


@pytest.fixture
def log() -> Recorder:
    return Recorder()


@pytest.fixture
def runtime(log: Recorder) -> Runtime:
    return Runtime(torch.device("cpu"), backend="reference", seed=3, log=log, quiet=True)


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


@pytest.fixture(scope="session")
def data() -> LongTailedData:
    """Three classes of 24, 8 and 2 images of 8x8 pixels."""
    return make_data((24, 8, 2))


@pytest.fixture(scope="session")
def balanced() -> LongTailedData:
    """Three classes of 6 images each."""
    return make_data((6, 6, 6))


@pytest.fixture
def observer() -> nn.Module:
    """A frozen-looking network with two batch-norm layers and a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
