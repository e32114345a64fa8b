"""Stage 2: class-balanced batch-norm statistics of the frozen observer (arXiv:2511.18858, Eq. 8-9).

One deterministic pass over the un-augmented long-tailed images. For every layer and class it keeps
the exact count, mean, within-image and between-image variance; the order and the size of batches do
not matter, because the dynamic momentum of Eq. 8 is applied as an exact merge of moments.
"""

from __future__ import annotations

import torch
from torch import nn

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
    recorder = Observer(observer, runtime.ops)
    mean = torch.tensor(data.mean, device=runtime.device)
    std = torch.tensor(data.std, device=runtime.device)
    states = [
        _empty_state(data.num_classes, layer.num_features, runtime) for layer in recorder.layers
    ]
    batches = torch.arange(len(data.train_labels)).split(config.batch_size)
    with runtime.progress(len(batches), "statistics") as progress:
        for indices in batches:
            images = normalise(data.train_images[indices].to(runtime.device), mean, std)
            labels = data.train_labels[indices].to(runtime.device)
            with runtime.autocast():
                _, moments = recorder(images)
            for state, rows in zip(states, moments, strict=True):
                runtime.ops.class_moments_update_(
                    *state, rows.mean, rows.m2, rows.spatial_size, labels
                )
            progress.step()
    layers = []
    for state, running in zip(states, running_statistics(recorder.layers), strict=True):
        class_mean, within, between, _ = runtime.ops.class_moments_finish(*state)
        layers.append(
            LayerStatistics(state[0].cpu(), class_mean.cpu(), within.cpu(), between.cpu(), *running)
        )
    return layers


def _empty_state(num_classes: int, channels: int, runtime: Runtime) -> tuple[torch.Tensor, ...]:
    count = torch.zeros(num_classes, dtype=torch.int64, device=runtime.device)
    zeros = [
        torch.zeros(num_classes, channels, dtype=torch.float64, device=runtime.device)
        for _ in range(3)
    ]
    return (count, *zeros)
