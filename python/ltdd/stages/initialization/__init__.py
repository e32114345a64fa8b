"""Stage 3: where the synthetic images start: crops of real images, whole ones, or noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ltdd.config import (
    AnyInitialization,
    ClusteredCrops,
    CorrectReal,
    GraphCut,
    InitializationConfig,
    KCenter,
    Noise,
    Tiled,
    deciding_settings,
)
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.chunks import Chunks
from ltdd.engine.distributed.units import Units
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.stages.initialization.coresets import Coreset
from ltdd.stages.initialization.correct_real import draw_correct_real
from ltdd.stages.initialization.crops import Cropping
from ltdd.stages.initialization.random_real import draw_random_real
from ltdd.stages.initialization.tiled import Tiling
from ltdd.stages.run import InitialImages, Run
from ltdd.stages.trajectories import Trajectories

SCORING_BATCH = 500  # crops rendered at once, fewer if memory does not suffice
REAL_EXAMPLES = 5  # of a class, kept for the report


def initialize_images(
    run: Run, teacher: Stored[nn.Module], trajectories: Trajectories | None = None
) -> Stored[InitialImages]:
    """Stage 3: return the images that recovery starts from."""
    config, ipc = run.config.initialization, run.config.ipc

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        start = initial_images(teacher.value, run.data, ipc, config, runtime, trajectories)
        return {**start._asdict(), "real_examples": real_examples(run.data)}

    settings = deciding_settings(config) | {"ipc": ipc}
    inputs: list[Stored[Any]] = [teacher]
    if isinstance(config, CorrectReal) and trajectories is not None:
        inputs = [*trajectories.paths]
    stored = run.stages.run("initialization", settings, inputs, compute)
    return stored.map(
        lambda tensors: InitialImages(*(tensors[name] for name in InitialImages._fields))
    )


def real_examples(data: LongTailedData) -> Tensor:
    """Return the first real training images of every class, uint8 (K, 5, C, H, W)."""
    rows = []
    for label in range(data.num_classes):
        members = data.members(label)
        rows.append(data.train_images[members[torch.arange(REAL_EXAMPLES) % len(members)]])
    return torch.stack(rows)


def initial_images(
    teacher: nn.Module,
    data: LongTailedData,
    ipc: int,
    config: AnyInitialization,
    runtime: Runtime,
    trajectories: Trajectories | None = None,
) -> InitialImages:
    """Return ``ipc`` images of every class.

    Args:
        teacher: sees the crops of ``scored_crops``; of ``clustered_crops``, its ``features``
            do; its features and logits choose coresets.
        data: the long-tailed data; only its training images are read.
        ipc: images per class.
        config: method and crop settings.
        runtime: device, precision, seed.
        trajectories: of the experts that ``correct_real`` asks.
    """
    teacher.eval()
    chunks = Chunks("initialization", SCORING_BATCH, runtime)

    def choose(label: int, runtime: Runtime) -> dict[str, Tensor]:
        members = data.members(label)
        match config:
            case InitializationConfig():
                cropping = Cropping(teacher, data, ipc, config, runtime, chunks)
                chosen, source = cropping.scored(members, label)
            case ClusteredCrops():
                cropping = Cropping(teacher, data, ipc, config, runtime, chunks)
                chosen, source = cropping.clustered(members, label)
            case KCenter() | GraphCut():
                coreset = Coreset(teacher, data, runtime, chunks)
                source = coreset.chosen(members, ipc, label, config)
                chosen = data.train_images[source] / 255
            case Tiled():
                chosen, source = Tiling(data, ipc, config, runtime, chunks).images(members, label)
            case CorrectReal():
                assert trajectories is not None
                source = draw_correct_real(trajectories, data, label, ipc, runtime, chunks)
                chosen = data.train_images[source] / 255
            case Noise():
                chosen = _noise(data, ipc, label, runtime)
                source = torch.full((ipc,), -1)
            case _:
                source = draw_random_real(members, ipc, label, runtime)
                chosen = data.train_images[source] / 255
        progress.step(images=len(members))
        return {"images": chosen, "source": source}

    classes = Units("initialization", range(data.num_classes), runtime, data.counts)
    with runtime.progress(len(classes.mine), "initialization", len(classes.done)) as progress:
        found = classes.map(choose)
    labels = torch.arange(data.num_classes).repeat_interleave(ipc)
    images, source = (torch.cat([made[part] for made in found]) for part in ("images", "source"))
    return InitialImages(images, labels, source)


def _noise(data: LongTailedData, ipc: int, label: int, runtime: Runtime) -> Tensor:
    generator = runtime.stream("initialization", "noise", label)
    shape = (ipc, data.channels, data.image_size, data.image_size)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    return (mean + std * torch.randn(shape, generator=generator)).clamp(0, 1)
