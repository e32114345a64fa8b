"""Stage 4: make the images what they are to be; one module for each form of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ltdd.config import (
    DistributionMatching,
    GradientMatching,
    RecoveryConfig,
    TrajectoryRecovery,
    deciding_settings,
)
from ltdd.data.image_spec import ImageSet, to_uint8
from ltdd.engine.runtime import Runtime
from ltdd.engine.stage_runner import Stored
from ltdd.engine.storage.files import tensors_sha256
from ltdd.stages.alignment_targets import LayerStatistics
from ltdd.stages.recovery.alignment import Observed, align_images
from ltdd.stages.recovery.distribution import match_distributions
from ltdd.stages.recovery.gradient import match_gradients
from ltdd.stages.recovery.trajectory import match_trajectories
from ltdd.stages.run import InitialImages, Learned, Run
from ltdd.stages.trajectories import Trajectories

Statistics = Stored[list[LayerStatistics]]


class Recovered(NamedTuple):
    """What a form of recovery made.

    Attributes:
        images: their key is a hash of their pixels and labels: whatever made them, what is trained
            on equal images is the same.
        learned: beside the images; None for nothing.
        measured: how well paths were matched, and what that cost; None where none were.
    """

    images: Stored[ImageSet]
    learned: Learned | None = None
    measured: Mapping[str, float] | None = None


def recover_images(
    run: Run,
    observers: Sequence[Stored[nn.Module]],
    statistics: Sequence[Statistics],
    start: Stored[InitialImages],
    trajectories: Trajectories | None = None,
) -> Recovered:
    """Stage 4: return the images of the distilled set."""
    learned = measured = None
    match run.config.recovery:
        case RecoveryConfig() as config:
            tensors = _align(run, config, observers, statistics, start).value
        case GradientMatching() | DistributionMatching() as config:
            tensors = _match(run, config, start).value
        case TrajectoryRecovery() as config:
            assert trajectories is not None
            tensors = _follow(run, config, trajectories, start).value
            learned = Learned(tensors.get("logits"), float(tensors["learning_rate"]))
            measured = _measured(run, config, tensors)
        case _:  # NoRecovery
            tensors = start.value._asdict()
    images = ImageSet(to_uint8(tensors["images"]), start.value.labels)
    stored = Stored(images, tensors_sha256(images._asdict()))
    return Recovered(stored, learned, measured)


def _align(
    run: Run,
    config: RecoveryConfig,
    observers: Sequence[Stored[nn.Module]],
    statistics: Sequence[Statistics],
    start: Stored[InitialImages],
) -> Stored[dict[str, Tensor]]:
    pairs = zip(observers, statistics, strict=True)
    observed = [Observed(network.value, layers.value) for network, layers in pairs]
    targets = run.config.statistics

    def compute(runtime: Runtime) -> dict[str, Tensor]:
        return {"images": align_images(start.value, observed, run.spec, config, targets, runtime)}

    settings = deciding_settings(config) | {
        f"statistics.{name}": value for name, value in deciding_settings(targets).items()
    }
    return run.stages.run("recovery", settings, [*statistics, start], compute)


def _match(
    run: Run, config: GradientMatching | DistributionMatching, start: Stored[InitialImages]
) -> Stored[dict[str, Tensor]]:
    def compute(runtime: Runtime) -> dict[str, Tensor]:
        match config:
            case GradientMatching():
                images = match_gradients(start.value, run.data, run.spec, config, runtime)
            case DistributionMatching():
                images = match_distributions(start.value, run.data, run.spec, config, runtime)
        return {"images": images}

    return run.stages.run("recovery", deciding_settings(config), [start], compute)


def _follow(
    run: Run,
    config: TrajectoryRecovery,
    trajectories: Trajectories,
    start: Stored[InitialImages],
) -> Stored[dict[str, Tensor]]:
    def compute(runtime: Runtime) -> dict[str, Tensor]:
        counts = run.data.counts
        return match_trajectories(start.value, trajectories, counts, run.spec, config, runtime)

    inputs: list[Stored[Any]] = [start, *trajectories.paths]
    return run.stages.run("recovery", deciding_settings(config), inputs, compute)


def _measured(
    run: Run, config: TrajectoryRecovery, tensors: Mapping[str, Tensor]
) -> dict[str, float]:
    before, after, published = tensors["matching_loss"].tolist()
    return {
        "loss_before": before,
        "loss_after": after,
        "loss_published": published,
        "clipped": float(tensors["clipped"]),
        "iterations": config.iterations,
        "seconds_per_iteration": run.stages.costs["recovery"]["seconds"] / config.iterations,
        "learning_rate": float(tensors["learning_rate"]),
    }
