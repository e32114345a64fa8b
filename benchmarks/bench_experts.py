"""Images a second of expert training, against the loop of published code with the same networks.

The plain loop is that of arXiv:2511.18858's ancestors: two data loaders (one drawing evenly, one
resampled) that give two augmented views of every image one by one through torchvision's transforms,
one forward pass a view, contiguous float32, PyTorch's own layers. Ours draws and mixes batches in
memory and passes both views at once, channels last. Loss, heads and optimizer are the same code.
Blocks of steps of both alternate; all times are those of the clock, with a thread for every core.
Beside it: what a step takes beyond its convolutions alone, forward and backward, by PyTorch.

``python -m benchmarks -s -k experts`` prints the figures.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
from torchvision import transforms

from benchmarks.bench_checkpoint import CLASSES, MEAN, SIDE, STD, noise
from benchmarks.bench_student import alone
from benchmarks.timing import keep_freed_pages
from ltdd.config import ExpertsConfig
from ltdd.data.augmentation.crops import cut_box, paste
from ltdd.data.augmentation.expert_batches import Batches
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.runtime import Runtime
from ltdd.models import build_model
from ltdd.models.normalization import NormBlock
from ltdd.stages.experts.objective import ExpertNetwork, Objective
from ltdd.stages.experts.training import training_size
from ltdd.stages.losses import class_debias_weights, consistency_loss, expert_loss

BATCH, BLOCK, ROUNDS = 64, 4, 5
CONFIG = ExpertsConfig(epochs=100, batch_size=BATCH)
GROWING = {"resnet9": True, "convnet3_bn": False}  # a ConvNet is made for one size
Step = Callable[[], None]
Precision = Literal["fp32", "bf16"]


class TwoViews(Dataset[tuple[Tensor, Tensor, int]]):
    """Images as torchvision's data sets hold them: arrays, of which each item makes a picture."""

    def __init__(self, data: LongTailedData) -> None:
        self.arrays = data.train_images.permute(0, 2, 3, 1).numpy()
        self.labels = data.train_labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(SIDE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        picture = self.arrays[index]
        return self.transform(picture), self.transform(picture), self.labels[index]


def forever(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def plain_loop(data: LongTailedData, network: ExpertNetwork) -> Step:
    """Return a step of the plain loop, which moves 2 * BATCH views."""
    views = TwoViews(data)
    weights = WeightedRandomSampler([1.0] * len(views), len(views))
    plain = forever(DataLoader(views, BATCH, shuffle=True, drop_last=True))
    resampled = forever(DataLoader(views, BATCH, sampler=weights, drop_last=True))
    optimizer = sgd(network)
    class_weights = class_debias_weights(data.counts, CONFIG.debias_power, CONFIG.variant)

    def step() -> None:
        (first, second, y), (other_first, other_second, other_y) = next(plain), next(resampled)
        lam, row, column = torch.rand(3).tolist()
        one_hot, other = (torch.nn.functional.one_hot(t, CLASSES).float() for t in (y, other_y))
        box = cut_box(SIDE, SIDE, lam, row, column)
        mixup = lam * first + (1 - lam) * other_first
        cutmix = paste(second, other_second, box)
        targets = torch.cat([share * one_hot + (1 - share) * other for share in (lam, box.kept)])
        heads = network(mixup), network(cutmix)
        logits, rebalanced, z, p = (torch.cat(pair) for pair in zip(*heads, strict=True))
        consistency = consistency_loss(p, z)
        update(
            optimizer,
            expert_loss(logits, rebalanced, consistency, targets, class_weights, 0.5, CONFIG),
        )

    return step


def our_loop(
    data: LongTailedData, network: ExpertNetwork, size: int, precision: Precision = "fp32"
) -> Step:
    """Return a step of the package's own, on images of ``size`` pixels."""
    runtime = Runtime(torch.device("cpu"), precision, quiet=True)
    objective = Objective(network, Batches(data, CONFIG, True, runtime), data, runtime)
    generator, optimizer = torch.Generator().manual_seed(0), sgd(network)

    def step() -> None:
        drawn = torch.randperm(len(data.train_labels), generator=generator)[:BATCH]
        update(optimizer, objective.loss(objective.draw(drawn, generator), torch.tensor(0.5), size))

    return step


def sgd(network: ExpertNetwork) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()


def network(name: str) -> ExpertNetwork:
    torch.manual_seed(0)
    return ExpertNetwork(build_model(name, CLASSES, SIDE, 3), CLASSES, CONFIG).train()


def separate_layers(network: ExpertNetwork) -> ExpertNetwork:
    """Give up what the package computes together: every layer is PyTorch's own."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NormBlock):
                setattr(parent, name, torch.nn.Sequential(*child))
    return network


@pytest.fixture(autouse=True)
def every_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", GROWING)
def test_images_per_second_of_experts(name: str) -> None:
    keep_freed_pages()
    data = noise()
    config = dataclasses.replace(CONFIG, progressive_resizing=GROWING[name])
    sizes = [training_size(config, epoch, SIDE) for epoch in range(CONFIG.epochs)]
    steps = {"plain": plain_loop(data, separate_layers(network(name)))}
    for size in sorted(set(sizes)):
        ours = network(name).to(memory_format=torch.channels_last)
        steps[str(size)] = our_loop(data, ours, size)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS + 1):
        for loop, step in steps.items():
            begun = time.monotonic()
            for _ in range(BLOCK):
                step()
            if number:  # the first block warms up
                seconds[loop].append((time.monotonic() - begun) / BLOCK)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    if GROWING[name]:
        median["growing images"] = statistics.mean(median[str(size)] for size in sizes)
    print(f"\n{torch.get_num_threads()} threads, {name} on {SIDE} px, batch {BATCH}, two views")
    for loop, value in median.items():
        ratio = median["plain"] / value
        print(f"{loop:>15}: {2 * BATCH / value:6.0f} images/s, x {ratio:.2f} of the plain loop")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_beside_its_convolutions(precision: Precision) -> None:
    keep_freed_pages()
    data, ours = noise(), network("convnet3_bn").to(memory_format=torch.channels_last)
    views = torch.rand(2 * BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        convolutions = alone(ours.backbone, views, gradients=True, by=torch.nn.Module.__call__)
        forms = {"step": our_loop(data, ours, SIDE, precision), "convolutions": convolutions}
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(2 * ROUNDS):
            for name, form in forms.items():
                begun = time.monotonic()
                form()
                seconds[name].append(time.monotonic() - begun)
    step, alone_ = (1e3 * min(seconds[name]) for name in ("step", "convolutions"))
    print(
        f"\n{torch.get_num_threads()} threads, {precision}, {2 * BATCH} views of {SIDE} px: a step"
    )
    print(f"{step:.1f} ms, its convolutions by PyTorch {alone_:.1f}, quotient {step / alone_:.2f}")
