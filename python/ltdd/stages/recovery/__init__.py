"""Stage 4: make the images what they are to be; one module for each form of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ltdd.config import (
    DistributionMatching,
    GradientMatching,
    RecoveryConfig,
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
from ltdd.stages.run import InitialImages, Run

Statistics = Stored[list[LayerStatistics]]


class Recovered(NamedTuple):
    """What a form of recovery made.

    Attributes:
        images: their key is a hash of their pixels and labels: whatever made them, what is trained
            on equal images is the same.
    """

    images: Stored[ImageSet]


def recover_images(
    run: Run,
    observers: Sequence[Stored[nn.Module]],
    statistics: Sequence[Statistics],
    start: Stored[InitialImages],
) -> Recovered:
    """Stage 4: return the images of the distilled set."""
    match run.config.recovery:
        case RecoveryConfig() as config:
            tensors = _align(run, config, observers, statistics, start).value
        case GradientMatching() | DistributionMatching() as config:
            tensors = _match(run, config, start).value
        case _:  # NoRecovery
            tensors = start.value._asdict()
    images = ImageSet(to_uint8(tensors["images"]), start.value.labels)
    return Recovered(Stored(images, tensors_sha256(images._asdict())))


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
