"""Hold what the stages of a run share: configuration, data, surroundings, stored results."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ltdd.config import DistillConfig
from ltdd.data.augmentation.student_views import ViewSchedule
from ltdd.data.formation import decode_set
from ltdd.data.image_spec import ImageSet, ImageSpec
from ltdd.data.long_tailed_data import LongTailedData
from ltdd.engine.distributed.ranks import current
from ltdd.engine.machine.memory import keep_freed_memory
from ltdd.engine.run_options import RunOptions
from ltdd.engine.runtime import Log, NullLog, Runtime, choose_kernels
from ltdd.engine.stage_runner import StageRunner, Stored
from ltdd.engine.storage.files import tensors_sha256
from ltdd.engine.watching.events import EVENTS, EventLog
from ltdd.models import Network, build_model
from ltdd.models.inference import predict_logits


class InitialImages(NamedTuple):
    """Images before recovery, class by class.

    Attributes:
        images: float32 (M, C, H, W) in [0, 1], M = K * ipc, class-major.
        labels: int64 (M,).
        source: int64 (M,), index of the training image each one was cut from; -1 for noise.
    """

    images: Tensor
    labels: Tensor
    source: Tensor


class Learned(NamedTuple):
    """What recovery learned beside the images.

    Attributes:
        logits: float32 (M, K), of the images; None where labels are not learned.
        learning_rate: of students.
    """

    logits: Tensor | None
    learning_rate: float


@dataclass(frozen=True)
class Run:
    """One configuration over one data set, with the stages stored below one folder.

    Attributes:
        config: everything that decides the result.
        data: the long-tailed data, drawn once and shared by every stage.
        out: run folder, locked by the caller.
        log: receives structured events.
        runtime: device, precision, seed, progress.
        stages: gives stages their results, or has them computed.
    """

    config: DistillConfig
    data: LongTailedData
    out: Path
    log: Log
    runtime: Runtime
    stages: StageRunner

    @classmethod
    def create(
        cls,
        config: DistillConfig,
        data: LongTailedData,
        out: Path,
        options: RunOptions,
        *,
        finished: frozenset[str] = frozenset(),
        logs: Path | None = None,
    ) -> Run:
        """Prepare a run.

        Args:
            config: everything that decides the result.
            data: the long-tailed data.
            out: run folder, already locked.
            options: what does not change the result.
            finished: names of stages that must be found, never computed.
            logs: folder of the event log; None takes the run folder.
        """
        config, logs = config.of_classes(data.num_classes), logs or out
        log = open_log(logs, options)
        runtime = Runtime.from_config(config, log, options.quiet)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        common: dict[str, Any] = {
            "split": data.split_sha256,
            "pixels": data.content_sha256,
            "image_size": data.image_size,
            "normalization": data.normalization,
            "horizontal_flip": config.horizontal_flip,
            "seed": config.seed,
            "precision": runtime.precision,
            "device": runtime.device.type,
        }
        if choose_kernels(runtime.device, config.deterministic):
            common["deterministic"] = True
        return cls(
            config, data, out, log, runtime, StageRunner(out, common, runtime, options, finished)
        )

    def with_learned_rate(self, learned: Learned | None) -> Run:
        """Return the run with the learned rate in its configuration, where that leaves it open."""
        evaluation = self.config.evaluation
        if learned is None or evaluation.learning_rate is not None:
            return self
        evaluation = dataclasses.replace(evaluation, learning_rate=learned.learning_rate)
        config = dataclasses.replace(self.config, evaluation=evaluation)
        return dataclasses.replace(self, config=config)

    @property
    def spec(self) -> ImageSpec:
        """Form of the images."""
        return self.data.spec(self.config.horizontal_flip)

    @property
    def schedule(self) -> ViewSchedule:
        """The views every student of the distilled set trains on."""
        stored, size = self.data.num_classes * self.config.ipc, self.data.image_size
        count = stored * self.config.evaluation.decode**2
        return ViewSchedule(
            self.config.seed, count, size, size, self.spec.flip, self.config.evaluation
        )

    def shown(self, images: Stored[ImageSet]) -> Stored[ImageSet]:
        """Return what students are shown of a distilled set: its images after decoding.

        Their key is a hash of their pixels, as that of the stored ones.
        """
        if self.config.evaluation.decode == 1:
            return images
        decoded = decode_set(images.value, self.config.evaluation.decode)
        return Stored(decoded, tensors_sha256(decoded._asdict()))

    def build(self, architecture: str) -> Network:
        """Return an untrained network for the run's images."""
        spec = self.spec
        return build_model(architecture, spec.num_classes, spec.size, spec.channels)

    def predict(self, model: nn.Module) -> Tensor:
        """Return the predicted classes (N,) of the test images."""
        logits = predict_logits(model, self.data.test_images, self.data.normalization, self.runtime)
        return logits.argmax(1)


def open_log(folder: Path, options: RunOptions) -> Log:
    """Return the log of a run: the first rank's.

    It takes the events of all ranks, those of others when their work is done. With
    ``LTDD_ALL_RANKS`` in the environment they write folders of their own too, as it happens.
    """
    ranks = current()
    if ranks.is_first:
        return EventLog(folder / EVENTS, options.sinks(folder))
    if os.environ.get("LTDD_ALL_RANKS"):
        return EventLog(folder / f"rank{ranks.rank}" / EVENTS)
    return NullLog()
