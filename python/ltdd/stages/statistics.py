"""Stage 2: class-balanced batch-norm statistics of the frozen observer (arXiv:2511.18858, Eq. 8-9).

One deterministic pass over the un-augmented long-tailed images. For every layer and class it keeps
the exact count, mean, within-image and between-image variance; the order and the size of batches do
not matter, because the dynamic momentum of Eq. 8 is applied as an exact merge of moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ltdd.config import StatisticsConfig
from ltdd.data.augmentation.crops import crop, normalise, random_crops
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.progress import Progress
from ltdd.engine.runtime import Runtime, check_finite
from ltdd.models.observer import Observer, running_statistics
from ltdd.stages.alignment_targets import LayerStatistics
from ltdd_ext.nn import LayerMoments

VIEWS = 4  # crops an image that are measured of synthetic images


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

    Raises:
        UserError: a moment is NaN or infinite.
    """
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    parts = torch.arange(len(data.train_labels)).split(config.batch_size)
    batches = ((data.train_images[part], data.train_labels[part]) for part in parts)
    with runtime.progress(len(parts), "statistics") as progress:
        return _class_statistics(
            observer, batches, data.num_classes, mean, std, config, progress, runtime
        )


@torch.no_grad()
def synthetic_statistics(
    observer: nn.Module,
    images: Tensor,
    labels: Tensor,
    mean: Tensor,
    std: Tensor,
    crops: tuple[float, bool] | None,
    config: StatisticsConfig,
    runtime: Runtime,
) -> list[LayerStatistics]:
    """Return the same statistics of synthetic images, as they are or as recovery sees them.

    Args:
        observer: trained network with BatchNorm2d layers.
        images: (M, C, H, W), uint8 or float in [0, 1].
        labels: int64 (M,), 0..K-1; every class occurs.
        mean, std: (C,), in units of [0, 1].
        crops: smallest area and mirroring of recovery's crops, of which every image draws
            `VIEWS`; None looks at the whole images once.
        config: batch size of the pass.
        runtime: device, precision, backend, seed.
    """
    draws = 1 if crops is None else VIEWS
    parts = torch.arange(len(labels)).split(config.batch_size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for draw in range(draws):
            for part in parts:
                batch = images[part]
                if crops is not None:
                    generator = runtime.stream("statistics", "views", draw, int(part[0]))
                    drawn = random_crops(len(part), *crops, generator)
                    batch = crop(batch / 255 if batch.dtype == torch.uint8 else batch, drawn)
                yield batch, labels[part]

    num_classes = int(labels.max()) + 1
    with runtime.progress(draws * len(parts), "statistics of the synthetic images") as progress:
        return _class_statistics(
            observer, batches(), num_classes, mean, std, config, progress, runtime
        )


def _class_statistics(
    observer: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    mean: Tensor,
    std: Tensor,
    config: StatisticsConfig,
    progress: Progress,
    runtime: Runtime,
) -> list[LayerStatistics]:
    recorder = Observer(observer, runtime.ops)
    mean, std = mean.to(runtime.device), std.to(runtime.device)
    states = [_empty_state(num_classes, layer.num_features, runtime) for layer in recorder.layers]
    chunks = Chunks("statistics", config.batch_size, runtime)
    for step, (images, labels) in enumerate(batches):

        def observe(
            part: slice, images: Tensor = images, labels: Tensor = labels
        ) -> tuple[Tensor, list[LayerMoments]]:
            batch, owners = images[part].to(runtime.device), labels[part].to(runtime.device)
            # One image alone takes another path through convolutions, with other last digits.
            seen = batch.repeat(2, 1, 1, 1) if len(batch) == 1 else batch
            with runtime.autocast():
                _, moments = recorder(normalise(seen, mean, std))
            return owners, [
                LayerMoments(rows.mean[: len(batch)], rows.m2[: len(batch)], rows.spatial_size)
                for rows in moments
            ]

        for owners, moments in chunks.map(observe, len(labels)):
            for layer, (state, rows) in enumerate(zip(states, moments, strict=True)):
                # Every pixel is in the second moment, so it tells about the mean too.
                check_finite(rows.m2.sum(), "statistics", step, f"moment of layer {layer}")
                runtime.ops.class_moments_update_(
                    *state, rows.mean, rows.m2, rows.spatial_size, owners
                )
        progress.step(images=len(labels))
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
