"""Stage 2: class-balanced statistics of an observer's layers (arXiv:2511.18858, Eq. 8-9).

One deterministic pass over the un-augmented long-tailed images. For every layer and class it keeps
the exact count, mean, within-image and between-image variance; the order and the size of batches do
not matter, because the dynamic momentum of Eq. 8 is applied as an exact merge of moments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import RecoveryConfig, StatisticsConfig
from ltdd.data.augmentation.crops import crop, normalize, random_crops
from ltdd.data.image_spec import ImageSet, ImageSpec
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.distributed.ranks import current
from ltdd.engine.distributed.units import share_out
from ltdd.engine.finite import check_each
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.engine.watching.progress import Progress
from ltdd.models.observer import (
    Observer,
    Watched,
    batch_norm_layers,
    running_statistics,
    watched_layers,
)
from ltdd.stages.alignment_targets import LayerStatistics, pooled_moments
from ltdd.stages.run import InitialImages, Run
from ltdd.stages.statistics_drift import layer_drift
from ltdd_ext.nn import LayerMoments

VIEWS = 4  # crops an image that are measured of synthetic images
Layers = list[LayerStatistics]
_TABLES = ("count", "mean", "within", "between")


def calibrate_statistics(run: Run, observers: Sequence[Stored[nn.Module]]) -> list[Stored[Layers]]:
    """Stage 2: return the per-class statistics of every observer."""
    return [_observer_statistics(run, observer) for observer in observers]


def _observer_statistics(run: Run, observer: Stored[nn.Module]) -> Stored[Layers]:
    config = run.config.statistics
    settings: dict[str, Any] = {}
    if run.runtime.backend != "compiled":
        settings["backend"] = run.runtime.backend
    if config.layers != StatisticsConfig.layers:
        settings["layers"] = config.layers

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        return _tensors_of(class_statistics(observer.value, run.data, config, runtime), "")

    stored = run.stages.run("statistics", settings, [observer], compute)
    count = len(watched_layers(observer.value, config.layers))
    return stored.map(lambda tensors: _layers_of(tensors, "", count))


def measure_drift(
    run: Run,
    observer: Stored[nn.Module],
    fair: Stored[Layers],
    start: Stored[InitialImages],
    images: Stored[ImageSet],
) -> list[dict[str, Any]]:
    """Measure how far other statistics of every layer are from the fair ones, for the report.

    The synthetic images are measured in crops as recovery sees them, before and after it, and
    whole as they are published. Where there are batch norms, convolutions are left out.
    """
    labels, config = images.value.labels, run.config.statistics
    known = watched_layers(observer.value, config.layers)
    if any(entry.kind == "batch_norm" for entry in known):
        config = dataclasses.replace(config, layers="batch_norm")
    watched = watched_layers(observer.value, config.layers)
    real = [layer for entry, layer in zip(known, fair.value, strict=True) if entry in watched]
    recovery = run.config.recovery
    crops = (1.0, run.config.horizontal_flip)
    if isinstance(recovery, RecoveryConfig):
        crops = (recovery.crop_min_scale, run.config.horizontal_flip and recovery.mirror)
    sets: dict[str, tuple[Tensor, tuple[float, bool] | None]] = {
        "start": (start.value.images, crops),
        "distilled": (images.value.images, crops),
        "published": (images.value.images, None),
    }

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, (shown, crops) in sets.items():
            layers = synthetic_statistics(
                observer.value, ImageSet(shown, labels), run.spec, crops, config, runtime
            )
            tensors |= _tensors_of(layers, f"{name}.")
        return tensors

    settings = {"of": list(sets), "crops": crops}
    tensors = run.stages.run("drift", settings, [observer, start, images], compute).value
    synthetic = {name: _layers_of(tensors, f"{name}.", len(real)) for name in sets}
    return layer_drift([_title(entry) for entry in watched], real, synthetic)


def _title(entry: Watched) -> str:
    return f"{entry.name}, patches" if entry.kind == "patches" else entry.name


def _tensors_of(layers: Layers, prefix: str) -> dict[str, Tensor]:
    return {
        name: tensor
        for number, layer in enumerate(layers)
        for name, tensor in layer.tensors(f"{prefix}{number}").items()
    }


def _layers_of(tensors: Mapping[str, Tensor], prefix: str, count: int) -> Layers:
    return [LayerStatistics.from_tensors(f"{prefix}{number}", tensors) for number in range(count)]


@torch.no_grad()
def class_statistics(
    observer: nn.Module, data: LongTailedData, config: StatisticsConfig, runtime: Runtime
) -> Layers:
    """Return the per-class statistics of every watched layer of the observer.

    Args:
        observer: trained network.
        data: the long-tailed data; only its training images are read.
        config: layers, and batch size of the pass.
        runtime: device, precision and backend.

    Returns:
        One `LayerStatistics` a layer, in order of registration.

    Raises:
        UserError: a moment is NaN or infinite.
    """
    parts = torch.arange(len(data.train_labels)).split(config.batch_size)
    mine = _classes_of_this_rank(data.train_labels, data.num_classes)
    own = (part[mine[data.train_labels[part]]] for part in parts)
    batches = ((data.train_images[part], data.train_labels[part]) for part in own)
    with runtime.progress(len(parts), "statistics") as progress:
        return _fold(observer, batches, mine, data.spec(flip=False), config, progress, runtime)


@torch.no_grad()
def synthetic_statistics(
    observer: nn.Module,
    shown: ImageSet,
    spec: ImageSpec,
    crops: tuple[float, bool] | None,
    config: StatisticsConfig,
    runtime: Runtime,
) -> Layers:
    """Return the same statistics of synthetic images, as they are or as recovery sees them.

    Args:
        observer: trained network.
        shown: images (M, C, H, W), uint8 or float in [0, 1], and their labels; every class
            occurs.
        spec: form of the images.
        crops: smallest area and mirroring of recovery's crops, of which every image draws
            `VIEWS`; None looks at the whole images once.
        config: layers, and batch size of the pass.
        runtime: device, precision, backend, seed.
    """
    images, labels = shown
    mine = _classes_of_this_rank(labels, spec.num_classes)
    draws = 1 if crops is None else VIEWS
    parts = torch.arange(len(labels)).split(config.batch_size)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for draw in range(draws):
            for part in parts:
                own = mine[labels[part]]
                batch = images[part]
                if crops is not None:
                    generator = runtime.stream("statistics", "views", draw, int(part[0]))
                    drawn = random_crops(len(part), *crops, generator)
                    batch = crop(batch / 255 if batch.dtype == torch.uint8 else batch, drawn)
                yield batch[own], labels[part][own]

    with runtime.progress(draws * len(parts), "statistics of the synthetic images") as progress:
        return _fold(observer, batches(), mine, spec, config, progress, runtime)


def _classes_of_this_rank(labels: Tensor, num_classes: int) -> Tensor:
    """Return whether this rank measures a class, bool (K,)."""
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    shares = share_out(counts, current().world)
    return torch.zeros(num_classes, dtype=torch.bool).index_fill_(
        0, torch.tensor(shares[current().rank], dtype=torch.int64), True
    )


def _fold(
    observer: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    mine: Tensor,
    spec: ImageSpec,
    config: StatisticsConfig,
    progress: Progress,
    runtime: Runtime,
) -> Layers:
    recorder = Observer(observer, runtime.ops, config.layers)
    mean, std = spec.normalization.tensors(runtime.device)
    states: list[tuple[Tensor, ...]] = []
    chunks = Chunks("statistics", config.batch_size, runtime)
    for step, (images, labels) in enumerate(batches):

        def observe(
            part: slice, images: Tensor = images, labels: Tensor = labels
        ) -> tuple[Tensor, list[LayerMoments]]:
            batch, owners = images[part].to(runtime.device), labels[part].to(runtime.device)
            # One image alone takes another path through convolutions, with other last digits.
            seen = batch.repeat(2, 1, 1, 1) if len(batch) == 1 else batch
            with runtime.autocast():
                _, moments = recorder(normalize(seen, mean, std))
            return owners, [
                LayerMoments(rows.mean[: len(batch)], rows.m2[: len(batch)], rows.spatial_size)
                for rows in moments
            ]

        for owners, moments in chunks.map(observe, len(labels)):
            states = states or [_empty_state(spec, rows.mean.shape[1], runtime) for rows in moments]
            # Every pixel is in the second moment, so it tells about the mean too.
            spreads = torch.stack([rows.m2.sum() for rows in moments]).cpu()
            names = [(f"moment of layer {layer}", step) for layer in range(len(moments))]
            check_each(spreads, "statistics", names)
            for state, rows in zip(states, moments, strict=True):
                runtime.ops.class_moments_update_(
                    *state, rows.mean, rows.m2, rows.spatial_size, owners
                )
        progress.step(images=len(labels))
    norms = [entry.kind == "batch_norm" for entry in recorder.watched]
    running = iter(running_statistics(batch_norm_layers(observer)) if any(norms) else ())
    layers = []
    for layer, is_norm in enumerate(norms):
        own: dict[str, Tensor] = {}
        if states:  # of a rank that has images
            count, *sums = states[layer]
            finished = runtime.ops.class_moments_finish(count, *sums)
            own = dict(zip(_TABLES, (count, *finished[:3]), strict=True))
        whole = _rows_of_all_ranks(own, mine)
        mean, var = next(running) if is_norm else pooled_moments(**whole)
        layers.append(LayerStatistics(**whole, running_mean=mean, running_var=var))
    return layers


def _rows_of_all_ranks(tables: Mapping[str, Tensor], mine: Tensor) -> dict[str, Tensor]:
    """Return tables of K rows, each row from the rank that measured its class.

    A rank adds the images of its classes in the order of one process, so the bits are the same.
    """
    ranks, whole = current(), dict[str, Tensor]()
    own = {name: table.cpu()[mine] for name, table in tables.items()}
    for source in range(ranks.world):
        theirs = ranks.share_tensors({"mine": mine, **own}, source)
        places = theirs.pop("mine")
        for name, rows in theirs.items():
            none = float("nan") if rows.is_floating_point() else 0
            empty = rows.new_full((len(mine), *rows.shape[1:]), none)
            whole.setdefault(name, empty)[places] = rows
    return whole


def _empty_state(spec: ImageSpec, columns: int, runtime: Runtime) -> tuple[Tensor, ...]:
    shape = (spec.num_classes, columns)
    count = torch.zeros(spec.num_classes, dtype=torch.int64, device=runtime.device)
    zeros = (torch.zeros(shape, dtype=torch.float64, device=runtime.device) for _ in range(3))
    return (count, *zeros)
