"""Stage 2: class-balanced batch-norm statistics of the frozen observer (arXiv:2511.18858, Eq. 8-9).

One deterministic pass over the un-augmented long-tailed images. For every layer and class it keeps
the exact count, mean, within-image and between-image variance; the order and the size of batches do
not matter, because the dynamic momentum of Eq. 8 is applied as an exact merge of moments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltdd.config import StatisticsConfig
from ltdd.data.augment import normalise
from ltdd.data.datasets import LongTailedData
from ltdd.observation import Observer, running_statistics
from ltdd.runtime import Runtime
from ltdd.targets import LayerStatistics


@torch.no_grad()
def calibrate_statistics(
    observer: nn.Module, data: LongTailedData, config: StatisticsConfig, runtime: Runtime
) -> list[LayerStatistics]:
    """Return the per-class statistics of every batch-norm layer of the observer.

    Args:
        observer: trained network with BatchNorm2d layers.
        data: the long-tailed data; only its training images are read.
        config: batch size of the pass.
        runtime: device, precision and backend.

    Returns:
        One `LayerStatistics` a layer, in order of registration.
    """
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    images, labels = data.train_images, data.train_labels
    return class_statistics(observer, images, labels, data.num_classes, mean, std, config, runtime)


@torch.no_grad()
def class_statistics(
    observer: nn.Module,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    mean: Tensor,
    std: Tensor,
    config: StatisticsConfig,
    runtime: Runtime,
) -> list[LayerStatistics]:
    """Return the per-class statistics of the observer's batch-norm layers on any images.

    Args:
        observer: trained network with BatchNorm2d layers.
        images: (N, C, H, W), uint8 or float in [0, 1].
        labels: int64 (N,), 0..K-1.
        num_classes: K.
        mean, std: (C,), in units of [0, 1].
        config: batch size of the pass.
        runtime: device, precision and backend.
    """
    recorder = Observer(observer, runtime.ops)
    mean, std = mean.to(runtime.device), std.to(runtime.device)
    states = [_empty_state(num_classes, layer.num_features, runtime) for layer in recorder.layers]
    batches = torch.arange(len(labels)).split(config.batch_size)
    with runtime.progress(len(batches), "statistics") as progress:
        for indices in batches:
            batch = normalise(images[indices].to(runtime.device), mean, std)
            batch_labels = labels[indices].to(runtime.device)
            with runtime.autocast():
                _, moments = recorder(batch)
            for state, rows in zip(states, moments, strict=True):
                runtime.ops.class_moments_update_(
                    *state, rows.mean, rows.m2, rows.spatial_size, batch_labels
                )
            progress.step(images=len(indices))
    layers = []
    for state, running in zip(states, running_statistics(recorder.layers), strict=True):
        class_mean, within, between, _ = runtime.ops.class_moments_finish(*state)
        layers.append(
            LayerStatistics(state[0].cpu(), class_mean.cpu(), within.cpu(), between.cpu(), *running)
        )
    return layers


def _empty_state(num_classes: int, channels: int, runtime: Runtime) -> tuple[Tensor, ...]:
    count = torch.zeros(num_classes, dtype=torch.int64, device=runtime.device)
    zeros = [
        torch.zeros(num_classes, channels, dtype=torch.float64, device=runtime.device)
        for _ in range(3)
    ]
    return (count, *zeros)
