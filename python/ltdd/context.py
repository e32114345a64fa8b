"""What every part of a run works with: its configuration, data, surroundings and stored stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ltdd.checkpoint import DEFAULT_SECONDS
from ltdd.config import DistillConfig, ExpertsConfig
from ltdd.data.datasets import LongTailedData
from ltdd.data.views import ViewSchedule
from ltdd.events import EVENTS, EventLog, Sink
from ltdd.inference import predict_logits
from ltdd.models import build_model
from ltdd.runtime import Runtime, keep_freed_memory
from ltdd.stage_runner import StageRunner
from ltdd.stages.experts import train_expert


@dataclass(frozen=True)
class Context:
    """One configuration over one data set, with the stages stored below one folder.

    Attributes:
        config: everything that decides the result.
        data: the long-tailed data, drawn once and shared by every stage.
        out: run folder, locked by the caller.
        log: receives structured events.
        runtime: device, precision, seed, progress.
        stages: gives stages their results from the folder, or has them computed.
    """

    config: DistillConfig
    data: LongTailedData
    out: Path
    log: EventLog
    runtime: Runtime
    stages: StageRunner

    @classmethod
    def create(
        cls,
        config: DistillConfig,
        data: LongTailedData,
        out: Path,
        *,
        quiet: bool,
        stored: frozenset[str] = frozenset(),
        checkpoint_seconds: float = DEFAULT_SECONDS,
        pool: Path | None = None,
        sinks: Sequence[Sink] = (),
    ) -> Context:
        """Prepare a run.

        Args:
            config: everything that decides the result.
            data: the long-tailed data.
            out: run folder, already locked.
            quiet: no progress output.
            stored: names of stages that must be found in the folder, never computed.
            checkpoint_seconds: time between two saves of an unfinished stage.
            pool: folder of stage results shared with other runs.
            sinks: receive every event beside the log.
        """
        log = EventLog(out / EVENTS, sinks)
        runtime = Runtime.from_config(config, log, quiet)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        common = {
            "split": data.split_sha256,
            "pixels": data.content_sha256,
            "image_size": data.image_size,
            "normalization": [data.mean, data.std],
            "horizontal_flip": config.horizontal_flip,
            "seed": config.seed,
            "precision": runtime.precision,
            "device": runtime.device.type,
        }
        stages = StageRunner(out, common, runtime, log, stored, checkpoint_seconds, pool)
        return cls(config, data, out, log, runtime, stages)

    @property
    def mean(self) -> Tensor:
        """Mean of every channel, (C,), in units of [0, 1]."""
        return torch.tensor(self.data.mean)

    @property
    def std(self) -> Tensor:
        """Standard deviation of every channel, (C,), in units of [0, 1]."""
        return torch.tensor(self.data.std)

    def views(self) -> ViewSchedule:
        """Return the views every student of this run trains on."""
        size = self.data.image_size
        return ViewSchedule(
            self.config.seed,
            self.data.num_classes * self.config.ipc,
            size,
            size,
            self.config.horizontal_flip,
            self.config.evaluation,
        )

    def expert(
        self, role: str, architecture: str, settings: ExpertsConfig
    ) -> tuple[nn.Module, str]:
        """Stage 1: return a trained expert and its key."""
        values = dataclasses.asdict(settings)
        recipe = {k: v for k, v in values.items() if k not in ("observer", "teacher")}
        key = self.stages.key("experts", recipe | {"role": role, "architecture": architecture}, [])
        data, flip = self.data, self.config.horizontal_flip
        weights = self.stages.run(
            "experts" if role in ("observer", "teacher") else "evaluation",
            key,
            lambda runtime: train_expert(
                role, architecture, data, settings, flip, runtime
            ).state_dict(),
        )
        runtime = self.runtime
        model = build_model(architecture, data.num_classes, data.image_size, data.channels)
        model.load_state_dict(weights)
        model = model.to(runtime.device).to(memory_format=torch.channels_last)
        return model.eval().requires_grad_(False), key

    def predict(self, model: nn.Module) -> Tensor:
        """Return the predicted classes (N,) of the test images."""
        logits = predict_logits(model, self.data.test_images, self.mean, self.std, self.runtime)
        return logits.argmax(1)
